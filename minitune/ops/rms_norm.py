"""rms_norm: y = x * rstd * weight over the last axis, rstd = 1 / sqrt(mean of x^2 + eps)."""

from __future__ import annotations

from ..backend import array_module
from ..tensor import Tensor, apply


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Gives every row of `x` a mean square of 1, then scales it by `weight`: layer normalisation that moves nothing.

    y = x / sqrt(mean of x^2 + eps) * weight, the mean over the last axis.
    Shapes: x (..., C), weight (C,) -> (..., C)
    Raises ValueError where weight is not (C,).
    Source: Zhang and Sennrich 2019, Root Mean Square Layer Normalization, equation 4.

    >>> rms_norm(Tensor([[1.0, 7.0]]), Tensor([5.0, 5.0]), eps=0.0).numpy()
    array([[1., 7.]], dtype=float32)
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm: weight must be (C,) = {x.shape[-1:]}, got {weight.shape}. Is x's last axis the channels?")
    return apply(rms_norm_forward, rms_norm_backward, x, weight, eps=float(eps))


def rms_norm_forward(x, weight, *, eps, needs):
    rstd = 1 / array_module(x).sqrt((x * x).mean(-1, keepdims=True) + eps)  # (..., 1)
    normalized = x * rstd                                                   # (..., C)
    return normalized * weight, (normalized, rstd if needs.x else None, weight if needs.x else None)


def rms_norm_backward(grad, normalized, rstd, weight, *, needs):
    grad_x = grad_weight = None
    if needs.x:
        g = grad * weight                                                   # (..., C), d loss / d normalized
        grad_x = (g - (g * normalized).mean(-1, keepdims=True) * normalized) * rstd     # rescaling x changes nothing
    if needs.weight:
        grad_weight = (grad * normalized).sum(tuple(range(grad.ndim - 1)))  # (C,)
    return grad_x, grad_weight
