"""rms_norm a row at a time, which stays in the fastest cache between its two passes."""

from __future__ import annotations

import numpy as np

from ...cores import share
from .compiled import LEAST, by_rows, compiled, not_float32, one_over_root, rows_of
from .layer_norm import BLOCKS

ZERO = np.float32(0)


@compiled
def _forward(x, y, rstd, weight, eps):
    N, C = x.shape
    for i in range(N):
        squares = ZERO
        for j in range(C):
            squares += x[i, j] * x[i, j]
        scale = one_over_root(squares / np.float32(C) + eps)
        for j in range(C):
            y[i, j] = x[i, j] * scale * weight[j]
        rstd[i] = scale


@compiled
def _backward(grad, x, weight, rstd, grad_x, grad_weight):
    N, C = x.shape
    for i in range(N):
        scale, along_x = rstd[i], ZERO
        for j in range(C):
            along = grad[i, j] * x[i, j] * scale
            along_x += along * weight[j]
            grad_weight[j] += along
        along_x *= scale / np.float32(C)
        for j in range(C):
            grad_x[i, j] = (grad[i, j] * weight[j] - x[i, j] * along_x) * scale


def rms_norm_unsupported(x, weight, *, eps):
    return not_float32(x, weight)


def rms_norm_forward(x, weight, *, eps, needs):
    rows = rows_of(x)
    y, rstd = np.empty(rows.shape, np.float32), np.empty(len(rows), np.float32)
    by_rows(_forward, (rows, y, rstd), np.ascontiguousarray(weight), np.float32(eps))
    return y.reshape(x.shape), (rows, weight, rstd)


def rms_norm_backward(grad, x, weight, rstd, *, needs):
    along = rows_of(grad)
    N, C = along.shape
    grad_x, sums, weight = np.empty((N, C), np.float32), np.zeros((BLOCKS, C), np.float32), np.ascontiguousarray(weight)

    def part(start, stop):                      # blocks of rows
        for block in range(start, stop):
            at = slice(N * block // BLOCKS, N * (block + 1) // BLOCKS)
            _backward(along[at], x[at], weight, rstd[at], grad_x[at], sums[block])

    share(part, BLOCKS, LEAST * BLOCKS // max(N * C, 1))
    return grad_x.reshape(grad.shape) if needs.x else None, sums.sum(0) if needs.weight else None
