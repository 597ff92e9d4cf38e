"""A transformer block for the next token of one row, as generation asks for it: one call of machine code, not fifteen."""

from __future__ import annotations

from math import sqrt

import numpy as np

from . import attention, elementwise, layer_norm
from .compiled import compiled, not_float32

ZERO = np.float32(0)


@compiled
def _linear(x, weight, bias, y):
    """y = weight x + bias, four outputs at a time: one sum alone would wait for each of its additions."""
    outputs, inputs = weight.shape
    for o in range(0, outputs - 3, 4):
        sum0, sum1, sum2, sum3 = ZERO, ZERO, ZERO, ZERO
        for i in range(inputs):
            sum0 += weight[o, i] * x[i]
            sum1 += weight[o + 1, i] * x[i]
            sum2 += weight[o + 2, i] * x[i]
            sum3 += weight[o + 3, i] * x[i]
        y[o], y[o + 1], y[o + 2], y[o + 3] = sum0, sum1, sum2, sum3
    for o in range(outputs // 4 * 4, outputs):
        y[o] = ZERO
        for i in range(inputs):
            y[o] += weight[o, i] * x[i]
    for o in range(outputs):
        y[o] += bias[o]


@compiled
def _attend(q, keys, values, first, last, scale, mixed):
    """q (H, D), keys and values (S, H, D): mixed (H, D) = the values first .. last, weighted by their keys.

    Four at a time as above; past the last, the last stands again and has weight 0.
    """
    H, D = q.shape
    low, top = first[0], last[0]
    groups = (top - low) // 4 + 1
    scores, unused = np.empty((H, 1, 4 * groups), np.float32), np.empty((H, 1), np.float32)
    for group in range(groups):                                             # in the order in which they lie in memory
        j = 4 * group
        s0, s1, s2, s3 = low + j, min(low + j + 1, top), min(low + j + 2, top), min(low + j + 3, top)
        for h in range(H):
            sum0, sum1, sum2, sum3 = ZERO, ZERO, ZERO, ZERO
            for d in range(D):
                sum0 += q[h, d] * keys[s0, h, d]
                sum1 += q[h, d] * keys[s1, h, d]
                sum2 += q[h, d] * keys[s2, h, d]
                sum3 += q[h, d] * keys[s3, h, d]
            scores[h, 0, j], scores[h, 0, j + 1], scores[h, 0, j + 2], scores[h, 0, j + 3] = sum0, sum1, sum2, sum3
    attention._weights(scores, first, last, low, scale, unused, unused)
    mixed[:] = 0
    for group in range(groups):
        j = 4 * group
        s0, s1, s2, s3 = low + j, min(low + j + 1, top), min(low + j + 2, top), min(low + j + 3, top)
        for h in range(H):
            p0, p1, p2, p3 = scores[h, 0, j], scores[h, 0, j + 1], scores[h, 0, j + 2], scores[h, 0, j + 3]
            for d in range(D):
                mixed[h, d] += (p0 * values[s0, h, d] + p1 * values[s1, h, d]) + (p2 * values[s2, h, d] + p3 * values[s3, h, d])


@compiled
def _block(x, norms, linears, epsilons, keys, values, at, first, last, scale):
    """x (1, C) -> (1, C). Writes the token's key and value into keys[at] and values[at], then attends."""
    C = x.shape[1]
    H, D = keys.shape[1:]
    (weight1, bias1), (weight2, bias2) = norms
    query, key, value, output, up, down = linears
    normalized, statistic = np.empty((1, C), np.float32), np.empty(1, np.float32)
    layer_norm._forward(x, normalized, statistic, statistic, weight1, bias1, epsilons[0])
    q, mixed, y = np.empty((H, D), np.float32), np.empty((H, D), np.float32), np.empty((1, C), np.float32)
    _linear(normalized[0], query[0], query[1], q.reshape(C))
    _linear(normalized[0], key[0], key[1], keys[at].reshape(C))
    _linear(normalized[0], value[0], value[1], values[at].reshape(C))
    _attend(q, keys, values, first, last, scale, mixed)
    _linear(mixed.reshape(C), output[0], output[1], y[0])
    for c in range(C):
        y[0, c] += x[0, c]
    layer_norm._forward(y, normalized, statistic, statistic, weight2, bias2, epsilons[1])
    inner, result = np.empty(up[1].size, np.float32), np.empty((1, C), np.float32)
    _linear(normalized[0], up[0], up[1], inner)
    elementwise._forward(inner, inner)
    _linear(inner, down[0], down[1], result[0])
    for c in range(C):
        result[0, c] += y[0, c]
    return result


def next_token_fits(x, weights):
    """Whether these are weights and biases of the usual shapes, as compiled loops take them."""
    C, channels = x.shape[2], len(weights[6][0])
    shapes = [(C,), (C,), *4 * [(C, C)], (channels, C), (C, channels)]
    arrays = [x, *(a for pair in weights for a in pair)]
    return (all(w.shape == shape and b.shape == shape[:1] for (w, b), shape in zip(weights, shapes))
            and not_float32(*arrays) is None and all(a.flags.c_contiguous for a in arrays))


def next_token(x, weights, epsilons, keys, values, at, first, last):
    """x (1, 1, C) -> (1, 1, C). keys and values (1, S, H, D); weights and biases of two norms and six linear layers."""
    scale = np.float32(1 / sqrt(keys.shape[3]))
    return _block(x[0], tuple(weights[:2]), tuple(weights[2:]), np.array(epsilons, np.float32), keys[0], values[0], at,
                  first[0].astype(np.int64), last[0].astype(np.int64), scale)[None]
