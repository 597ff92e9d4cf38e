"""product, the one entry for matrix products of the CUDA twins: with NumPy, with cuBLAS, and with a stand-in for cuBLAS.

At the end matmul, the operation that is no more than that. All numbers are small integers, whose products and sums float32 and
bfloat16 hold exactly: results are compared to the bit.
"""

from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import standin_cupy

import minitune as mt
from minitune import backend, devices, ops
from minitune.twins.cuda import matmul as twin
from minitune.twins.cuda.products import product, result_dtype

BFLOAT16 = devices.float_dtype("bfloat16")
SIZES = [(4, 3, 5), (1, 4, 6), (6, 4, 1), (5, 1, 3), (1, 1, 1), (1, 7, 1), (7, 2, 2)]       # M, K, N


def gpu():
    """Whether there is a GPU that CuPy can use."""
    return find_spec("cupy") is not None and import_module("cupy").cuda.is_available()


@pytest.fixture(params=["numpy", "stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def place(request):
    """(to, back): puts arrays where products are asked for, and brings them back."""
    if request.param == "numpy":
        yield (lambda a: a), (lambda a: a)
        return
    if request.param == "stand-in":
        with standin_cupy.installed(watched=True):
            yield standin_cupy.ndarray, lambda a: a._host
        return
    if not gpu():
        pytest.skip("needs an NVIDIA GPU and cupy")
    yield import_module("cupy").asarray, lambda a: a.get()


# ---- Products -------------------------------------------------------------------------------------------------------------

def integers(rows, columns, dtype, low=-3):
    return np.random.default_rng(rows * 10 + columns).integers(low, 4, (rows, columns)).astype(dtype)


LAYOUTS = {
    "plain": integers, "transposed": lambda rows, columns, dtype: integers(columns, rows, dtype).T,
    "every second row": lambda rows, columns, dtype: integers(2 * rows, columns, dtype)[::2],
    "every second column": lambda rows, columns, dtype: integers(rows, 2 * columns, dtype)[:, ::2],
    "backwards": lambda rows, columns, dtype: integers(rows, columns, dtype)[::-1],
    "one row again and again": lambda rows, columns, dtype: np.broadcast_to(integers(1, columns, dtype), (rows, columns)),
    "inside another": lambda rows, columns, dtype: integers(rows + 2, columns, dtype)[1:-1],
}


def exactly(a, b):
    return a.astype(np.float64) @ b.astype(np.float64)


@pytest.mark.parametrize("of_b", LAYOUTS)
@pytest.mark.parametrize("of_a", LAYOUTS)
def test_every_layout_gives_the_product(place, of_a, of_b):
    to, back = place
    for M, K, N in SIZES:
        for dtype in (np.dtype(np.float32), BFLOAT16):
            a, b = LAYOUTS[of_a](M, K, dtype), LAYOUTS[of_b](K, N, dtype)
            y = back(product(to(a), to(b)))
            assert y.dtype == dtype and y.flags.c_contiguous
            np.testing.assert_array_equal(y.astype(np.float64), exactly(a, b))


@pytest.mark.parametrize("M, K, N", SIZES)
def test_bfloat16_has_a_float32_result_where_asked(place, M, K, N):
    to, back = place
    a, b = (integers(*shape, BFLOAT16) for shape in ((K, M), (K, N)))
    b[0] = 255                                  # so that bfloat16, with its 8 bits, could not hold the sums
    y = back(product(to(a).T, to(b), np.float32))
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, exactly(a.T, b))


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
@pytest.mark.parametrize("M, K, N", SIZES)
def test_a_product_is_added_in_place(place, M, K, N, dtype):
    to, back = place
    a, b, before = integers(M, K, BFLOAT16), integers(K, N, BFLOAT16), integers(M, N, dtype, low=1)
    y = to(before.copy())
    assert product(to(a), to(b), add_to=y) is y
    np.testing.assert_array_equal(back(y).astype(np.float64), before.astype(np.float64) + exactly(a, b))


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=str)
@pytest.mark.parametrize("factor", [3, -0.5, np.float32(0.25), 0])
def test_a_factor_counts_before_the_one_rounding(place, factor, dtype):
    to, back = place
    a, b = np.array([[256, 1], [2, 4]], BFLOAT16), np.array([[1, 1], [1, -1]], BFLOAT16)       # a b holds 257, not in bfloat16
    before = np.array([[8, 8], [4, 4]], dtype)
    exact = float(factor) * exactly(a, b)
    np.testing.assert_array_equal(back(product(to(a), to(b), dtype, factor=factor)), exact.astype(dtype))
    product(to(a), to(b), add_to=(y := to(before.copy())), factor=factor)
    np.testing.assert_array_equal(back(y), (before.astype(np.float64) + exact).astype(dtype))


