"""matmul: y = a @ b over the last two axes, stacks broadcast."""

from __future__ import annotations

from typing import Any

from ..backend import matmul as product
from ..tensor import Tensor, apply
from .elementwise import shape_of, unbroadcast


def matmul(a: Any, b: Any) -> Tensor:
    """y = a @ b. Shapes: a (..., M, K), b (..., K, N) -> (..., M, N); the leading axes are broadcast.

    Raises ValueError where an input has fewer than two axes or the inner lengths differ.

    >>> matmul(Tensor([[1.0, 2.0]]), Tensor([[3.0], [4.0]])).numpy()
    array([[11.]], dtype=float32)
    """
    if len(shape_of(a)) < 2 or len(shape_of(b)) < 2:
        raise ValueError(f"matmul: expected (..., M, K) and (..., K, N), got {shape_of(a)} and {shape_of(b)}. "
                         "Reshape a vector to a row (1, K) or a column (K, 1)")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: inner lengths differ: {a.shape} @ {b.shape}. Is one of them transposed?")
    return apply(matmul_forward, matmul_backward, a, b)


def matmul_forward(a, b, *, needs):
    return product(a, b), (a if needs.b else None, b if needs.a else None, a.shape, b.shape)


def matmul_backward(grad, a, b, a_shape, b_shape, *, needs):
    grad_a = grad_b = None
    if needs.a:
        grad_a = unbroadcast(product(grad, b.swapaxes(-1, -2)), a_shape)
    if needs.b and len(b_shape) == 2:                                       # one matrix for the whole stack: one product
        grad_b = product(a.reshape(-1, a_shape[-1]).T, grad.reshape(-1, b_shape[-1]))
    elif needs.b:
        grad_b = unbroadcast(product(a.swapaxes(-1, -2), grad), b_shape)
    return grad_a, grad_b
