"""linear_cross_entropy on the emulated GPU: any sizes and chunks, both dtypes, any thread order, what is ignored or wrong."""

from itertools import product

import numpy as np
import pytest
from cases import check_contract

from minitune.ops import IGNORE
from minitune.ops.cross_entropy import check_targets
from minitune.ops.linear_cross_entropy import linear_cross_entropy_backward, linear_cross_entropy_forward
from minitune.tensor import _needs_of
from minitune.twins.cuda import emulation
from minitune.twins.cuda import linear_cross_entropy as twin

BFLOAT16 = pytest.importorskip("ml_dtypes").bfloat16
pytestmark = pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs g++")
needs_of = _needs_of(linear_cross_entropy_forward)
ALL, NONE = needs_of((True, True, False, True)), needs_of((False,) * 4)
SIZES = [(1, 1, 1), (2, 31, 33), (31, 33, 2), (33, 255, 31), (255, 2, 255), (33, 1, 1025), (1025, 1, 2),
         (3, 8, 1024)]          # N, C, V
RTOL, ATOL = 1e-5, 2e-6         # float32, as in tests/ops/test_twins.py
HALF = 2.0**-8                  # the largest relative error of one rounding to bfloat16


def call(N, C, V, dtype=np.float32, bias=True, ignored=0.3):
    """x, weight, targets, bias; logits are about 1, what is not x stays float32."""
    rng = np.random.default_rng(N + C + V)
    targets = np.where(rng.random(N) < ignored, IGNORE, rng.integers(0, V, N))
    x, weight = rng.standard_normal((N, C)), rng.standard_normal((V, C)) / np.sqrt(C)
    return [x.astype(dtype), weight.astype(np.float32), targets, rng.standard_normal(V).astype(np.float32) if bias else None]


def run(arrays, needs=ALL, grad=0.5):
    """The loss and the gradients by the twin."""
    needs = needs._replace(bias=needs.bias and arrays[3] is not None)
    loss, saved = twin.linear_cross_entropy_forward(*arrays, needs=needs)
    assert (loss.dtype, loss.shape) == (np.float32, ())
    return loss, *twin.linear_cross_entropy_backward(np.asarray(grad, np.float32), *saved, needs=needs)


def reference(arrays, needs=ALL, grad=0.5):
    """The same by the reference in float64."""
    arrays = [a if a is None or a.dtype.kind == "i" else a.astype(np.float64) for a in arrays]
    needs = needs._replace(bias=needs.bias and arrays[3] is not None)
    loss, saved = linear_cross_entropy_forward(*arrays, needs=needs)
    return loss, *linear_cross_entropy_backward(grad, *saved, needs=needs)


def assert_agrees(arrays):
    for g, e in zip(run(arrays), reference(arrays), strict=True):
        assert (g is None) == (e is None)
        if g is not None:
            assert g.dtype == np.float32
            np.testing.assert_allclose(g, e, RTOL, ATOL)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_float32_agrees_with_the_reference(sizes, bias):
    assert_agrees(call(*sizes, bias=bias))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_bfloat16_agrees_with_the_reference_within_its_roundings(sizes, bias):
    """A logit z is rounded, which changes it by HALF |z| and log(sum(e^z)), like p, by at most as much as the largest of them;
    so a slope p - 1 at the target is off by HALF (2 |z| p + |p - 1|), the second when it is stored. Products add these up."""
    x, weight, targets, bias = arrays = call(*sizes, dtype=BFLOAT16, bias=bias)
    rounded = [x, weight.astype(BFLOAT16), targets, bias]               # the twin rounds the weight, too
    expected = reference(rounded, grad=1)
    got = run(arrays, grad=1)
    assert [g.dtype for g in got if g is not None] == [np.float32, BFLOAT16, *[np.float32] * (1 if bias is None else 2)]
    x, weight = x.astype(np.float64), rounded[1].astype(np.float64)
    z, kept = x @ weight.T, targets != IGNORE
    largest = abs(z).max(-1, initial=0, keepdims=True)
    p = np.exp(z + (0 if bias is None else bias))
    p /= p.sum(-1, keepdims=True)
    off = 1.01 * HALF * kept[:, None] * (2 * largest * p + abs(p - (targets[:, None] == np.arange(len(weight)))))
    bounds = [2 * HALF * (largest[:, 0] * kept).sum(), off @ abs(weight) + HALF * abs(expected[1]), off.T @ abs(x), 0,
              off.sum(0)]
    for g, e, bound in zip(got, expected, bounds, strict=True):
        if g is not None:
            assert (abs(g.astype(np.float64) - e) <= bound + ATOL + RTOL * abs(e)).all()


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
def test_every_choice_of_gradients_keeps_the_contract(dtype):
    arrays = call(33, 5, 31, dtype)
    everything = run(arrays)
    for wanted in product((False, True), repeat=3):
        needs = needs_of((*wanted[:2], False, wanted[2]))
        check_contract(twin.linear_cross_entropy_forward, twin.linear_cross_entropy_backward, arrays, {}, needs)
        for g, e, need in zip(run(arrays, needs), everything, (True, *needs), strict=True):
            assert (g is not None) == need and (not need or g.tobytes() == e.tobytes())


