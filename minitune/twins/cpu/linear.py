"""linear with its bias and residual added, and its bias summed up, on all cores."""

from __future__ import annotations

import numpy as np

from ...cores import PARTS, WORTH, divided, multiplications, share, share_together
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
    total = np.empty(rows.shape[1], np.float32)
    share(lambda start, stop: np.sum(rows[:, start:stop], 0, out=total[start:stop]), len(total), LEAST // max(len(rows), 1))
    return total


def linear_unsupported(x, weight, bias, residual):
    return not_float32(x, weight, bias, residual)


def product_and_rest(rows, weight, bias, residual):
    """rows weight^T + bias + residual, (N, out). Each core adds to its part of the product while that is in its cache."""
    y = np.empty((len(rows), len(weight)), np.float32)
    multiply, count = divided(rows, weight.T, y)
    least = WORTH * count // multiplications(rows, weight.T)
    if count > len(rows):                       # by columns, which compiled loops do not take
        share(multiply, count, least)
        add_to_rows(y, bias, residual)
        return y
    beside = None if residual is None else rows_of(residual)

    def part(start, stop):
        multiply(start, stop)
        add_to_rows(y[start:stop], bias, None if beside is None else beside[start:stop])

    share(part, count, least)
    return y


def linear_forward(x, weight, bias, residual, *, needs):
    rows = rows_of(x)
    y = product_and_rest(rows, weight, bias, residual)
    return y.reshape(*x.shape[:-1], len(weight)), (x.shape, rows if needs.weight else None, weight if needs.x else None)


def linear_backward(grad, x_shape, rows, weight, *, needs):
    along = rows_of(grad)                                                   # (N, out)
    N, out = along.shape
    grad_x = np.empty((N, weight.shape[1]), np.float32) if needs.x else None
    grad_weight = np.empty((out, rows.shape[1]), np.float32) if needs.weight else None
    grad_bias = np.empty(out, np.float32) if needs.bias else None
    products = [(along, weight, grad_x)] * needs.x + [(along.T, rows, grad_weight)] * needs.weight
    works = [divided(*each) for each in products]
    if needs.bias:
        works.append((lambda start, stop: np.sum(along[:, start:stop], 0, out=grad_bias[start:stop]), out))
    share_together(works, WORTH * PARTS // (along.size + sum(multiplications(a, b) for a, b, _ in products) + 1))
    return (grad_x.reshape(x_shape) if needs.x else None, grad_weight, grad_bias, grad if needs.residual else None)
