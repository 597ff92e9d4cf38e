"""attention: softmax(q k^T / sqrt(D)) v, head by head; query t of row b sees the keys first[b, t] .. last[b, t]."""

from __future__ import annotations

from math import sqrt

from ..backend import Array, array_module
from ..backend import matmul as product
from ..tensor import Tensor, apply


def attention(q: Tensor, k: Tensor, v: Tensor, first: Array, last: Array) -> Tensor:
    """Every query takes the mean of the values it sees, weighted by how well their keys match it.

    y[b, t, h] = sum over s of p[t, s] v[b, s, h], p[t] = softmax over first[b, t] <= s <= last[b, t] of q k^T / sqrt(D).
    Causal, bidirectional, padded, packed and windowed attention are all such intervals. Where first > last a query sees
    nothing: its output and gradients are 0.
    Shapes: q (B, T, H, D), k and v (B, S, H, D), first and last integers (B, T) -> (B, T, H, D)
    Raises ValueError where shapes do not fit or an interval leaves 0 .. S - 1.
    Source: Vaswani et al. 2017, Attention is all you need, equation 1.
    """
    if q.ndim != 4 or k.shape != v.shape or k.ndim != 4 or (k.shape[0], *k.shape[2:]) != (q.shape[0], *q.shape[2:]):
        raise ValueError("attention: expected q (B, T, H, D) and k, v (B, S, H, D), "
                         f"got {q.shape}, {k.shape}, {v.shape}. Are heads and time swapped?")
    for name, bound in ("first", first), ("last", last):
        if bound.shape != q.shape[:2] or bound.dtype.kind not in "iu":
            raise ValueError(f"attention: {name} must be integers (B, T) = {q.shape[:2]}, got {bound.dtype} {bound.shape}")
    sees = first <= last
    if sees.any() and (first[sees].min() < 0 or last[sees].max() >= k.shape[1]):
        raise ValueError(f"attention: intervals must lie in the keys 0 .. {k.shape[1] - 1}, "
                         f"got {first[sees].min()} .. {last[sees].max()}")
    return apply(attention_forward, attention_backward, q, k, v, first, last)


def attention_forward(q, k, v, first, last, *, needs):
    xp = array_module(q)
    scale = 1 / sqrt(q.shape[-1])
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))                         # (B, H, T or S, D)
    p = product(q * scale, k.swapaxes(-1, -2))                              # (B, H, T, S), scores so far
    s = xp.arange(k.shape[2])
    seen = (s >= first[..., None]) & (s <= last[..., None])                 # (B, T, S)
    p += xp.where(seen, 0, -xp.inf).astype(p.dtype)[:, None]
    top = p.max(-1, keepdims=True)
    p -= xp.where(xp.isfinite(top), top, 0)                                 # a query that sees nothing keeps e^-inf = 0
    xp.exp(p, out=p)
    total = p.sum(-1, keepdims=True)
    p /= total + (total == 0)
    y = product(p, v).swapaxes(1, 2)                                        # (B, T, H, D)
    return y, (q if needs.k else None, k if needs.q else None, v if needs.q or needs.k else None, p, scale)


def attention_backward(grad, q, k, v, p, scale, *, needs):
    grad = grad.swapaxes(1, 2)                                              # (B, H, T, D)
    grad_q = grad_k = grad_v = None
    if needs.v:
        grad_v = product(p.swapaxes(-1, -2), grad).swapaxes(1, 2)
    if needs.q or needs.k:
        grad_scores = product(grad, v.swapaxes(-1, -2))                     # (B, H, T, S)
        grad_scores -= (grad_scores * p).sum(-1, keepdims=True)
        grad_scores *= p
        grad_scores *= scale
    if needs.q:
        grad_q = product(grad_scores, k).swapaxes(1, 2)
    if needs.k:
        grad_k = product(grad_scores.swapaxes(-1, -2), q).swapaxes(1, 2)
    return grad_q, grad_k, grad_v, None, None