def test_both_may_be_bfloat16_and_a_weight_may_be_where_x_is_not():
    """Each gradient has its input's dtype: float32 products of bfloat16 numbers, rounded once or twice."""
    x, weight, targets, bias = call(31, 8, 33, BFLOAT16)
    expected = run([x, weight, targets, bias])
    both = run([x, weight.astype(BFLOAT16), targets, bias.astype(BFLOAT16)])
    assert [g.dtype for g in both if g is not None] == [np.float32] + [BFLOAT16] * 3
    np.testing.assert_allclose(both[2].astype(np.float32), expected[2], 0.02, 0.02)     # the bias was rounded
    mixed = run([x.astype(np.float32), weight.astype(BFLOAT16), targets, bias])
    assert [g.dtype for g in mixed if g is not None] == [np.float32, np.float32, BFLOAT16, np.float32]
    np.testing.assert_allclose(mixed[1], expected[1].astype(np.float32), 2 * HALF, ATOL)


@pytest.mark.parametrize("rows", [1, 10, 62])
def test_logits_are_held_a_chunk_at_a_time(rows, monkeypatch):
    arrays, made = call(63, 3, 33), []
    monkeypatch.setattr(twin, "ROWS", 1)
    monkeypatch.setattr(twin, "LOGITS", 40 * 4 * rows + 8)             # 33 classes are padded to 40
    held = twin.product

    def recorded(a, b, **settings):
        result = held(a, b, **settings)
        if not settings:
            made.append(result.shape)
        return result

    monkeypatch.setattr(twin, "product", recorded)
    assert_agrees(arrays)
    assert set(made) <= {(rows, 40), (63 % rows, 40)} and sum(N for N, _ in made) == 63


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
def test_any_order_of_threads_gives_the_same_bits(dtype):
    arrays, results = call(33, 5, 1025, dtype), []
    for order in emulation.ORDERS:
        with emulation.thread_order(order):
            results.append(tuple(g.tobytes() for g in run(arrays) if g is not None))
    assert len(set(results)) == 1


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
def test_where_all_is_ignored_or_nothing_there_loss_and_gradients_are_zero(dtype):
    for N, C, V, ignored in (5, 3, 33, 1), (0, 3, 33, 0), (4, 0, 3, 1), (4, 3, 0, 1):
        x, weight, targets, bias = call(N, max(C, 1), max(V, 1), dtype, ignored=ignored)
        loss, *grads = run([x[:, :C], weight[:V, :C], targets, bias[:V]])
        assert loss == 0 and not any(g.any() for g in grads if g is not None)
        assert [g.shape for g in grads if g is not None] == [(N, C), (V, C), (V,)]


def test_an_ignored_row_is_not_read():
    x, weight, targets, bias = call(33, 5, 31)
    x[targets == IGNORE] = np.nan
    loss, *_ = run([x, weight, targets, bias], NONE)
    assert np.isfinite(loss)


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
@pytest.mark.parametrize("wrong", [-1, 33, 39, 40, -99, -101, 2**31 - 1, -(2**31)])
def test_a_target_that_is_no_class_shows_as_nan(wrong, dtype):
    arrays = call(5, 3, 33, dtype, ignored=0)
    right = run(arrays)
    arrays[2][3] = wrong
    loss, grad_x, *_ = run(arrays)
    assert np.isnan(loss) and np.isnan(grad_x[3]).all()
    others = [0, 1, 2, 4]
    np.testing.assert_array_equal(grad_x[others], right[1][others])


def test_a_thread_takes_several_packs_of_a_long_row():
    assert_agrees(call(5, 2, 4 * 4096 + 5, bias=False))


def test_large_logits_and_classes_that_are_shut_out():
    x, weight, targets, bias = call(9, 2, 33, ignored=0)
    assert_agrees([x, 500 * weight, targets, bias])
    bias[:30], targets[:] = -np.inf, 31                                 # all classes of some threads
    assert_agrees([x, weight, targets, bias])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["x", "weight", "bias"])
def test_nan_and_infinity_show_in_the_loss(place, bad):
    arrays = call(9, 2, 1025, ignored=0)
    arrays[["x", "weight", "", "bias"].index(place)].flat[-1] = bad
    with np.errstate(invalid="ignore"):         # 0 inf in a product
        assert np.isnan(run(arrays)[0])


def test_a_gpus_targets_are_checked_without_waiting_for_it():
    """Shape and dtype alone: a look at a number would raise here."""
    class OnGPU:
        __module__ = "cupy"
        shape, dtype = (3,), np.dtype(np.int64)

        def __ne__(self, other):
            raise AssertionError("the targets' numbers were looked at")

    check_targets("linear_cross_entropy", OnGPU(), (3,), 5)
    with pytest.raises(ValueError, match=r"targets must be integers \(2,\)"):
        check_targets("linear_cross_entropy", OnGPU(), (2,), 5)
