"""Every operation, on the whole table of cases: gradients, dtypes, and the contract that the engine relies on."""

from collections import defaultdict

import numpy as np
import pytest
from cases import CASES, Case, calls_of, check_contract

import minitune as mt
from minitune import ops

OPERATIONS = [name for name in ops.__all__ if callable(getattr(ops, name))]


def test_every_public_operation_has_a_case():
    assert set(OPERATIONS) - {"cast"} == {case.operation for case in CASES}     # cast changes dtypes: see test_bfloat16.py


def test_no_two_cases_share_a_name():
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_agree_with_central_differences(case):
    if any(a.size for a in case.floats):
        mt.gradcheck(case.run, *case.floats)
    else:                                               # nothing to step along: only the shapes can be wrong
        tensors = [mt.Tensor(a, requires_grad=True) for a in case.floats]
        y = case.run(*tensors)
        y.backward(np.ones(y.shape))
        assert all(t.grad.shape == t.shape for t in tensors)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_stays_float32_and_float64_stays_float64(case):
    for dtype in np.float32, np.float64:
        tensors = [mt.Tensor(a.astype(dtype), requires_grad=True) for a in case.floats]
        y = case.run(*tensors)
        y.backward(np.ones(y.shape, dtype))
        assert [y.dtype, *(t.grad.dtype for t in tensors)] == [dtype] * (1 + len(tensors))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_keeps_the_contract_for_every_subset_of_needs(case, dtype):
    for call in calls_of(case, dtype):
        for needs in call.subsets_of_needs():
            check_contract(call.forward, call.backward, call.arrays, call.settings, needs)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_forward_saves_nothing_that_the_wanted_gradients_do_not_use(operation):
    """Every saved array is spoilt in turn. One that changes no gradient, in any case, was kept in vain."""
    used = defaultdict(bool)
    for case in CASES:
        if case.operation == operation:
            for call in calls_of(case):
                for needs in call.subsets_of_needs():
                    for slot, matters in spoilt(call, needs):
                        used[call.name, needs, slot] |= matters
    assert not [place for place, matters in used.items() if not matters]


def spoilt(call, needs):
    """(number, does it matter) of each array that forward saves."""
    y, saved = call.forward(*call.arrays, **call.settings, needs=needs)
    grad = np.asarray(np.random.default_rng(1).standard_normal(np.shape(y)))
    sound = call.backward(grad, *saved, needs=needs)
    for slot, value in enumerate(saved):
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "fb":
            bad = ~value if value.dtype.kind == "b" else np.full_like(value, 1e3)
            with np.errstate(all="ignore"):
                try:
                    got = call.backward(grad, *saved[:slot], bad, *saved[slot + 1 :], needs=needs)
                except (ValueError, IndexError):        # a spoilt mask of rows no longer fits: it was used
                    yield slot, True
                    continue
            yield slot, any(s is not None and not np.array_equal(s, g) for s, g in zip(sound, got, strict=True))


def test_the_contract_test_sees_each_kind_of_breach():
    """The checks above can fail: five wrong backwards, five complaints."""
    a, b = np.ones(3), np.full(3, 2.0)

    def forward(a, b, *, needs):
        return a * b, (a, b)

    def writes_into_grad(grad, a, b, *, needs):
        grad *= b
        return grad, None

    def writes_into_an_input(grad, a, b, *, needs):
        b *= grad
        return b.copy(), None

    def returns_an_input(grad, a, b, *, needs):
        return b, None

    def forgets_needs(grad, a, b, *, needs):
        return grad * b, grad * a

    def widens(grad, a, b, *, needs):
        return np.stack([grad, grad]), None

    only_a = mt.tensor._needs_of(forward)([True, False])
    for backward in writes_into_grad, writes_into_an_input, returns_an_input, forgets_needs, widens:
        with pytest.raises(AssertionError):
            check_contract(forward, backward, [a, b], {}, only_a)
    both = mt.tensor._needs_of(forward)([True, True])

    def shares(grad, a, b, *, needs):
        new = grad * 2
        return new, new[:]

    with pytest.raises(AssertionError, match="two gradients share memory"):
        check_contract(forward, shares, [a, b], {}, both)


def test_a_case_takes_tensors_in_the_places_of_its_float_arrays():
    case = Case("linear", "x", (np.ones((1, 2)), np.ones((3, 2)), None))
    assert case.run(mt.Tensor(np.ones((1, 2))), mt.Tensor(np.full((3, 2), 2.0))).numpy().tolist() == [[4.0, 4.0, 4.0]]
