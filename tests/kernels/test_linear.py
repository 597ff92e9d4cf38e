"""linear on the emulated GPU: sizes around a block's, each dtype, what may be missing, odd addresses, the order of threads."""

import numpy as np
import pytest

import minitune as mt
from minitune import backend, ops
from minitune.devices import float_dtype
from minitune.twins.cuda import emulation
from minitune.twins.cuda import linear as twin

pytestmark = pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs g++")
BFLOAT16 = float_dtype("bfloat16")
SHAPES = [((1, 1), 1), ((7,), 3), ((9, 8), 16), ((2, 5, 33), 40), ((8, 5), 264), ((600, 2), 9), ((0, 3), 5)]    # x, out
# float32 as in tests/ops/test_twins.py, of the largest number. In bfloat16 the product is rounded and then the sum: 2^-8 each,
# of numbers as large as the largest where they cancel. Gradients of float32 parameters are float32 sums of exact products.
RTOL, ATOL = {np.dtype(np.float32): 1e-5, BFLOAT16: 2.0**-8}, {np.dtype(np.float32): 2e-6, BFLOAT16: 2.0**-8}


def numbers(seed, *shape, dtype=np.float32):
    """Normal numbers that bfloat16 holds exactly, so that rounding a weight to it changes nothing."""
    return np.random.default_rng(seed).standard_normal(shape).astype(BFLOAT16).astype(dtype)


def inputs(shape, out, dtype, rest):
    """x, weight, bias, residual: parameters stay float32."""
    return [numbers(1, *shape, dtype=dtype), numbers(2, out, shape[-1]), numbers(3, out) if "bias" in rest else None,
            numbers(4, *shape[:-1], out, dtype=dtype) if "residual" in rest else None]


def run(arrays, grad):
    """[result, gradients ...] of linear."""
    tensors = [None if a is None else mt.Tensor(a, requires_grad=True) for a in arrays]
    y = ops.linear(*tensors)
    y.backward(grad.astype(y.dtype))
    return y, [y.data, *(t.grad for t in tensors if t is not None)]


def check(arrays):
    grad = numbers(5, *arrays[0].shape[:-1], len(arrays[1]))
    with backend.emulated_gpu():
        y, got = run(arrays, grad)
    assert y.node.backward is twin.linear_backward
    _, expected = run([None if a is None else a.astype(np.float64) for a in arrays], grad)
    half = [a for a in arrays if a is not None and a.dtype == BFLOAT16]
    dtypes = [BFLOAT16 if half else np.float32, *(a.dtype for a in arrays if a is not None)]
    for g, e, dtype in zip(got, expected, dtypes, strict=True):
        assert (g.dtype, g.shape) == (dtype, e.shape)
        np.testing.assert_allclose(g.astype(np.float64), e, RTOL[g.dtype], ATOL[g.dtype] * max(1, abs(e).max(initial=0)))


@pytest.mark.parametrize("rest", ["bias and residual", "bias", "residual", "alone"])
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
def test_it_agrees_with_the_reference(dtype, rest):
    for shape, out in SHAPES:
        check(inputs(shape, out, dtype, rest))


@pytest.mark.parametrize("half", [[0], [1], [2], [3], [0, 1, 2, 3]], ids=str)
def test_each_gradient_has_the_dtype_of_its_input(half):
    arrays = inputs((5, 8), 16, np.float32, "bias and residual")
    check([a.astype(BFLOAT16) if i in half else a for i, a in enumerate(arrays)])


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
def test_bias_and_residual_may_lie_at_any_address_and_a_residual_in_any_order(dtype):
    x, weight, bias, residual = inputs((9, 8), 48, dtype, "bias and residual")
    with backend.emulated_gpu():
        plain, *others = (ops.linear(*map(mt.Tensor, (x, weight, b, r))).data
                          for b, r in [(bias, residual), (bias, moved(residual)), (moved(bias), residual),
                                       (moved(bias), moved(residual)), (bias, np.asfortranarray(residual))])
    for other in others:
        np.testing.assert_array_equal(other, plain)


def moved(array):
    """The same numbers at an address that is no multiple of 16."""
    room = np.empty(array.size + 16, array.dtype)
    start = next(i for i in range(16) if room[i:].ctypes.data % 16)
    at = room[start:start + array.size].reshape(array.shape)
    at[...] = array
    return at


def test_transposed_and_strided_inputs():
    x, weight, bias, residual = inputs((6, 4), 5, BFLOAT16, "bias and residual")
    check([np.asfortranarray(x), np.asfortranarray(weight), np.repeat(bias, 2)[::2], residual[::-1]])


def test_bias_and_residual_are_added_to_the_rounded_product_before_the_sum_is_rounded():
    # In bfloat16 256 + 1 is 256, so bias and residual count only if both are added before rounding.
    x, weight, bias = np.full((1, 1), 256, BFLOAT16), np.ones((3, 1), np.float32), np.ones(3, np.float32)
    with backend.emulated_gpu():
        y = ops.linear(*map(mt.Tensor, (x, weight, bias, np.ones((1, 3), BFLOAT16))))
    np.testing.assert_array_equal(y.data.astype(np.float32), np.full((1, 3), 258, np.float32))


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
def test_no_result_depends_on_the_order_of_threads(dtype):
    arrays, grad, results = inputs((70, 3), 41, dtype, "bias and residual"), numbers(5, 70, 41), []
    for order in emulation.ORDERS:
        with emulation.thread_order(order), backend.emulated_gpu():
            results.append(run(arrays, grad)[1])
    for other in results[1:]:
        for got, first in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(got, first)


def test_a_sum_over_rows_shows_nan_and_infinity():
    rows = np.zeros((20, 35), np.float32)
    rows[3, 1], rows[19, 34] = np.nan, np.inf
    total = twin.sum_of_rows(rows)
    assert np.isnan(total[1]) and total[34] == np.inf and np.count_nonzero(total) == 2
