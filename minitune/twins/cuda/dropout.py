"""dropout on a GPU: the mask is made where it is needed, forward and backward, and never kept."""

from __future__ import annotations

from math import ceil

from ...devices import array_module
from .kernel import Source, ceil_div, empty, not_for_a_gpu

_source = Source("dropout")
_scale = _source.kernel("dropout_scale", "x:T[N] y:T[N] N:i64 seed:u64 stream:u64 counter:u64 threshold:u32 scale:f32")
THREADS = 256           # of a block, 16 bytes each


def _dropped(x, p, place):
    """x scaled where the numbers at `place` keep it: u >= p for u = n / 2^24 means n >= p 2^24."""
    y = empty(x.shape, x.dtype, x)
    flat = array_module(x).ascontiguousarray(x).reshape(-1)
    _scale(ceil_div(y.nbytes, 16 * THREADS), THREADS, flat, y.reshape(-1), *place, ceil(p * 2**24), 1 / (1 - p))
    return y


def dropout_unsupported(x, *, p, place):
    return not_for_a_gpu(x)


def dropout_forward(x, *, p, place, needs):
    return _dropped(x, p, place), (p, place)


def dropout_backward(grad, p, place, *, needs):
    return (_dropped(grad, p, place),)
