"""attention on the emulated GPU: intervals of all kinds, heads and lengths of any size, NaN, the order of threads."""

from math import sqrt

import numpy as np
import pytest
from cases import INTERVALS, check_contract

from minitune import Tensor, backend, ops
from minitune.ops.attention import attention_backward, attention_forward
from minitune.tensor import _needs_of
from minitune.twins.cuda import attention as twin
from minitune.twins.cuda import emulation

BFLOAT16 = pytest.importorskip("ml_dtypes").bfloat16
pytestmark = pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs g++")
needs_of = _needs_of(attention_forward)
EVERY = needs_of((True, True, True, False, False))
U = 2.0**-8             # the largest relative error of one rounding to bfloat16
# (B, T, S, H, G, D): around 16 rows of a warp, 32 and 64 of a tile, heads of whole sizes and of others, groups
SHAPES = [(1, 1, 1, 1, 1, 1), (2, 17, 15, 1, 1, 32), (1, 64, 64, 1, 1, 64), (1, 65, 129, 2, 1, 64), (1, 33, 65, 1, 1, 128),
          (1, 70, 31, 3, 3, 33), (1, 31, 70, 4, 2, 65), (1, 127, 40, 6, 2, 20), (2, 40, 33, 2, 2, 128), (1, 3, 200, 5, 1, 31)]
KINDS = ["everything", "causal", "window", "packed", "left padding", "right padding", "an idle tile", "every third", "one key",
         "nothing"]


