"""rms_norm on the emulated GPU: rows around warps and parts, both dtypes, any thread order, NaN, infinity and rows of 0."""

from types import SimpleNamespace

import numpy as np
import pytest

from minitune.ops.rms_norm import rms_norm_backward, rms_norm_forward
from minitune.twins.cuda import emulation
from minitune.twins.cuda import rms_norm as twin

BFLOAT16 = pytest.importorskip("ml_dtypes").bfloat16
pytestmark = pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs g++")
BOTH = SimpleNamespace(x=True, weight=True)
# (N, C): rows around 8 a block and 512 a round of the sums over rows, channels around a warp
SHAPES = [(1, 1), (7, 31), (8, 32), (9, 33), (3, 300), (513, 5), (2, 3, 65), (70,), (0, 31)]
# dtypes of (x, weight), and the tolerance: float32 as in tests/ops/test_twins.py; bfloat16 is that and one rounding of the
# result to 8 bits.
DTYPES = {"float32": (np.float32, np.float32), "bfloat16": (BFLOAT16, np.float32), "all bfloat16": (BFLOAT16, BFLOAT16)}
RTOL = {np.float32: 1e-5, BFLOAT16: 2.0**-8 + 1e-5}
ATOL = 2e-6


def numbers(*shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def run(forward, backward, x, weight, grad, eps=1e-6, needs=BOTH):
    """The result and both gradients."""
    y, saved = forward(x, weight, eps=eps, needs=needs)
    return y, *backward(grad, *saved, needs=needs)


def by_kernel(*arrays, **settings):
    return run(twin.rms_norm_forward, twin.rms_norm_backward, *arrays, **settings)


def by_reference(*arrays, **settings):
    return run(rms_norm_forward, rms_norm_backward, *arrays, **settings)


def assert_agrees(x, weight, grad):
    got, exact = by_kernel(x, weight, grad), by_reference(*(a.astype(np.float64) for a in (x, weight, grad)))
    for g, e, like in zip(got, exact, (x, x, weight), strict=True):
        assert (g.dtype, g.shape) == (like.dtype, like.shape)
        np.testing.assert_allclose(g.astype(np.float64), e, RTOL[like.dtype.type], ATOL)


@pytest.mark.parametrize("dtypes", DTYPES)
def test_it_agrees_with_its_reference_around_warps_and_parts(dtypes):
    x_dtype, weight_dtype = DTYPES[dtypes]
    for shape in SHAPES:
        assert_agrees(numbers(*shape, dtype=x_dtype), numbers(shape[-1], dtype=weight_dtype, seed=1),
                      numbers(*shape, dtype=x_dtype, seed=2))


@pytest.mark.parametrize("dtype", RTOL)
def test_it_takes_transposed_reversed_and_unaligned_arrays(dtype):
    x, grad, weight = numbers(33, 65, dtype=dtype), numbers(33, 65, dtype=dtype, seed=2), numbers(65, dtype=np.float32, seed=1)
    assert_agrees(x.T, weight[:33], grad.T)
    assert_agrees(x[::-1, ::-1], weight, grad[:, ::-1])
    assert_agrees(x.reshape(-1)[1:1025].reshape(32, 32), weight[1:33], grad.reshape(-1)[3:1027].reshape(32, 32))


@pytest.mark.parametrize("dtype", RTOL)
def test_no_result_depends_on_the_order_of_threads(dtype):
    x, weight, results = numbers(70, 45, dtype=dtype), numbers(45, dtype=np.float32, seed=1), []
    for order in emulation.ORDERS:
        with emulation.thread_order(order):
            results.append(by_kernel(x, weight, x))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("eps", [0, 1e-6])
@pytest.mark.parametrize("row", [[np.nan, 1], [np.inf, 1], [-np.inf, np.inf], [1e20, 1], [1e-25, -1e-25], [0, 0]], ids=str)
def test_rows_that_hold_no_numbers_or_whose_squares_do_not_fit_are_what_the_reference_gives_in_float32(row, eps):
    for dtype in RTOL:
        for times in (1, 33):                   # shorter and longer than a warp
            x, weight = numbers(3, 2 * times, dtype=dtype), numbers(2 * times, dtype=np.float32, seed=1)
            x[1] = row * times
            grad = numbers(3, 2 * times, dtype=dtype, seed=2)
            with np.errstate(all="ignore"):
                got = by_kernel(x, weight, grad, eps=eps)
                expected = by_reference(*(a.astype(np.float32) for a in (x, weight, grad)), eps=eps)
            for g, e in zip(got, expected, strict=True):        # both round: some roundings of sums of 66 numbers
                np.testing.assert_allclose(g.astype(np.float32), e, 1e-4 + RTOL[dtype], 1e-4)


def test_a_frozen_weight_or_input_gets_no_gradient_and_the_other_is_the_same():
    x, weight = numbers(9, 33, dtype=BFLOAT16), numbers(33, dtype=np.float32, seed=1)
    _, grad_x, grad_weight = by_kernel(x, weight, x)
    _, alone, none = by_kernel(x, weight, x, needs=SimpleNamespace(x=True, weight=False))
    np.testing.assert_array_equal(alone, grad_x)
    assert none is None
    _, none, alone = by_kernel(x, weight, x, needs=SimpleNamespace(x=False, weight=True))
    np.testing.assert_array_equal(alone, grad_weight)
    assert none is None