@pytest.mark.parametrize("mode", [0, 3, 19])            # the default, TF32 allowed, and that with the flag
def test_cublas_is_told_to_keep_parts_of_a_sum_in_float32_and_else_left_as_it_is(mode):
    with standin_cupy.installed() as cupy:
        cupy.cuda.cublas.setMathMode(standin_cupy.HANDLE, mode)
        product(cupy.asarray(np.ones((2, 2), BFLOAT16)), cupy.asarray(np.ones((2, 2), BFLOAT16)))
        assert standin_cupy.mode == mode | 16


@pytest.mark.parametrize("half", [0, 1])
def test_float32_beside_bfloat16_is_rounded_to_it(place, half):
    to, back = place
    given = [np.full((2, 3), 1 + 2**-10, np.float32), np.full((3, 2), 1 + 2**-10, np.float32)]
    given[half] = given[half].astype(BFLOAT16)
    y = product(*map(to, given))
    assert y.dtype == given[0].dtype
    np.testing.assert_array_equal(back(y).astype(np.float64), np.full((2, 2), 3.0))
    assert given[1 - half][0, 0] == np.float32(1 + 2**-10), "an input was changed"


@pytest.mark.parametrize("M, K, N", [(0, 3, 2), (2, 0, 3), (2, 3, 0)])
def test_nothing_to_multiply(place, M, K, N):
    to, back = place
    a, b, before = np.ones((M, K), BFLOAT16), np.ones((K, N), BFLOAT16), np.ones((M, N), np.float32)
    np.testing.assert_array_equal(back(product(to(a), to(b), np.float32)), np.zeros((M, N), np.float32))
    np.testing.assert_array_equal(back(product(to(a), to(b), add_to=to(before.copy()))), before)


def test_float32_is_not_shortened_to_the_19_bits_of_tensor_cores(place):
    to, back = place
    a = np.array([[1 + 2.0**-20]], np.float32)
    assert back(product(to(a), to(np.ones((1, 1), np.float32)))) == a


def test_what_does_not_fit_is_an_error(place):
    to, _ = place
    a, b, y = (np.zeros(shape, np.float32) for shape in ((2, 3), (3, 4), (4, 2)))
    with pytest.raises(ValueError, match=r"product: expected \(M, K\) and \(K, N\), got \(2, 3\) and \(4, 2\)"):
        product(to(a), to(y))
    with pytest.raises(ValueError, match=r"product: expected \(M, K\) and \(K, N\), got \(3,\)"):
        product(to(a[0]), to(b))
    for wrong in (y, y.T):
        with pytest.raises(ValueError, match=r"product: add_to must be \(2, 4\) and contiguous, got "):
            product(to(a), to(b), add_to=to(wrong))
    with pytest.raises(TypeError, match="product: float32 matrices have a float32 result"):
        product(to(a), to(b), BFLOAT16)


def test_the_dtype_of_a_result():
    single, half = np.zeros(1, np.float32), np.zeros(1, BFLOAT16)
    assert result_dtype(single, None) == np.float32
    assert result_dtype(single, None, half) == BFLOAT16


# ---- The operation matmul -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("a_dtype, b_dtype", [(BFLOAT16, BFLOAT16), (BFLOAT16, np.float32), (np.float32, BFLOAT16)], ids=str)
@pytest.mark.parametrize("shape", [(4, 3), (1, 3), (0, 3), (2, 2, 3), (2, 1, 3, 3)], ids=str)
def test_matmul_in_bfloat16_is_one_product(shape, a_dtype, b_dtype):
    arrays = [np.random.default_rng(i).integers(-3, 4, s) for i, s in enumerate([shape, (3, 5), (*shape[:-1], 5)])]
    with backend.emulated_gpu():
        a, b = mt.Tensor(arrays[0].astype(a_dtype), True), mt.Tensor(arrays[1].astype(b_dtype), True)
        y = ops.matmul(a, b)
        y.backward(arrays[2].astype(BFLOAT16))
    assert y.node.backward is twin.matmul_backward
    assert (y.dtype, a.grad.dtype, b.grad.dtype) == (BFLOAT16, a_dtype, b_dtype)
    rows, along = (x.reshape(-1, x.shape[-1]) for x in (arrays[0], arrays[2]))
    for got, expected in zip((y.data, a.grad, b.grad), (arrays[0] @ arrays[1], arrays[2] @ arrays[1].T, rows.T @ along)):
        np.testing.assert_array_equal(got.astype(np.int64), expected)


@pytest.mark.parametrize("a, b, dtype", [((4, 3), (3, 5), np.float32), ((2, 4, 3), (2, 3, 5), BFLOAT16),
                                         ((4, 3), (2, 3, 5), BFLOAT16)], ids=str)
def test_matmul_leaves_stacks_and_float32_to_the_reference_without_a_word(a, b, dtype):
    assert twin.matmul_unsupported(np.zeros(a, dtype), np.zeros(b, dtype)) == ""


def test_matmul_takes_transposed_matrices():
    a, b = integers(3, 4, BFLOAT16).T, integers(5, 3, BFLOAT16).T
    with backend.emulated_gpu():
        y = ops.matmul(mt.Tensor(a), mt.Tensor(b))
    np.testing.assert_array_equal(y.data.astype(np.float64), exactly(a, b))