def intervals(kind, B, T, S):
    """(first, last), each (B, T): query t stands at key t + S - T, and sees nothing where there is no such key."""
    at = np.arange(T) + S - T
    first, last, sees = {
        "everything": (0 * at, 0 * at + S - 1, at == at), "causal": (0 * at, at, at >= 0),
        "window": (np.maximum(at - 16, 0), at, at >= 0), "packed": (at // 37 * 37, at, at >= 0),
        "left padding": (0 * at + S // 3, at, at >= S // 3), "right padding": (0 * at, at, (at >= 0) & (at < S // 2)),
        "an idle tile": (0 * at, at, (at >= 0) & (at // 64 != 1)), "every third": (0 * at, at, (at >= 0) & (at % 3 == 0)),
        "one key": (one := (7 * np.arange(T) + 63) % max(S, 1), one, at == at), "nothing": (0 * at, at, at != at),
    }[kind]
    return (np.broadcast_to(a, (B, T)) for a in (np.where(sees, first, 3), np.where(sees, last, -1)))


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(BFLOAT16)


def call(shape, kind="causal"):
    """q, k, v, first and last, and a gradient."""
    B, T, S, H, G, D = shape
    return (numbers(B, T, H, D), numbers(B, S, G, D, seed=1), numbers(B, S, G, D, seed=2), *intervals(kind, B, T, S),
            numbers(B, T, H, D, seed=3))


def run(q, k, v, first, last, grad, needs=EVERY, forward=twin.attention_forward, backward=twin.attention_backward):
    """The result and the gradients of q, k and v."""
    y, saved = forward(q, k, v, first, last, needs=needs)
    return y, *backward(grad, *saved, needs=needs)[:3]


def by_reference(q, k, v, first, last, grad):
    q, k, v, grad = (a.astype(np.float64) for a in (q, k, v, grad))
    return run(q, k, v, first, last, grad, forward=attention_forward, backward=attention_backward)


def largest_errors(q, k, v, first, last, grad, exact):
    """What roundings to bfloat16 may change at most, number by number: nothing where nothing is seen.

    Each result is off by U for being rounded, and y and grad_v by U for rounded weights p. So are grad_q and grad_k for rounded
    slopes p (grad . v - delta), whose delta = grad . y is off as far as y is: by U |grad| |y| and by U p |grad . v|. A
    hundredth more is for products of errors and for all that is float32.
    """
    n, S = q.shape[2] // k.shape[2], k.shape[1]
    q, k, v, grad = (a.astype(np.float64) for a in (q, k.repeat(n, 2), v.repeat(n, 2), grad))
    scores = np.einsum("bthd,bshd->bhts", q, k) / sqrt(q.shape[3])
    seen = (first[..., None] <= np.arange(S)) & (np.arange(S) <= last[..., None])
    p = np.where(seen[:, None], np.exp(scores - scores.max(-1, keepdims=True, initial=0)), 0)
    p /= p.sum(-1, keepdims=True) + (p.sum(-1, keepdims=True) == 0)
    along = np.einsum("bthd,bshd->bhts", grad, v)
    off = (p * abs(along)).sum(-1) + np.einsum("bthd,bthd->bht", abs(grad), abs(exact[0]))
    slopes = p * (abs(along - (p * along).sum(-1, keepdims=True)) + off[..., None]) / sqrt(q.shape[3])
    sums = [np.einsum("bhts,bshd->bthd", p, abs(v)), np.einsum("bhts,bshd->bthd", slopes, abs(k)),
            np.einsum("bhts,bthd->bshd", slopes, abs(q)), np.einsum("bhts,bthd->bshd", p, abs(grad))]
    B, _, H, D = k.shape
    sums[2:] = (a.reshape(B, S, H // n, n, D).sum(3) for a in sums[2:])
    return [1.01 * U * (a + abs(e)) for a, e in zip(sums, exact, strict=True)]


def assert_agrees(*arrays):
    got, exact = run(*arrays), by_reference(*arrays)
    for name, like, g, e, most in zip(("y", "grad_q", "grad_k", "grad_v"), (arrays[0], *arrays[:3]), got, exact,
                                      largest_errors(*arrays, exact), strict=True):
        assert (g.dtype, g.shape) == (like.dtype, like.shape)
        wrong = abs(g.astype(np.float64) - e)
        assert (wrong <= most).all(), f"{name}: off by up to {np.nanmax(wrong / np.maximum(most, 1e-300)):.3} times what it may"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_agrees_with_the_reference_at_any_size(shape):
    for kind in "causal", "every third":
        assert_agrees(*call(shape, kind))


@pytest.mark.parametrize("S", [150, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_it_agrees_with_the_reference_for_every_kind_of_interval(kind, S):
    assert_agrees(*call((1, 150, S, 2, 1, 32), kind))


def test_rows_of_a_batch_see_what_they_see_alone():
    shape = (3, 70, 100, 2, 2, 16)
    bounds = [list(intervals(kind, 1, 70, 100)) for kind in ("packed", "nothing", "window")]
    q, k, v, _, _, grad = call(shape)
    first, last = (np.concatenate([bound[i] for bound in bounds]) for i in (0, 1))
    assert_agrees(q, k, v, first, last, grad)
    together = run(q, k, v, first, last, grad)
    for b in range(3):
        alone = run(*(a[b : b + 1] for a in (q, k, v, first, last, grad)))
        assert all(np.array_equal(t[b], a[0]) for t, a in zip(together, alone, strict=True))


@pytest.mark.parametrize("label", INTERVALS)
def test_it_agrees_on_the_cases_of_the_table(label):
    B, T, S, (first, last) = INTERVALS[label]
    q, k, v, _, _, grad = call((B, T, S, 2, 1, 4))
    assert_agrees(q, k, v, first, last, grad)


@pytest.mark.parametrize("shape", [(0, 3, 3, 2, 1, 4), (2, 0, 3, 2, 1, 4), (2, 3, 0, 2, 1, 4)], ids=str)
def test_nothing_gives_zeros(shape):
    arrays = call(shape, "nothing")
    for g, like in zip(run(*arrays), (arrays[0], *arrays[:3]), strict=True):
        assert g.shape == like.shape and not g.any()


def test_heads_of_one_group_share_keys_as_if_these_were_repeated():
    q, k, v, first, last, grad = call((1, 70, 70, 4, 2, 32))
    y, grad_q, *shared = run(q, k, v, first, last, grad)
    other, other_q, *apart = run(q, k.repeat(2, 2), v.repeat(2, 2), first, last, grad)
    assert np.array_equal(y, other) and np.array_equal(grad_q, other_q)
    for g, each in zip(shared, apart, strict=True):             # the parts were rounded before they were added up
        sizes = abs(each.astype(np.float64)).reshape(1, 70, 2, 2, 32).sum(3)
        wrong = abs(each.astype(np.float64).reshape(1, 70, 2, 2, 32).sum(3) - g.astype(np.float64))
        assert (wrong <= 2 * U * sizes + 1e-6).all()


def test_large_scores_leave_one_key():
    """Scores of 1000^2 / sqrt(32) beside 0: no power of 2 overflows, and a query takes the value of its only key as it is.

    Then no score matters: slopes grad . v - delta are what two sums of the same 32 products differ by, some 1e-6, times
    1000 / sqrt(32).
    """
    q, k, v, first, last, grad = call((1, 70, 32, 1, 1, 32), "everything")
    q[0, :, 0], k[0, :, 0] = 1000 * np.eye(32)[np.arange(70) * 7 % 32], 1000 * np.eye(32)
    y, grad_q, grad_k, grad_v = (a.astype(np.float32)[0, :, 0] for a in run(q, k, v, first, last, grad))
    assert np.array_equal(y, v.astype(np.float32)[0, np.arange(70) * 7 % 32, 0])
    assert abs(grad_q).max() < 1e-3 and abs(grad_k).max() < 1e-3 and np.isfinite(grad_v).all()


def test_scores_of_minus_infinity_have_no_weight():
    """As in the reference. The gradient of k is 0 times infinity there, and here."""
    q, k, v, first, last, grad = call((1, 20, 30, 1, 1, 32))
    y, grad_q, grad_k, grad_v = run(q * 0 + BFLOAT16(np.inf), k * 0 - BFLOAT16(1), v, first, last, grad)
    assert not y.any() and not grad_q.any() and not grad_v.any()


@pytest.mark.parametrize("D", [32, 65])
def test_no_result_depends_on_the_order_of_threads(D):
    arrays, results = call((2, 70, 100, 2, 1, D), "packed"), []
    for order in emulation.ORDERS:
        with emulation.thread_order(order):
            results.append([a.tobytes() for a in run(*arrays)])
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("D", [32, 5])
def test_it_keeps_the_contract_for_every_choice_of_gradients(D):
    arrays = call((1, 20, 30, 2, 1, D))
    _, *every = run(*arrays)
    for flags in np.ndindex(2, 2, 2):
        if any(flags):
            needs = needs_of((*map(bool, flags), False, False))
            check_contract(twin.attention_forward, twin.attention_backward, list(arrays[:5]), {}, needs)
            _, *grads = run(*arrays, needs=needs)
            for need, g, e in zip(flags, grads, every, strict=True):
                assert np.array_equal(g, e) if need else g is None


def test_it_takes_transposed_reversed_and_unaligned_arrays_and_small_integers():
    arrays = call((2, 20, 20, 2, 2, 32))
    expected = run(*arrays)
    q, k, v, first, last, grad = arrays
    unaligned = np.concatenate([q.reshape(-1)[:1], q.reshape(-1)])[1:].reshape(q.shape)
    heads_first = k.swapaxes(1, 2).copy().swapaxes(1, 2)
    assert unaligned.ctypes.data % 16 and not heads_first.flags.c_contiguous
    for integer in np.int64, np.int16, np.int8:
        got = run(unaligned, heads_first, v[::-1].copy()[::-1], first.astype(integer), last.astype(integer)[:, ::-1][:, ::-1],
                  np.asfortranarray(grad))
        assert all(np.array_equal(g, e) for g, e in zip(got, expected, strict=True))


def test_what_lies_outside_of_the_keys_is_not_there():
    """On a GPU no one has checked the intervals."""
    arrays = call((1, 20, 30, 1, 1, 32), "everything")
    expected = run(*arrays)
    q, k, v, first, last, grad = arrays
    got = run(q, k, v, first - 1000, last + 1000, grad)
    assert all(np.array_equal(g, e) for g, e in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", ["q", "k", "v", "grad"])
def test_nan_shows_in_what_depends_on_it(name):
    q, k, v, first, last, grad = call((1, 100, 100, 1, 1, 32), "window")
    first, last = first.copy(), last.copy()
    first[0, 75], last[0, 75] = 1, 0                            # it sees nothing, among others that do
    {"q": q, "k": k, "v": v, "grad": grad}[name][0, 70, 0, 5] = np.nan
    y, grad_q, grad_k, grad_v = (a.astype(np.float32)[0, :, 0] for a in run(q, k, v, first, last, grad))
    sees = (first <= 70) & (70 <= last)
    seen = (first[0, 70] <= np.arange(100)) & (np.arange(100) <= last[0, 70])
    if name in ("k", "v"):
        assert np.isnan(y[sees[0]]).any(1).all() and np.isnan(grad_q[sees[0]]).any(1).all()
        assert np.isfinite(y[:64]).all()                        # keys of another tile
    else:
        assert np.isnan(y[70]).all() == (name == "q") and np.isfinite(np.delete(y, 70, 0)).all()
        assert np.isnan(grad_q[70]).all()
        assert np.isnan(grad_k[seen]).any(1).all() and np.isnan(grad_v[seen]).any(1).all()
    assert not y[75].any()


def test_it_is_taken_for_bfloat16_and_heads_of_up_to_128_channels():
    arrays = call((1, 3, 3, 1, 1, 129))[:5]
    assert twin.attention_unsupported(*arrays) == "the CUDA twin takes heads of up to 128 channels, got 129"
    assert twin.attention_unsupported(*(a.astype(np.float32) for a in arrays[:3]), *arrays[3:]) == ""
    assert "got float16" in twin.attention_unsupported(*(a.astype(np.float16) for a in arrays[:3]), *arrays[3:])
    q, k, v, first, last, grad = call((1, 3, 3, 2, 1, 128))
    tensors = [Tensor(a, requires_grad=True) for a in (q, k, v)]
    with backend.emulated_gpu():
        y = ops.attention(*tensors, first, last)
        y.backward(grad)
    assert y.node.backward is twin.attention_backward
    for g, e in zip((y.data, *(t.grad for t in tensors)), run(q, k, v, first, last, grad), strict=True):
        assert np.array_equal(g, e)
