"""linear: y = x weight^T + bias + residual."""

from __future__ import annotations

from ..backend import matmul as product
from ..tensor import Tensor, apply


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """y = x weight^T + bias + residual, in one operation.

    Shapes: x (..., in), weight (out, in), bias (out,) or None, residual (..., out) or None -> (..., out)
    Raises ValueError where shapes do not fit.

    >>> linear(Tensor([[1.0, 2.0]]), Tensor([[1.0, 1.0]]), Tensor([10.0])).numpy()
    array([[13.]], dtype=float32)
    """
    check_linear("linear", x, weight, bias, residual)
    return apply(linear_forward, linear_backward, x, weight, bias, residual)


def check_linear(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> None:
    """The shapes that linear and lora_linear ask for."""
    if len(weight.shape) != 2 or not x.shape or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"{name}: x must be (..., in) for weight (out, in) = {weight.shape}, got {x.shape}. "
                         "Is the weight transposed?")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{name}: bias must be (out,) = {weight.shape[:1]}, got {bias.shape}")
    if residual is not None and residual.shape != (*x.shape[:-1], weight.shape[0]):
        raise ValueError(f"{name}: residual must be (..., out) = {(*x.shape[:-1], weight.shape[0])}, got {residual.shape}")


def linear_forward(x, weight, bias, residual, *, needs):
    y = product(x, weight.T)                                                # (..., out)
    if bias is not None:
        y += bias
    if residual is not None:
        y += residual
    return y, (x if needs.weight else None, weight if needs.x else None)


def linear_backward(grad, x, weight, *, needs):
    rows = grad.reshape(-1, grad.shape[-1])                                 # (N, out)
    grad_x = product(grad, weight) if needs.x else None
    grad_weight = product(rows.T, x.reshape(-1, x.shape[-1])) if needs.weight else None
    grad_bias = rows.sum(0) if needs.bias else None
    return grad_x, grad_weight, grad_bias, grad if needs.residual else None
