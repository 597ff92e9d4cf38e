"""softmax on the emulated GPU: rows of any length, both dtypes, any thread order, NaN and infinity."""

import numpy as np
import pytest
from cases import check_contract

from minitune.ops.softmax import softmax_backward, softmax_forward
from minitune.tensor import _needs_of
from minitune.twins.cuda import emulation
from minitune.twins.cuda import softmax as twin

BFLOAT16 = pytest.importorskip("ml_dtypes").bfloat16
pytestmark = pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs g++")
NEEDS = _needs_of(softmax_forward)([True])
SHAPES = [(33, 1), (31, 2), (5, 31), (2, 33), (1, 128), (3, 129), (2, 255), (1, 1025), (0, 3), (3, 0), (2, 3, 33), (7,)]
# float32 as in tests/ops/test_twins.py; bfloat16 is that and one rounding of the result, to 8 bits.
RTOL = {np.float32: 1e-5, BFLOAT16: 2.0**-8 + 1e-5}
ATOL = 2e-6


def numbers(*shape, dtype, scale=1, seed=0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def forward(x):
    return twin.softmax_forward(x, needs=NEEDS)


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_reference_at_any_length(shape, dtype):
    x, grad = numbers(*shape, dtype=dtype, scale=3), numbers(*shape, dtype=dtype, seed=1)
    y, saved = forward(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    if x.shape[-1]:                             # the reference takes no row of nothing
        expected, _ = softmax_forward(x.astype(np.float64), needs=NEEDS)
        np.testing.assert_allclose(y.astype(np.float64), expected, RTOL[dtype], ATOL)
    (grad_x,) = twin.softmax_backward(grad, *saved, needs=NEEDS)
    assert (grad_x.shape, grad_x.dtype) == (x.shape, x.dtype)
    (expected,) = softmax_backward(grad.astype(np.float64), y.astype(np.float64), needs=NEEDS)     # of y as it was rounded
    np.testing.assert_allclose(grad_x.astype(np.float64), expected, RTOL[dtype], ATOL)
    check_contract(twin.softmax_forward, twin.softmax_backward, [x], {}, NEEDS)


@pytest.mark.parametrize("dtype", RTOL)
def test_takes_strided_rows_and_large_numbers(dtype):
    x = np.array([[1000, 1004, -1000], [3e38, -3e38, 0], [-7, -7, -7]]).T.astype(dtype)
    expected, _ = softmax_forward(x.astype(np.float64), needs=NEEDS)
    np.testing.assert_allclose(forward(x)[0].astype(np.float64), expected, RTOL[dtype], ATOL)


@pytest.mark.parametrize("dtype", RTOL)
def test_any_order_of_threads_gives_the_same_bits(dtype):
    x, grad = numbers(9, 1025, dtype=dtype), numbers(9, 1025, dtype=dtype, seed=1)
    results = []
    for order in emulation.ORDERS:
        with emulation.thread_order(order):
            y, saved = forward(x)
            results.append((y.tobytes(), twin.softmax_backward(grad, *saved, needs=NEEDS)[0].tobytes()))
    assert len(set(results)) == 1


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("place", [0, 500])
def test_nan_and_infinity_come_out_where_the_reference_has_them(place, dtype):
    x = numbers(6, 501, dtype=dtype)
    x[0, place] = np.nan
    x[1, place] = np.inf
    x[2, place] = -np.inf
    x[3] = -np.inf
    x[4] = np.nan
    y, saved = forward(x)
    with np.errstate(invalid="ignore"):
        expected, _ = softmax_forward(x.astype(np.float64), needs=NEEDS)
    np.testing.assert_allclose(y.astype(np.float64), expected, RTOL[dtype], ATOL)
    grad = np.ones_like(x)
    grad[5, place] = np.nan
    grad_x = twin.softmax_backward(grad, *saved, needs=NEEDS)[0].astype(np.float64)
    assert np.isnan(grad_x[[0, 1, 3, 4, 5]]).all() and not np.isnan(grad_x[2]).any()
