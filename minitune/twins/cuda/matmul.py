"""matmul on a GPU for bfloat16: a matrix, or a stack of them as one, times a matrix. All else is CuPy's own, in float32."""

from __future__ import annotations

import numpy as np

from ...devices import is_bfloat16
from .kernel import rows_of
from .products import product, result_dtype


def matmul_unsupported(a, b):
    half = [is_bfloat16(array.dtype) for array in (a, b)]
    floats = all(bfloat16 or array.dtype == np.float32 for bfloat16, array in zip(half, (a, b), strict=True))
    return None if any(half) and floats and b.ndim == 2 else ""


def matmul_forward(a, b, *, needs):
    dtype = result_dtype(a, b)
    rows, matrix = (a if a.ndim == 2 else rows_of(a)).astype(dtype, copy=False), b.astype(dtype, copy=False)
    y = product(rows, matrix).reshape(*a.shape[:-1], b.shape[1])
    return y, (rows if needs.b else None, matrix if needs.a else None, a.shape, (a.dtype, b.dtype))


def matmul_backward(grad, rows, matrix, a_shape, dtypes, *, needs):
    along, (of_a, of_b) = rows_of(grad), dtypes
    grad_a = product(along, matrix.T, of_a).reshape(a_shape) if needs.a else None
    return grad_a, product(rows.T, along, of_b) if needs.b else None
