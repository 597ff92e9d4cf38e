"""linear_cross_entropy: a chunk's logits become its loss and their own slopes in one pass, on all cores."""

from __future__ import annotations

import numpy as np

from ...backend import matmul as product
from .compiled import by_rows, compiled, exponential, largest, not_float32, rows_of

IGNORE = -100           # as in ops.cross_entropy
LOGITS = 1 << 22        # logits held at a time, 16 MB, but at least
FEWEST = 512            # rows: fewer would spend more on adding up the weight's gradient than on multiplying


@compiled
def _loss_and_slope(z, labels, loss):
    """loss[i] = log(sum(e^z)) - z[label]; z becomes softmax(z) - one at the label."""
    N, V = z.shape
    for i in range(N):
        row = z[i]
        top = largest(row)
        at_label = row[labels[i]]
        total = np.float32(0)
        for j in range(V):
            row[j] = exponential(row[j] - top)
            total += row[j]
        loss[i] = np.log(total) - (at_label - top)
        share_of_one = np.float32(1) / total
        for j in range(V):
            row[j] *= share_of_one
        row[labels[i]] -= np.float32(1)


def linear_cross_entropy_unsupported(x, weight, targets, bias):
    return not_float32(x, weight, bias)


def linear_cross_entropy_forward(x, weight, targets, bias, *, needs):
    rows, labels = rows_of(x), targets.reshape(-1)
    kept = (labels != IGNORE).nonzero()[0]                                  # the supervised rows
    whole = len(kept) == len(rows)
    loss, V = np.empty(len(kept), np.float32), len(weight)
    grad_x = (np.empty_like if whole else np.zeros_like)(rows) if needs.x else None
    grad_weight = grad_bias = None
    step = max(FEWEST, LOGITS // V)
    for start in range(0, len(kept), step):
        chunk = slice(start, start + step) if whole else kept[start : start + step]
        part = rows[chunk]                                                  # (step, C)
        z = product(part, weight.T)                                         # (step, V)
        if bias is not None:
            z += bias
        by_rows(_loss_and_slope, (z, np.ascontiguousarray(labels[chunk], np.int64), loss[start : start + step]))
        if needs.x:
            grad_x[chunk] = product(z, weight)
        if needs.weight:
            grad_weight = _added(grad_weight, product(z.T, part))
        if needs.bias:
            grad_bias = _added(grad_bias, z.sum(0))
    if needs.weight and grad_weight is None:
        grad_weight = np.zeros_like(weight)
    if needs.bias and grad_bias is None:
        grad_bias = np.zeros_like(bias)
    return loss.sum(), (None if grad_x is None else grad_x.reshape(x.shape), grad_weight, grad_bias)


def _added(total, part):
    if total is None:
        return part
    by_rows(lambda a, b: np.add(a, b, out=a), (total, part))
    return total


def linear_cross_entropy_backward(grad, grad_x, grad_weight, grad_bias, *, needs):
    return _scaled(grad_x, grad), _scaled(grad_weight, grad), None, _scaled(grad_bias, grad)


def _scaled(saved, grad):
    if saved is None:
        return None
    scaled = np.empty_like(saved)
    by_rows(lambda a, out: np.multiply(a, grad, out=out), (saved, scaled))
    return scaled
