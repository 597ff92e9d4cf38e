"""rms_norm on a GPU: a warp a row; the sums over rows in parts, in a fixed order."""

from __future__ import annotations

import numpy as np

from .kernel import Source, ceil_div, empty, not_for_a_gpu, rows_of

_source = Source("rms_norm")
_forward = _source.kernel("rms_norm_forward", "x:T[N,C] weight:f32[C] y:T[N,C] rstd:f32[N] N:i32 C:i32 eps:f32")
_grad_x = _source.kernel("rms_norm_grad_x", "grad:T[N,C] x:T[N,C] weight:f32[C] rstd:f32[N] grad_x:T[N,C] N:i32 C:i32")
_columns = _source.kernel("rms_norm_columns", "grad:T[N,C] x:T[N,C] rstd:f32[N] partial:f32[P,C] N:i32 C:i32 P:i32")
ROWS, COLUMNS = 8, 32   # of a block
PARTS = 64              # partial sums over rows, as many on every GPU


def rms_norm_unsupported(x, weight, *, eps):
    return not_for_a_gpu(x, weight)


def rms_norm_forward(x, weight, *, eps, needs):
    rows = rows_of(x)
    N, C = rows.shape
    y, rstd = empty((N, C), x.dtype, x), empty(N, np.float32, x)
    _forward(ceil_div(N, ROWS), ROWS * 32, rows, _single(weight), y, rstd, eps)
    return y.reshape(x.shape), (rows, weight, rstd)


def rms_norm_backward(grad, x, weight, rstd, *, needs):
    along = rows_of(grad)
    N, C = along.shape
    grad_x = grad_weight = None
    if needs.x:
        grad_x = empty((N, C), grad.dtype, grad)
        _grad_x(ceil_div(N, ROWS), ROWS * 32, along, x, _single(weight), rstd, grad_x)
        grad_x = grad_x.reshape(grad.shape)
    if needs.weight:
        partial = empty((PARTS, C), np.float32, grad)
        _columns((ceil_div(C, COLUMNS), PARTS), (COLUMNS, ROWS), along, x, rstd, partial)
        grad_weight = partial.sum(0).astype(weight.dtype, copy=False)
    return grad_x, grad_weight


def _single(weight):
    return weight.astype(np.float32, copy=False)
