"""product: the matrix product of the CUDA twins, in bfloat16 or float32, always added up in float32."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ...devices import Array, array_module, device_of, is_bfloat16, widened

FLOAT32, BFLOAT16 = 0, 14       # cudaDataType_t: CUDA_R_32F, CUDA_R_16BF
COMPUTE_FLOAT32 = 68            # cublasComputeType_t: CUBLAS_COMPUTE_32F
PLAIN, TRANSPOSED = 0, 1        # cublasOperation_t
DEFAULT = -1                    # cublasGemmAlgo_t
SUMS_OF_COMPUTE_TYPE = 16       # cublasMath_t: CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION


def result_dtype(*arrays: Array | None) -> np.dtype:
    """The dtype of what is computed from these: bfloat16 where one of them is, else float32."""
    return next((a.dtype for a in arrays if a is not None and is_bfloat16(a.dtype)), np.dtype(np.float32))


def product(a: Array, b: Array, dtype: Any = None, add_to: Array | None = None, factor: float = 1) -> Array:
    """factor a @ b for a (M, K) and b (K, N), rounded once, to `dtype` (a's unless given). Transposed views cost nothing.

    Given `add_to` (M, N), contiguous, this is added to it, in place, and it is returned. The factor counts in float32, before
    the rounding.
    Where one of a and b is bfloat16 the other is rounded to it first. CuPy's own product has the dtype of its inputs, and
    weight gradients need another; so this asks cuBLAS as CuPy does. Without a GPU NumPy computes the same.
    Raises ValueError where shapes do not fit, TypeError for a bfloat16 result of float32 matrices, which cuBLAS has not.
    """
    dtype = np.dtype(a.dtype if dtype is None else dtype) if add_to is None else add_to.dtype
    if a.dtype != b.dtype:
        half = result_dtype(a, b)
        a, b = a.astype(half, copy=False), b.astype(half, copy=False)
    _check(a, b, dtype, add_to)
    if device_of(a) == "cpu":
        y = widened(a) @ widened(b)
        if factor != 1:
            y *= np.float32(factor)
        if add_to is None:
            return y.astype(dtype, copy=False)
        add_to[...] = widened(add_to) + y
        return add_to
    cupy = array_module(a)
    if not a.size or not b.size:
        return cupy.zeros((len(a), b.shape[1]), dtype) if add_to is None else add_to
    return _cublas(cupy, a, b, dtype, add_to, factor)


def _check(a: Array, b: Array, dtype: np.dtype, add_to: Array | None) -> None:
    """cuBLAS sees addresses alone: what does not fit would be read or written past its end."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"product: expected (M, K) and (K, N), got {a.shape} and {b.shape}")
    if a.dtype != np.float32 and not is_bfloat16(a.dtype):
        raise TypeError(f"product: expected float32 or bfloat16 matrices, got {a.dtype}")
    if is_bfloat16(dtype) and not is_bfloat16(a.dtype):
        raise TypeError("product: float32 matrices have a float32 result, bfloat16 was asked for. Round one of them before")
    if add_to is not None and (add_to.shape != (len(a), b.shape[1]) or not add_to.flags.c_contiguous):
        raise ValueError(f"product: add_to must be {(len(a), b.shape[1])} and contiguous, got {add_to.shape}, strides "
                         f"{add_to.strides}")


def _cublas(cupy: Any, a: Array, b: Array, dtype: np.dtype, add_to: Array | None, factor: float) -> Array:
    """cuBLAS stores matrices column by column, so it is asked for y^T = b^T a^T, which lies in memory as y does by rows."""
    (M, K), N = a.shape, b.shape[1]
    y = cupy.empty((M, N), dtype) if add_to is None else add_to
    (left, left_flag, left_step), (right, right_flag, right_step) = _as_stored(cupy, b), _as_stored(cupy, a)
    of_factors, of_y = _type(left), _type(y)
    alpha, beta = _on_host(factor), _on_host(add_to is not None)            # held until cuBLAS has read them
    cupy.cuda.cublas.gemmEx(
        _handle(cupy), left_flag, right_flag, N, M, K, alpha[1], left.data.ptr, of_factors, left_step,
        right.data.ptr, of_factors, right_step, beta[1], y.data.ptr, of_y, N, COMPUTE_FLOAT32, DEFAULT)
    return y


@lru_cache(maxsize=64)
def _on_host(number: float) -> tuple[np.ndarray, int]:
    """A float32 and its address on the host, where cuBLAS reads it before it returns."""
    array = np.array(number, np.float32)
    return array, array.ctypes.data


def _handle(cupy: Any) -> int:
    """CuPy's handle, told once that parts of a sum stay float32: cuBLAS may else round them to the dtype of the result."""
    cublas, handle = cupy.cuda.cublas, cupy.cuda.device.get_cublas_handle()
    mode = cublas.getMathMode(handle)
    if not mode & SUMS_OF_COMPUTE_TYPE:
        cublas.setMathMode(handle, mode | SUMS_OF_COMPUTE_TYPE)     # a flag: what else its user may have set stays
    return handle


def _as_stored(cupy: Any, a: Array) -> tuple[Array, int, int]:
    """(array, flag, leading dimension) of a matrix by rows; neither rows nor columns one after another: a copy."""
    (rows, columns), size = a.shape, a.itemsize
    if a.strides == (columns * size, size):
        return a, PLAIN, columns
    if a.strides == (size, rows * size):
        return a, TRANSPOSED, rows
    return cupy.ascontiguousarray(a), PLAIN, columns


def _type(a: Array) -> int:
    return BFLOAT16 if is_bfloat16(a.dtype) else FLOAT32
