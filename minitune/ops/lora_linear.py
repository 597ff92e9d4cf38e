"""lora_linear: y = x weight^T + bias + residual + scale * (x A^T) B^T, a linear layer with a low-rank update beside it."""

from __future__ import annotations

from ..backend import matmul as product
from ..tensor import Tensor, apply
from .linear import check_linear, linear_backward, linear_forward


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor,
                residual: Tensor | None = None, *, scale: float) -> Tensor:
    """y = x weight^T + bias + residual + scale * (x A^T) B^T; a frozen weight costs no gradient.

    Shapes: x (..., in), weight (out, in), bias (out,) or None, A (R, in), B (out, R), residual (..., out) or None
    Raises ValueError where shapes do not fit.
    Source: Hu et al. 2021, LoRA, equation 3.
    """
    check_linear("lora_linear", x, weight, bias, residual)
    if A.shape[1:] != weight.shape[1:] or B.shape[:1] != weight.shape[:1] or A.shape[:1] != B.shape[1:]:
        raise ValueError(f"lora_linear: A must be (R, in) and B (out, R) for weight (out, in) = {weight.shape}, "
                         f"got {A.shape} and {B.shape}")
    return apply(lora_linear_forward, lora_linear_backward, x, weight, bias, A, B, residual, scale=float(scale))


def lora_linear_forward(x, weight, bias, A, B, residual, *, scale, needs):
    y, (x_kept, weight_kept) = linear_forward(x, weight, bias, residual, needs=needs)
    low = product(x, A.T) * scale                                           # (..., R)
    y += product(low, B.T)
    adapts = needs.x or needs.A
    return y, (x if needs.A else x_kept, weight_kept, A if needs.x else None, B if adapts else None,
               low if needs.B else None, scale)


def lora_linear_backward(grad, x, weight, A, B, low, scale, *, needs):
    grad_x, grad_weight, grad_bias, grad_residual = linear_backward(grad, x, weight, needs=needs)
    rows = grad.reshape(-1, grad.shape[-1])                                 # (N, out)
    grad_A = grad_B = None
    if needs.B:
        grad_B = product(rows.T, low.reshape(-1, low.shape[-1]))            # (out, R)
    if needs.x or needs.A:
        grad_low = product(grad, B) * scale                                 # (..., R)
    if needs.A:
        grad_A = product(grad_low.reshape(-1, grad_low.shape[-1]).T, x.reshape(-1, x.shape[-1]))
    if needs.x:
        grad_x += product(grad_low, A)
    return grad_x, grad_weight, grad_bias, grad_A, grad_B, grad_residual
