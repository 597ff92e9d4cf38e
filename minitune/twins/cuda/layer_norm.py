"""layer_norm on a GPU: a warp a row; the sums over rows in parts, in a fixed order."""

from __future__ import annotations

import numpy as np

from .kernel import Source, ceil_div, empty, not_for_a_gpu, rows_of

_source = Source("layer_norm")
_forward = _source.kernel("layer_norm_forward", "x:T[N,C] weight:f32[C] bias:f32[C] y:T[N,C] mean:f32[N] rstd:f32[N] N:i32 "
                                                "C:i32 eps:f32")
_grad_x = _source.kernel("layer_norm_grad_x", "grad:T[N,C] x:T[N,C] weight:f32[C] mean:f32[N] rstd:f32[N] grad_x:T[N,C] N:i32 "
                                              "C:i32")
_columns = _source.kernel("layer_norm_columns", "grad:T[N,C] x:T[N,C] mean:f32[N] rstd:f32[N] partial:f32[K,P,C] N:i32 C:i32 "
                                                "P:i32")
ROWS, COLUMNS = 8, 32   # of a block
PARTS = 64              # partial sums over rows, as many on every GPU


def layer_norm_unsupported(x, weight, bias, *, eps):
    return not_for_a_gpu(x, weight, bias)


def layer_norm_forward(x, weight, bias, *, eps, needs):
    rows = rows_of(x)
    N, C = rows.shape
    y, mean, rstd = empty((N, C), x.dtype, x), empty(N, np.float32, x), empty(N, np.float32, x)
    _forward(ceil_div(N, ROWS), ROWS * 32, rows, _single(weight), _single(bias), y, mean, rstd, eps)
    kept = (rows, weight, mean, rstd) if needs.x or needs.weight else (None, weight, None, None)
    return y.reshape(x.shape), (*kept, bias.dtype)


def layer_norm_backward(grad, x, weight, mean, rstd, bias_dtype, *, needs):
    along = rows_of(grad)
    N, C = along.shape
    grad_x = grad_weight = grad_bias = None
    if needs.x:
        grad_x = empty((N, C), grad.dtype, grad)
        _grad_x(ceil_div(N, ROWS), ROWS * 32, along, x, _single(weight), mean, rstd, grad_x)
        grad_x = grad_x.reshape(grad.shape)
    if needs.weight:
        partial = empty((2, PARTS, C), np.float32, grad)
        _columns((ceil_div(C, COLUMNS), PARTS), (COLUMNS, ROWS), along, x, mean, rstd, partial)
        grad_weight = partial[0].sum(0).astype(weight.dtype, copy=False)
        grad_bias = partial[1].sum(0).astype(bias_dtype, copy=False)
    elif needs.bias:
        grad_bias = along.sum(0, dtype=np.float32).astype(bias_dtype, copy=False)
    return grad_x, grad_weight, grad_bias if needs.bias else None


def _single(weight):
    return weight.astype(np.float32, copy=False)
