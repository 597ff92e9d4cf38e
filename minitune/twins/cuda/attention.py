"""attention on a GPU: flash attention on tensor cores in bfloat16, for heads of up to 128 channels."""

from __future__ import annotations

from math import e, log2, sqrt

import numpy as np

from ...devices import array_module, device_of, is_bfloat16
from .kernel import Source, ceil_div, empty, not_for_a_gpu

SIZES = 32, 64, 128     # of heads that the kernels are made for; others get zero channels
THREADS, OWN = 128, 64  # of a block, and the queries or keys that it has
CHUNK, QUERY = 8, 16    # channels in 16 bytes; bytes of what a block of keys knows of a query
_source = Source("attention", dtypes=("bfloat16",), D=SIZES)
_forward = _source.kernel("attention_forward", "q:T[B,T,H,D] k:T[B,S,G,D] v:T[B,S,G,D] first:i32[B,T] last:i32[B,T] "
                                               "y:T[B,T,H,D] log_sum:f32[B,H,T] T:i32 S:i32 H:i32 G:i32 scale:f32")
_delta = _source.kernel("attention_delta", "y:T[B,T,H,D] grad:T[B,T,H,D] delta:f32[B,H,T] B:i32 T:i32 H:i32")
_GIVEN = ("q:T[B,T,H,D] k:T[B,S,G,D] v:T[B,S,G,D] grad:T[B,T,H,D] first:i32[B,T] last:i32[B,T] log_sum:f32[B,H,T] "
          "delta:f32[B,H,T]")
_SIZES = "T:i32 S:i32 H:i32 G:i32 scale:f32 slope_scale:f32"
_grad_kv = _source.kernel("attention_grad_kv", f"{_GIVEN} grad_k:T[B,S,G,D] grad_v:T[B,S,G,D] {_SIZES}")
_grad_q = _source.kernel("attention_grad_q", f"{_GIVEN} grad_q:T[B,T,H,D] {_SIZES}")


def attention_unsupported(q, k, v, first, last):
    reason = not_for_a_gpu(q, k, v)
    if reason is None and not all(is_bfloat16(a.dtype) for a in (q, k, v)):
        return ""                               # float32 is for the reference: tensor cores would round it
    if reason is None and q.shape[-1] > SIZES[-1]:
        return f"the CUDA twin takes heads of up to {SIZES[-1]} channels, got {q.shape[-1]}"
    return reason


def attention_forward(q, k, v, first, last, *, needs):
    channels = q.shape[-1]
    q, k, v = map(_padded, (q, k, v))
    first, last = (array_module(a).ascontiguousarray(a.astype(np.int32, copy=False)) for a in (first, last))
    B, T, H, D = q.shape
    y, log_sum = empty(q.shape, q.dtype, q), empty((B, H, T), np.float32, q)
    _forward(B * H * ceil_div(T, OWN), THREADS, q, k, v, first, last, y, log_sum, log2(e) / sqrt(channels), D=D)
    return _cut(y, channels), (q, k, v, first, last, y, log_sum)


def attention_backward(grad, q, k, v, first, last, y, log_sum, *, needs):
    """Two kernels, one block for each tile of keys and of queries; both make the weights again."""
    (B, T, H, D), (_, S, G, _), channels = q.shape, k.shape, grad.shape[-1]
    grad, delta = _padded(grad), empty((B, H, T), np.float32, q)
    _delta(ceil_div(grad.size, CHUNK * 256), 256, y, grad, delta, D=D)
    given, scales = (q, k, v, grad, first, last, log_sum, delta), (log2(e) / sqrt(channels), 1 / sqrt(channels))
    grad_q, grad_k, grad_v = (empty(a.shape, a.dtype, a) for a in (q, k, v))
    if needs.q:
        _grad_q(B * H * ceil_div(T, OWN), THREADS, *given, grad_q, *scales, D=D)
    if needs.k or needs.v:
        step = 32 if D > 64 else 64
        _grad_kv(B * G * ceil_div(S, OWN), THREADS, *given, grad_k, grad_v, *scales, D=D,
                 shared=(2 * OWN + 4 * step) * D * grad.itemsize + step * QUERY)
    grads = zip((grad_q, grad_k, grad_v), needs[:3], strict=True)
    return *(_cut(a, channels) if need else None for a, need in grads), None, None


def _padded(x):
    """x (..., channels) with zero channels up to a size, contiguous, its address a multiple of 16."""
    size, channels = next(size for size in SIZES if x.shape[-1] <= size), x.shape[-1]
    if channels < size:
        wide = array_module(x).zeros((*x.shape[:-1], size), x.dtype)
        wide[..., :channels] = x
        return wide
    x = array_module(x).ascontiguousarray(x)
    return x.copy() if (x.data.ptr if device_of(x) == "cuda" else x.ctypes.data) % 16 else x


def _cut(x, channels):
    return array_module(x).ascontiguousarray(x[..., :channels])
