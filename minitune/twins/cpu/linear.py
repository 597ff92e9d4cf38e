"""linear with its bias and residual added, and its bias summed up, on all cores."""

from __future__ import annotations

import numpy as np

from ...backend import matmul as product
from ...cores import share
from .compiled import LEAST, by_rows, compiled, not_float32, rows_of


@compiled
def _add_bias(y, bias):
    N, C = y.shape
    for i in range(N):
        for j in range(C):
            y[i, j] += bias[j]


@compiled
def _add_bias_and_residual(y, residual, bias):
    N, C = y.shape
    for i in range(N):
        for j in range(C):
            y[i, j] += bias[j] + residual[i, j]


def add_to_rows(y, bias, residual):
    """y (N, C) += bias + residual, either of which may be None."""
    bias = None if bias is None else np.ascontiguousarray(bias)
    if bias is None and residual is not None:
        by_rows(lambda a, b: np.add(a, b, out=a), (y, rows_of(residual)))
    elif bias is not None and residual is None:
        by_rows(_add_bias, (y,), bias)
    elif bias is not None:
        by_rows(_add_bias_and_residual, (y, rows_of(residual)), bias)


def sum_of_rows(rows):
    """rows (N, C) -> (C,)"""
    N, C = rows.shape
    total = np.empty(C, np.float32)
    share(lambda start, stop: np.sum(rows[:, start:stop], 0, out=total[start:stop]), C, LEAST // max(N, 1))
    return total


def linear_unsupported(x, weight, bias, residual):
    return not_float32(x, weight, bias, residual)


def linear_forward(x, weight, bias, residual, *, needs):
    rows = rows_of(x)
    y = product(rows, weight.T)                                             # (N, out)
    add_to_rows(y, bias, residual)
    return y.reshape(*x.shape[:-1], len(weight)), (x.shape, rows if needs.weight else None, weight if needs.x else None)


def linear_backward(grad, x_shape, rows, weight, *, needs):
    along = rows_of(grad)                                                   # (N, out)
    grad_x = product(along, weight).reshape(x_shape) if needs.x else None
    grad_weight = product(along.T, rows) if needs.weight else None
    grad_bias = sum_of_rows(along) if needs.bias else None
    return grad_x, grad_weight, grad_bias, grad if needs.residual else None
