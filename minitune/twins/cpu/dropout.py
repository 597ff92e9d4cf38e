"""dropout in one pass: a core makes its own part of the random numbers, which are the same as backend.philox gives."""

from __future__ import annotations

from math import ceil

import numpy as np

from ...cores import share
from .compiled import LEAST, by_rows, compiled, not_float32

LOW, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
MULTIPLY0, MULTIPLY1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL0, WEYL1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@compiled
def _keep(seed, stream, counter, threshold, kept):
    """kept[i] = whether the i-th number, of 24 bits, is at least `threshold`: Philox4x32-10 as in backend.philox."""
    for block in range((kept.size + 3) // 4):
        position = counter + np.uint64(block)
        x0, x1, x2, x3 = position & LOW, position >> SHIFT, stream & LOW, stream >> SHIFT
        key0, key1 = seed & LOW, seed >> SHIFT
        for _ in range(10):
            product0, product1 = x0 * MULTIPLY0, x2 * MULTIPLY1
            x0, x2 = (product1 >> SHIFT) ^ x1 ^ key0, (product0 >> SHIFT) ^ x3 ^ key1
            x1, x3 = product1 & LOW, product0 & LOW
            key0, key1 = (key0 + WEYL0) & LOW, (key1 + WEYL1) & LOW
        at = 4 * block
        kept[at] = (x0 >> np.uint64(8)) >= threshold
        if at + 1 < kept.size:
            kept[at + 1] = (x1 >> np.uint64(8)) >= threshold
        if at + 2 < kept.size:
            kept[at + 2] = (x2 >> np.uint64(8)) >= threshold
        if at + 3 < kept.size:
            kept[at + 3] = (x3 >> np.uint64(8)) >= threshold


@compiled
def _scale(x, kept, y, scale):
    for i in range(x.size):
        y[i] = x[i] * kept[i] * scale           # a product, not a choice: NaN that is dropped stays NaN as in the reference


def dropout_unsupported(x, *, p, place):
    return not_float32(x)


def dropout_forward(x, *, p, place, needs):
    seed, stream, counter = place
    flat, kept, y = np.ascontiguousarray(x).reshape(-1), np.empty(x.size, np.bool_), np.empty(x.size, np.float32)
    threshold, scale = np.uint64(ceil(p * 2**24)), np.float32(1 / (1 - p))  # u >= p for u = n / 2^24 means n >= p 2^24

    def part(start, stop):                      # blocks of four numbers
        at = slice(4 * start, 4 * stop)
        _keep(np.uint64(seed), np.uint64(stream), np.uint64(counter + start), threshold, kept[at])
        _scale(flat[at], kept[at], y[at], scale)

    share(part, -(-x.size // 4), LEAST // 4)
    return y.reshape(x.shape), (kept, scale)


def dropout_backward(grad, kept, scale, *, needs):
    grad_x = np.empty(grad.size, np.float32)
    by_rows(_scale, (np.ascontiguousarray(grad).reshape(-1), kept, grad_x), scale)
    return (grad_x.reshape(grad.shape),)
