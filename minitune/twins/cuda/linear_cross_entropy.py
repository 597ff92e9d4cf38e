"""linear_cross_entropy on a GPU: a chunk's logits become their own slopes in place, and the gradients at once."""

from __future__ import annotations

import numpy as np

from ...devices import array_module
from .kernel import Source, ceil_div, empty, not_for_a_gpu, rows_of
from .linear import sum_of_rows
from .products import product, result_dtype

_source = Source("linear_cross_entropy")
_rows = _source.kernel("linear_cross_entropy_rows", "z:T[R,P] bias:f32[V]? targets:i32[R] loss:f32[R] R:i32 P:i32 classes:i32 "
                                                    "write:i32")
_total = _source.kernel("linear_cross_entropy_total", "losses:f32[N] total:f32[] N:i32")
_scale = _source.kernel("linear_cross_entropy_scale", "x:T[N] grad:f32[] y:T[N] N:i64")
LOGITS = 1 << 30        # bytes of logits held at a time: each chunk reads and writes the whole gradient of the weight
ROWS = 128              # a chunk has a multiple of so many, as products are cut into tiles
PADDED = 8              # classes are padded to a multiple of so many: rows of 16 bytes each, as tensor cores want them


def linear_cross_entropy_unsupported(x, weight, targets, bias):
    return not_for_a_gpu(x, weight, bias)


def linear_cross_entropy_forward(x, weight, targets, bias, *, needs):
    """Ignored rows are multiplied too, by zeros: to leave them out, the host would have to wait for their number."""
    xp, (V, C), dtype = array_module(x), weight.shape, result_dtype(x, weight)
    rows, table = rows_of(x).astype(dtype, copy=False), _padded(weight, dtype)
    targets = xp.ascontiguousarray(targets.reshape(-1).astype(np.int32, copy=False))
    added = None if bias is None else xp.ascontiguousarray(bias.astype(np.float32, copy=False))
    N, P = len(rows), len(table)
    losses = empty(N, np.float32, x)
    grad_x = xp.zeros((N, C), x.dtype) if needs.x else None
    grad_weight = xp.zeros((P, C), np.float32) if needs.weight else None
    grad_bias = xp.zeros(P, np.float32) if needs.bias else None
    step = max(1, LOGITS // max(1, P * dtype.itemsize) // ROWS) * ROWS
    for start in range(0, N, step):
        chunk = slice(start, start + step)
        z = product(rows[chunk], table.T)                                   # (R, P), soon d loss / d z
        _rows(len(z), _threads(z), z, added, targets[chunk], losses[chunk], V, any(needs))
        if needs.x:
            product(z, table, add_to=grad_x[chunk])
        if needs.weight:
            product(z.T, rows[chunk], add_to=grad_weight)
        if needs.bias:
            grad_bias += sum_of_rows(z)
        del z                                                               # before the next chunk's are made
    loss = empty((), np.float32, x)
    _total(1, 1024, losses, loss)
    return loss, (grad_x.reshape(x.shape) if needs.x else None,
                  grad_weight[:V].astype(weight.dtype, copy=False) if needs.weight else None,
                  grad_bias[:V].astype(bias.dtype, copy=False) if needs.bias else None)


def linear_cross_entropy_backward(grad, grad_x, grad_weight, grad_bias, *, needs):
    return _scaled(grad_x, grad), _scaled(grad_weight, grad), None, _scaled(grad_bias, grad)


def _padded(weight, dtype):
    """The weight (P, C) in the products' dtype, rounded once for all chunks; rows after V are zeros."""
    V, C = weight.shape
    if V % PADDED == 0:
        return weight.astype(dtype, copy=False)
    table = array_module(weight).zeros((ceil_div(V, PADDED) * PADDED, C), dtype)
    table[:V] = weight.astype(dtype, copy=False)
    return table


def _threads(z):
    """Of a block: whole warps, one pack of 16 bytes a thread or more."""
    return 32 * min(32, max(1, ceil_div(z.shape[1] * z.itemsize, 16 * 32)))


def _scaled(saved, grad):
    if saved is None:
        return None
    scaled, grad = empty(saved.shape, saved.dtype, saved), array_module(saved).asarray(grad, np.float32)
    _scale(ceil_div(saved.nbytes, 256 * 16), 256, saved.reshape(-1), grad, scaled.reshape(-1))
    return scaled
