"""lora_linear on a GPU: the update is two thin products, added to the layer's in place; a frozen weight costs no gradient."""

from __future__ import annotations

from .kernel import not_for_a_gpu, rows_of
from .linear import add_to_rows, linear_backward
from .products import product, result_dtype


def lora_linear_unsupported(x, weight, bias, A, B, residual, *, scale):
    return not_for_a_gpu(x, weight, bias, A, B, residual)


def lora_linear_forward(x, weight, bias, A, B, residual, *, scale, needs):
    dtype = result_dtype(x, weight, bias, A, B, residual)
    rows, matrix, down, up = (a.astype(dtype, copy=False) for a in (rows_of(x), weight, A, B))
    low = product(rows, down.T, factor=scale)                               # (N, R)
    y = product(low, up.T, add_to=product(rows, matrix.T))                  # (N, out)
    add_to_rows(y, bias, residual)
    dtypes = [None if a is None else a.dtype for a in (x, weight, bias, A, B, residual)]
    adapts = needs.x or needs.A
    return y.reshape(*x.shape[:-1], len(weight)), (
        rows if needs.weight or needs.A else None, matrix if needs.x else None, down if needs.x else None,
        up if adapts else None, low if needs.B else None, scale, x.shape, dtypes)


def lora_linear_backward(grad, rows, matrix, down, up, low, scale, x_shape, dtypes, *, needs):
    of_x, of_weight, of_bias, of_A, of_B, of_residual = dtypes
    grad_x, grad_weight, grad_bias, grad_residual = linear_backward(
        grad, rows, matrix, x_shape, (of_x, of_weight, of_bias, of_residual), needs=needs)
    along, grad_A, grad_B = rows_of(grad), None, None                       # (N, out)
    if needs.B:
        grad_B = product(along.T, low, of_B)                                # (out, R)
    if needs.x or needs.A:
        grad_low = product(along, up, factor=scale)                         # (N, R)
    if needs.A:
        grad_A = product(grad_low.T, rows, of_A)                            # (R, in)
    if needs.x:
        product(grad_low, down, add_to=grad_x.reshape(len(along), down.shape[1]))
    return grad_x, grad_weight, grad_bias, grad_A, grad_B, grad_residual
