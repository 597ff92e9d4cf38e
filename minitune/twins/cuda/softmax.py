"""softmax on a GPU: a block a row, of as many warps as its length asks for."""

from __future__ import annotations

from .kernel import Source, ceil_div, empty, not_for_a_gpu, rows_of

_source = Source("softmax")
_forward = _source.kernel("softmax_forward", "x:T[N,C] y:T[N,C] N:i32 C:i32")
_backward = _source.kernel("softmax_backward", "grad:T[N,C] y:T[N,C] grad_x:T[N,C] N:i32 C:i32")
WARPS = 8       # of a block, at most


def softmax_unsupported(x):
    return not_for_a_gpu(x)


def softmax_forward(x, *, needs):
    rows = rows_of(x)
    y = empty(rows.shape, x.dtype, x)
    _forward(len(rows), _threads(rows.shape[1]), rows, y)
    return y.reshape(x.shape), (y if needs.x else None,)


def softmax_backward(grad, y, *, needs):
    grad_x = empty(y.shape, y.dtype, y)
    _backward(len(y), _threads(y.shape[1]), rows_of(grad), y, grad_x)
    return (grad_x.reshape(grad.shape),)


def _threads(C):
    """Of a block: whole warps, four numbers or more a thread."""
    return 32 * min(WARPS, max(1, ceil_div(C, 128)))
