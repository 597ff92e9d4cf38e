"""attention: softmax(q k^T / sqrt(D)) v, head by head; query t of row b sees the keys first[b, t] .. last[b, t]."""

from __future__ import annotations

from math import sqrt

from ..backend import Array, array_module, device_of
from ..backend import matmul as product
from ..tensor import Tensor, apply
from .checks import check_integers

QUERIES = 256       # queries whose weights are held at a time


def attention(q: Tensor, k: Tensor, v: Tensor, first: Array, last: Array) -> Tensor:
    """Every query takes the mean of the values it sees, weighted by how well their keys match it.

    y[b, t, h] = sum over s of p[t, s] v[b, s, g], p[t] = softmax over first[b, t] <= s <= last[b, t] of q k^T / sqrt(D).
    Causal, bidirectional, padded, packed and windowed attention are all such intervals. Where first > last a query sees
    nothing: its output and gradients are 0. Keys and values may have fewer heads, each for a group of H / G neighbouring
    heads of queries: g = h // (H / G).
    Shapes: q (B, T, H, D), k and v (B, S, G, D), first and last integers (B, T) -> (B, T, H, D)
    Raises ValueError where shapes do not fit or, on a CPU, an interval leaves 0 .. S - 1: a GPU would have to be waited for.
    Source: Vaswani et al. 2017, Attention is all you need, equation 1; groups: Ainslie et al. 2023, GQA: Training generalized
    multi-query transformer models from multi-head checkpoints, section 2.2.
    """
    if q.ndim != 4 or k.shape != v.shape or k.ndim != 4 or (k.shape[0], k.shape[3]) != (q.shape[0], q.shape[3]):
        raise ValueError("attention: expected q (B, T, H, D) and k, v (B, S, G, D), "
                         f"got {q.shape}, {k.shape}, {v.shape}. Are heads and time swapped?")
    if not k.shape[2] or q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: the G = {k.shape[2]} heads of k and v must divide the H = {q.shape[2]} heads of q. "
                         "Are heads and time swapped?")
    for name, bound in ("first", first), ("last", last):
        check_integers("attention", name, bound, q.shape[:2], "(B, T) = ")
    if (device_of(first) == "cpu" and (sees := first <= last).any()
            and (first[sees].min() < 0 or last[sees].max() >= k.shape[1])):
        raise ValueError(f"attention: intervals must lie in the keys 0 .. {k.shape[1] - 1}, "
                         f"got {first[sees].min()} .. {last[sees].max()}")
    return apply(attention_forward, attention_backward, q, k, v, first, last)


def attention_forward(q, k, v, first, last, *, needs):
    """A block of queries at a time, so that the (B, H, T, S) weights are never held as a whole.

    The queries that share a head of keys stand in one row, the n = H / G of a token side by side: they see the same interval.
    """
    shape, n = q.shape, q.shape[2] // k.shape[2]
    q, k, v = _grouped(q, n), k.swapaxes(1, 2), v.swapaxes(1, 2)            # (B, G, T n, D), (B, G, S, D)
    first, last = first.repeat(n, 1), last.repeat(n, 1)                     # (B, T n)
    y = array_module(q).empty_like(q)
    for block in _blocks(q):
        y[:, :, block] = product(_weights(q[:, :, block], k, first[:, block], last[:, block]), v)
    return _ungrouped(y, shape), (q, k, v if needs.q or needs.k else None, first, last, n)


def attention_backward(grad, q, k, v, first, last, n, *, needs):
    """The weights are made again, block by block: cheaper than keeping them, if T is long."""
    xp, shape, grad, scale = array_module(q), grad.shape, _grouped(grad, n), 1 / sqrt(q.shape[-1])
    grad_q = xp.empty_like(q) if needs.q else None
    grad_k = xp.zeros_like(k) if needs.k else None
    grad_v = xp.zeros_like(k) if needs.v else None
    for block in _blocks(q):
        p = _weights(q[:, :, block], k, first[:, block], last[:, block])    # (B, G, block, S)
        if needs.v:
            grad_v += product(p.swapaxes(-1, -2), grad[:, :, block])
        if needs.q or needs.k:
            grad_scores = product(grad[:, :, block], v.swapaxes(-1, -2))    # (B, G, block, S), d loss / d p so far
            grad_scores -= (grad_scores * p).sum(-1, keepdims=True)
            grad_scores *= p
            grad_scores *= scale
        if needs.q:
            grad_q[:, :, block] = product(grad_scores, k)
        if needs.k:
            grad_k += product(grad_scores.swapaxes(-1, -2), q[:, :, block])
    grad_q = _ungrouped(grad_q, shape) if needs.q else None
    return grad_q, *(None if g is None else g.swapaxes(1, 2) for g in (grad_k, grad_v)), None, None


def _grouped(q, n):
    """(B, T, G n, D) -> (B, G, T n, D): queries n t .. n t + n - 1 of a group are those of token t."""
    B, T, H, D = q.shape
    return q.reshape(B, T, H // n, n, D).swapaxes(1, 2).reshape(B, H // n, T * n, D)


def _ungrouped(y, shape):
    B, T, H, D = shape
    G = y.shape[1]
    return y.reshape(B, G, T, H // G, D).swapaxes(1, 2).reshape(shape)


def _blocks(q):
    return [slice(start, start + QUERIES) for start in range(0, q.shape[2], QUERIES)]


def _weights(q, k, first, last):
    """p (B, H, t, S): softmax of q k^T / sqrt(D) over the keys that each query sees, 0 elsewhere."""
    xp = array_module(q)
    p = product(q * (1 / sqrt(q.shape[-1])), k.swapaxes(-1, -2))            # scores so far
    if not k.shape[2]:                                                      # no key: there is no largest score
        return p
    s = xp.arange(k.shape[2])
    seen = (s >= first[..., None]) & (s <= last[..., None])                 # (B, t, S)
    p = xp.where(seen[:, None], p, -xp.inf)
    top = p.max(-1, keepdims=True)
    p -= xp.where(xp.isfinite(top), top, 0)                                 # a query that sees nothing keeps e^-inf = 0
    xp.exp(p, out=p)
    total = p.sum(-1, keepdims=True)
    p /= total + (total == 0)
    return p
