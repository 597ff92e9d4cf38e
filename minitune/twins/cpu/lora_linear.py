"""lora_linear with the update added to the weight instead of to the output, wherever the weight is the smaller of the two.

W + scale B A costs out * in numbers, scale (x A^T) B^T costs N * out of them: with N rows in a batch the first is cheaper
from N = in on. The rest is the linear layer's.
"""

from __future__ import annotations

import numpy as np

from ...backend import matmul as product
from .compiled import not_float32, rows_of
from .linear import linear_backward, product_and_rest


def lora_linear_unsupported(x, weight, bias, A, B, residual, *, scale):
    return not_float32(x, weight, bias, A, B, residual)


def lora_linear_forward(x, weight, bias, A, B, residual, *, scale, needs):
    rows, scale = rows_of(x), np.float32(scale)
    if len(rows) >= len(A.T):
        y = product_and_rest(rows, _sum(weight, A, B, scale), bias, residual)
    else:
        y = product_and_rest(rows, weight, bias, residual)
        y += product(product(rows, A.T) * scale, B.T)
    kept = rows if needs.weight or needs.A or needs.B else None
    return y.reshape(*x.shape[:-1], len(weight)), (x.shape, kept, weight if needs.x else None,
                                                   A if needs.x or needs.B else None, B if needs.x or needs.A else None, scale)


def lora_linear_backward(grad, x_shape, rows, weight, A, B, scale, *, needs):
    along = rows_of(grad)                                                   # (N, out)
    grad_low = product(along, B) * scale if needs.x or needs.A else None    # (N, R)
    summed = needs.x and len(along) >= len(A.T)
    grad_x, grad_weight, grad_bias, grad_residual = linear_backward(
        grad, x_shape, rows, _sum(weight, A, B, scale) if summed else weight, needs=needs)
    if needs.x and not summed:
        grad_x += product(grad_low, A).reshape(x_shape)
    grad_A = product(grad_low.T, rows) if needs.A else None
    grad_B = product(along.T, product(rows, A.T) * scale) if needs.B else None
    return grad_x, grad_weight, grad_bias, grad_A, grad_B, grad_residual


def _sum(weight, A, B, scale):
    whole = product(B * scale, A)                                           # (out, in)
    whole += weight
    return whole
