"""conv2d on a GPU: windows gathered for as many images as fit in a fixed memory, one matrix product, and forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from ...devices import array_module
from .kernel import Sizes, Source, ceil_div, empty, not_for_a_gpu
from .products import product, result_dtype

_source = Source("conv2d")
_sizes = "n:i32 C:i32 H:i32 W:i32 h:i32 w:i32 OH:i32 OW:i32 stride:i32 padding:i32"
_gather = _source.kernel("conv2d_gather", f"x:T[n,C,H,W] columns:T[C,h,w,n,OH,OW] {_sizes}")
_scatter = _source.kernel("conv2d_scatter", f"columns:T[C,h,w,n,OH,OW] x:T[n,C,H,W] {_sizes}")
_turn = _source.kernel("conv2d_turn", "x:T[R,S,P] bias:f32[R]? turned:T[S,R,P] R:i32 S:i32 P:i32")
_filters = _source.kernel("conv2d_filters", "rows:T[F,M] partial:f32[F,Q] F:i32 M:i32 Q:i32")
THREADS = 256                   # of a block
MOST_BLOCKS = 65535             # along a grid's second axis
PARTS = 16                      # partial sums of a filter's gradient, as many on every GPU
CHUNK_BYTES = 256 << 20         # of gathered windows, the largest array of a chunk


def conv2d_unsupported(x, weight, bias, *, stride, padding):
    return not_for_a_gpu(x, weight, bias)


def conv2d_forward(x, weight, bias, *, stride, padding, needs):
    dtype, (B, _, H, W), (F, C, h, w) = result_dtype(x, weight, bias), x.shape, weight.shape
    OH, OW = (H + 2 * padding - h) // stride + 1, (W + 2 * padding - w) // stride + 1
    pixels, matrix = (array_module(x).ascontiguousarray(a, dtype) for a in (x, weight.reshape(F, -1)))
    added = None if bias is None else array_module(x).ascontiguousarray(bias, np.float32)
    y = empty((B, F, OH, OW), dtype, x)
    for images in _chunks(x.shape, weight.shape, y.shape, dtype.itemsize):
        columns = _gathered(pixels[images], (C, h, w), (OH, OW), stride, padding)
        _turned(product(matrix, columns).reshape(F, -1, OH * OW), added, y[images].reshape(-1, F, OH * OW))
    dtypes = [None if a is None else a.dtype for a in (x, weight, bias)]
    return y, (pixels if needs.weight else None, matrix if needs.x else None, x.shape, weight.shape, dtypes, stride, padding)


def conv2d_backward(grad, pixels, matrix, x_shape, weight_shape, dtypes, stride, padding, *, needs):
    F, C, h, w = weight_shape
    OH, OW = grad.shape[2:]
    zeros, grad = array_module(grad).zeros, array_module(grad).ascontiguousarray(grad)
    grad_x = empty(x_shape, grad.dtype, grad) if needs.x else None
    grad_weight = zeros((F, C * h * w), np.float32) if needs.weight else None
    grad_bias = zeros(F, np.float32) if needs.bias else None
    for images in _chunks(x_shape, weight_shape, grad.shape, grad.itemsize):
        n = images.stop - images.start
        rows = empty((F, n * OH * OW), grad.dtype, grad)
        _turned(grad[images].reshape(n, F, -1), None, rows.reshape(F, n, -1))
        if needs.weight:
            product(rows, _gathered(pixels[images], (C, h, w), (OH, OW), stride, padding).T, add_to=grad_weight)
        if needs.bias:
            partial = empty((F, PARTS), np.float32, grad)
            _filters((PARTS, F), THREADS, rows, partial)
            grad_bias += partial.sum(1)
        if needs.x:
            columns = product(matrix.T, rows).reshape(C, h, w, n, OH, OW)
            _scatter(_grid(n * x_shape[2] * x_shape[3], C), THREADS, columns, grad_x[images], stride, padding)
            del columns                         # before the next chunk's are made
    grads = grad_x, grad_weight.reshape(weight_shape) if needs.weight else None, grad_bias
    return tuple(None if g is None else g.astype(dtype, copy=False) for g, dtype in zip(grads, dtypes, strict=True))


def _chunks(x_shape: Sizes, weight_shape: Sizes, y_shape: Sizes, itemsize: int) -> Iterator[slice]:
    """Cuts a batch so that neither the windows nor the images of a chunk take more than CHUNK_BYTES."""
    (B, *image), (_, *window), (*_, OH, OW) = x_shape, weight_shape, y_shape
    n = max(1, CHUNK_BYTES // (itemsize * max(prod(window) * OH * OW, prod(image), prod(y_shape[1:]))))
    return (slice(first, min(first + n, B)) for first in range(0, B, n))


def _gathered(x, window, lengths, stride, padding):
    """The elements of every window: x (n, C, H, W) -> (C h w, n OH OW)"""
    columns = empty((*window, len(x), *lengths), x.dtype, x)
    windows = len(x) * lengths[0] * lengths[1]
    _gather(_grid(windows, window[0]), THREADS, x, columns, stride, padding)
    return columns.reshape(-1, windows)


def _turned(x, bias, turned):
    """x (R, S, P) + bias (R,) -> turned (S, R, P)"""
    R, S, P = x.shape
    _turn(_grid(S * P, R), THREADS, x, bias, turned)


def _grid(inner: int, outer: int) -> tuple[int, int]:
    return ceil_div(inner, THREADS), min(outer, MOST_BLOCKS)
