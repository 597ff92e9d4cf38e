"""embedding on a GPU: a warp gathers a row; gradients of equal ids are brought together by sorting and summed in order."""

from __future__ import annotations

import numpy as np

from ...devices import array_module
from .kernel import Source, ceil_div, empty, not_for_a_gpu, rows_of

_source = Source("embedding")
_forward = _source.kernel("embedding_forward", "weight:T[V,C] ids:i32[N] y:T[N,C] N:i32 V:i32 C:i32")
_pieces = _source.kernel("embedding_pieces", "grad:T[N,C] keys:i64[N] grad_weight:T[V,C] partial:f32[K,P,C] N:i32 V:i32 C:i32 "
                                             "P:i32")
_joins = _source.kernel("embedding_joins", "partial:f32[K,P,C] keys:i64[N] grad_weight:T[V,C] N:i32 V:i32 C:i32 P:i32")
ROWS, COLUMNS = 8, 32   # of a block
PIECE = 32              # sorted ids that one block adds up


def embedding_unsupported(weight, ids):
    return not_for_a_gpu(weight)


def embedding_forward(weight, ids, *, needs):
    xp = array_module(weight)
    table, flat = xp.ascontiguousarray(weight), xp.ascontiguousarray(ids.reshape(-1).astype(np.int32, copy=False))
    y = empty((len(flat), table.shape[1]), table.dtype, table)
    _forward(ceil_div(len(flat), ROWS), ROWS * 32, table, flat, y)
    return y.reshape(*ids.shape, table.shape[1]), (flat, table.shape)


def embedding_backward(grad, ids, shape, *, needs):
    xp, along = array_module(grad), rows_of(grad)
    N, C = along.shape
    # no two keys are equal, so any sort brings the rows of an id into their order
    keys = xp.sort((ids.astype(np.int64) << 32) + xp.arange(N, dtype=np.int64))
    P = ceil_div(N, PIECE)
    grad_weight, partial = xp.zeros(shape, grad.dtype), empty((2, P, C), np.float32, grad)
    _pieces((P, ceil_div(C, 128)), 128, along, keys, grad_weight, partial)
    _joins((P, ceil_div(C, COLUMNS)), (COLUMNS, ROWS), partial, keys, grad_weight)
    return grad_weight, None
