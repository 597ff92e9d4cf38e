"""AdamW in one pass over memory instead of thirteen, and the norm of a gradient, on all cores."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from ...cores import share
from .compiled import by_rows, compiled

BLOCK = 1 << 18         # elements whose squares are added up together: the same sum on any number of cores


def clip_all(optimizer: Any, max_norm: float, loss: Any) -> float:
    """What `Optimizer.clip` says, of an AdamW: the gradients stay as they are, `adamw_all` scales them as it reads them."""
    norm = sqrt(sum(sum_of_squares(p.grad) for p in optimizer.parameters() if p.requires_grad and p.grad is not None))
    optimizer.clipping = max_norm / norm if norm > max_norm else 1.0
    return norm


def adamw_all(optimizer: Any) -> None:
    """AdamW's step."""
    (beta1, beta2), factor = optimizer.betas, 1.0 if optimizer.clipping is None else optimizer.clipping
    for p, slot, rate, decay in optimizer.due():
        m, v, shrink, eps, size = optimizer.state(p, slot, rate, decay)
        adamw(p.data, p.grad, m, v, beta1, beta2, shrink, eps, size, factor)
    optimizer.clipping = None


@compiled
def _update(p, grad, m, v, factor, beta1, rest1, beta2, rest2, decay, eps, step):
    for i in range(p.size):
        g = factor * grad[i]
        m[i] = beta1 * m[i] + rest1 * g
        v[i] = beta2 * v[i] + rest2 * g * g
        p[i] = p[i] * decay - step * m[i] / (np.sqrt(v[i]) + eps)


def adamw(p, grad, m, v, beta1, beta2, decay, eps, step, factor=1.0):
    """p = p * decay - step * m / (sqrt(v) + eps), after m and v have taken in factor * gradient; all of them in place."""
    by_rows(_update, tuple(a.reshape(-1) for a in (p, grad, m, v)),
            *(np.float32(number) for number in (factor, beta1, 1 - beta1, beta2, 1 - beta2, decay, eps, step)))


def sum_of_squares(grad):
    """The sum of grad^2, float64."""
    flat = np.ascontiguousarray(grad).reshape(-1)
    sums = np.zeros(-(-flat.size // BLOCK))

    def part(start, stop):
        for block in range(start, stop):
            values = flat[block * BLOCK : (block + 1) * BLOCK]
            sums[block] = np.vdot(values, values)

    share(part, len(sums))
    return float(sums.sum())


def scale(grad, factor):
    """grad = grad * factor, in place."""
    by_rows(lambda part: np.multiply(part, np.float32(factor), out=part), (grad.reshape(-1),))
