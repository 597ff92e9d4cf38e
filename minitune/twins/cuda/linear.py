"""linear on a GPU: one matrix product, then bias and residual in one pass; the sum over rows in parts, in a fixed order."""

from __future__ import annotations

import numpy as np

from ...devices import array_module
from .kernel import Source, ceil_div, empty, not_for_a_gpu, rows_of
from .products import product, result_dtype

_source = Source("linear")
_add = _source.kernel("linear_add", "y:T[N,C] bias:f32[C]? residual:T[N,C]? N:i32 C:i32")
_columns = _source.kernel("linear_columns", "grad:T[N,C] partial:f32[P,C] N:i32 C:i32 P:i32")
ROWS, COLUMNS = 8, 32   # threads of a block
PARTS = 64              # partial sums over rows, as many on every GPU


def add_to_rows(y, bias, residual):
    """y (N, C) += bias + residual, either of which may be None."""
    if bias is None and residual is None:
        return
    if bias is not None:
        bias = array_module(y).ascontiguousarray(bias, np.float32)
    if residual is not None:
        residual = rows_of(residual).astype(y.dtype, copy=False)
    (N, C), numbers = y.shape, 16 // y.itemsize
    _add((ceil_div(N, ROWS), ceil_div(C, COLUMNS * numbers)), (COLUMNS, ROWS), y, bias, residual)


def sum_of_rows(rows):
    """rows (N, C) -> (C,), float32"""
    partial = empty((PARTS, rows.shape[1]), np.float32, rows)
    _columns((ceil_div(rows.shape[1], COLUMNS), PARTS), (COLUMNS, ROWS), rows, partial)
    return partial.sum(0)


def linear_unsupported(x, weight, bias, residual):
    return not_for_a_gpu(x, weight, bias, residual)


def linear_forward(x, weight, bias, residual, *, needs):
    dtype = result_dtype(x, weight, bias, residual)
    rows, matrix = rows_of(x).astype(dtype, copy=False), weight.astype(dtype, copy=False)
    y = product(rows, matrix.T)                                             # (N, out)
    add_to_rows(y, bias, residual)
    dtypes = [None if a is None else a.dtype for a in (x, weight, bias, residual)]
    return y.reshape(*x.shape[:-1], len(weight)), (rows if needs.weight else None, matrix if needs.x else None, x.shape, dtypes)


def linear_backward(grad, rows, matrix, x_shape, dtypes, *, needs):
    of_x, of_weight, of_bias, of_residual = dtypes
    along = rows_of(grad)                                                   # (N, out)
    grad_x = product(along, matrix, of_x).reshape(x_shape) if needs.x else None
    grad_weight = product(along.T, rows, of_weight) if needs.weight else None
    grad_bias = sum_of_rows(along).astype(of_bias, copy=False) if needs.bias else None
    return grad_x, grad_weight, grad_bias, grad.astype(of_residual, copy=False) if needs.residual else None
