"""product: the matrix product of the CUDA twins, in bfloat16 or float32, always added up in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...devices import Array, array_module, device_of, is_bfloat16, widened

FLOAT32, BFLOAT16 = 0, 14       # cudaDataType_t: CUDA_R_32F, CUDA_R_16BF
COMPUTE_FLOAT32 = 68            # cublasComputeType_t: CUBLAS_COMPUTE_32F
PLAIN, TRANSPOSED = 0, 1        # cublasOperation_t
DEFAULT = -1                    # cublasGemmAlgo_t


def product(a: Array, b: Array, dtype: Any = None, add_to: Array | None = None) -> Array:
    """a @ b for a (M, K) and b (K, N), rounded once, to `dtype` (a's unless given). Transposed views cost nothing.

    Given `add_to` (M, N), contiguous, the product is added to it, in place.

    Where one is bfloat16 the other is rounded to it first. CuPy's own product has no result of another dtype than its inputs,
    which weight gradients need; so this asks cuBLAS as CuPy does. Without a GPU NumPy computes the same.
    """
    dtype = np.dtype(a.dtype if dtype is None else dtype) if add_to is None else add_to.dtype
    if is_bfloat16(a.dtype) != is_bfloat16(b.dtype):
        half = a.dtype if is_bfloat16(a.dtype) else b.dtype
        a, b = a.astype(half, copy=False), b.astype(half, copy=False)
    if device_of(a) == "cpu":
        y = widened(a) @ widened(b)
        if add_to is None:
            return y.astype(dtype, copy=False)
        add_to[...] = widened(add_to) + y
        return add_to
    cupy = array_module(a)
    if not a.size or not b.size:
        return cupy.zeros((len(a), b.shape[1]), dtype) if add_to is None else add_to
    return _cublas(cupy, a, b, dtype, add_to)


def _cublas(cupy: Any, a: Array, b: Array, dtype: np.dtype, add_to: Array | None) -> Array:
    """cuBLAS stores matrices column by column, so it is asked for y^T = b^T a^T, which lies in memory as y does by rows."""
    (M, K), N = a.shape, b.shape[1]
    y = cupy.empty((M, N), dtype) if add_to is None else add_to
    (left, left_flag, left_step), (right, right_flag, right_step) = _as_stored(cupy, b), _as_stored(cupy, a)
    one, before = np.ones((), np.float32), np.array(add_to is not None, np.float32)
    cupy.cuda.cublas.gemmEx(
        cupy.cuda.device.get_cublas_handle(), left_flag, right_flag, N, M, K, one.ctypes.data,
        left.data.ptr, _type(left), left_step, right.data.ptr, _type(right), right_step, before.ctypes.data,
        y.data.ptr, _type(y), N, COMPUTE_FLOAT32, DEFAULT)
    return y


def _as_stored(cupy: Any, a: Array) -> tuple[Array, int, int]:
    """(array, flag, leading dimension) of a matrix by rows; neither rows nor columns one after another: a copy."""
    rows, columns = a.shape
    step, size = max(columns, 1) * a.itemsize, a.itemsize
    if a.strides == (step, size) or rows == 1 and a.strides[1] == size:
        return a, PLAIN, columns
    if a.strides == (size, rows * size) or columns == 1 and a.strides[0] == size:
        return a, TRANSPOSED, rows
    return cupy.ascontiguousarray(a), PLAIN, columns


def _type(a: Array) -> int:
    return BFLOAT16 if is_bfloat16(a.dtype) else FLOAT32
