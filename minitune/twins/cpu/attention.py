"""Attention by blocks of queries: only the keys that a block sees are multiplied, and no (T, S) matrix is held or kept.

Backward makes a block's weights again from each row's largest score and one over its total. Where several heads of queries
share one of keys, their queries are further rows of it: one product serves them all, and no key is repeated.
Source: Dao, Fu, Ermon, Rudra and Re 2022, FlashAttention, algorithms 1 and 4 (blocks of queries; the keys stay whole here).
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from ...cores import share
from .compiled import compiled, exponential, largest, not_float32

QUERIES = 64            # of a block, of more than twice as many: at T = 256, five eighths of a causal mask's products are left
SCORES = 1 << 18        # scores that a block holds at most, unless one head has more: 1 MB stays in the second cache
ZERO = np.float32(0)
FEW = 1 << 20           # multiplications that are not worth a division between cores


@compiled
def _clear(row, start, stop):
    """Sets what lies outside start .. stop - 1 to 0."""
    before, behind = row[:start], row[stop:]    # as arrays of their own, whose places count from 0: loops over them use vectors
    for j in range(before.size):
        before[j] = ZERO
    for j in range(behind.size):
        behind[j] = ZERO


@compiled
def _weights(scores, first, last, low, scale, tops, shares):
    """Softmax over first - low .. last - low of every row, in place; 0 elsewhere, and in a row that sees nothing."""
    heads, T, _ = scores.shape
    for h in range(heads):
        for t in range(T):
            row = scores[h, t]
            if first[t] > last[t]:
                row[:] = 0
                continue
            start, stop = first[t] - low, last[t] - low + 1
            seen = row[start:stop]
            top = largest(seen)
            total = np.float32(0)
            for j in range(seen.size):
                e = exponential(scale * (seen[j] - top))
                seen[j] = e
                total += e
            share_of_one = np.float32(1) / total
            for j in range(seen.size):
                seen[j] *= share_of_one
            _clear(row, start, stop)
            tops[h, t], shares[h, t] = top, share_of_one


@compiled
def _weights_and_slopes(scores, slopes, first, last, low, scale, tops, shares, mean):
    """Scores become weights p again, and d loss / d p becomes d loss / d score = p (d loss / d p - its mean under p) scale."""
    heads, T, _ = scores.shape
    for h in range(heads):
        for t in range(T):
            row, slope, top, share_of_one, middle = scores[h, t], slopes[h, t], tops[h, t], shares[h, t], mean[t, h]
            start, stop = first[t] - low, last[t] - low + 1
            if start >= stop:
                row[:], slope[:] = 0, 0
                continue
            seen, seen_slope = row[start:stop], slope[start:stop]
            for j in range(seen.size):
                p = exponential(scale * (seen[j] - top)) * share_of_one
                seen[j] = p
                seen_slope[j] = p * (seen_slope[j] - middle) * scale
            _clear(row, start, stop)
            _clear(slope, start, stop)


def _grouped(q, n):
    """(B, T, G n, D) -> (B, T n, G, D): rows n t .. n t + n - 1 are the n queries of token t that share a head of keys."""
    B, T, H, D = q.shape
    return q.reshape(B, T, H // n, n, D).swapaxes(2, 3).reshape(B, T * n, H // n, D)


def _ungrouped(y, n):
    B, rows, G, D = y.shape
    return y.reshape(B, rows // n, n, G, D).swapaxes(2, 3).reshape(B, rows // n, G * n, D)


def _blocks(first, last, keys):
    """For each row of the batch its blocks of queries and the keys they see: [(queries, low, high), ...]."""
    size = _size(first.shape[1])
    starts = np.arange(0, first.shape[1], size)
    sees = first <= last
    low = np.minimum.reduceat(np.where(sees, first, keys), starts, 1)
    high = np.maximum.reduceat(np.where(sees, last + 1, 0), starts, 1)
    return [[(slice(start, start + size), int(a), int(b)) for start, a, b in zip(starts, lows, highs) if a < b]
            for lows, highs in zip(low, high)]


def _size(T):
    """How many queries a block has: of few, two blocks would save fewer products than they cost calls."""
    return T if T <= 2 * QUERIES else QUERIES


def _units(q, keys):
    """(row of the batch, heads) that are computed together: many at once for speed, few for the cache and the cores."""
    B, T, H, D = q.shape
    together = H
    if B * T * H * D * keys > FEW:
        together = max(1, min(H, SCORES // (_size(T) * keys), B * H // 8))
    return [(b, slice(h, h + together)) for b in range(B) for h in range(0, H, together)]


def _worth(q, k, units):
    """How many units take a core longer than waking it."""
    return FEW * len(units) // max(1, q.size * k.shape[1])


def attention_unsupported(q, k, v, first, last):
    return not_float32(q, k, v)


def attention_forward(q, k, v, first, last, *, needs):
    n = q.shape[2] // k.shape[2]
    q = _grouped(q, n)
    first, last = (a.repeat(n, 1).astype(np.int64) for a in (first, last))
    B, T, H, D = q.shape                        # T n queries of G heads: the rest knows no groups
    scale = np.float32(1 / sqrt(D))
    y, kept = np.zeros(q.shape, np.float32), np.zeros((2, B, H, T), np.float32)
    blocks, units = _blocks(first, last, k.shape[1]) if T else [[]] * B, _units(q, k.shape[1])

    def part(start, stop):
        for b, heads in units[start:stop]:
            for at, low, high in blocks[b]:
                p = np.matmul(q[b, at, heads].swapaxes(0, 1), k[b, low:high, heads].transpose(1, 2, 0))     # (h, t, s)
                tops, shares = np.zeros((2, *p.shape[:2]), np.float32)
                _weights(p, first[b, at], last[b, at], low, scale, tops, shares)
                kept[:, b, heads, at] = tops, shares
                np.matmul(p, v[b, low:high, heads].swapaxes(0, 1), out=y[b, at, heads].swapaxes(0, 1))

    share(part, len(units), _worth(q, k, units))
    y = _ungrouped(y, n)
    return y, (q, k, v, y if needs.q or needs.k else None, first, last, kept)


def attention_backward(grad, q, k, v, y, first, last, kept, *, needs):
    B, T, H, D = q.shape
    n = grad.shape[2] // H
    scale = np.float32(1 / sqrt(D))
    slopes = needs.q or needs.k
    mean = _grouped(np.einsum("bthd,bthd->bth", grad, y)[..., None], n)[..., 0] if slopes else np.zeros((B, T, H), np.float32)
    grad = _grouped(grad, n)
    grads = [np.zeros(a.shape, np.float32) if need else None for a, need in zip((q, k, v), needs)]
    grad_q, grad_k, grad_v = grads
    blocks, units = _blocks(first, last, k.shape[1]) if T else [[]] * B, _units(q, k.shape[1])

    def part(start, stop):
        for b, heads in units[start:stop]:
            for at, low, high in blocks[b]:
                keys = slice(low, high)
                rows, along = (a[b, at, heads].swapaxes(0, 1) for a in (q, grad))                # (h, t, D)
                p = np.matmul(rows, k[b, keys, heads].transpose(1, 2, 0))                       # (h, t, s), scores so far
                slope = np.matmul(along, v[b, keys, heads].transpose(1, 2, 0)) if slopes else np.zeros_like(p)
                _weights_and_slopes(p, slope, first[b, at], last[b, at], low, scale,
                                    *np.ascontiguousarray(kept[:, b, heads, at]), np.ascontiguousarray(mean[b, at, heads]))
                if needs.v:
                    grad_v[b, keys, heads] += np.matmul(p.swapaxes(1, 2), along).swapaxes(0, 1)
                if needs.q:
                    np.matmul(slope, k[b, keys, heads].swapaxes(0, 1), out=grad_q[b, at, heads].swapaxes(0, 1))
                if needs.k:
                    grad_k[b, keys, heads] += np.matmul(slope.swapaxes(1, 2), rows).swapaxes(0, 1)

    share(part, len(units), _worth(q, k, units))
    return _ungrouped(grad_q, n) if needs.q else None, grad_k, grad_v, None, None
