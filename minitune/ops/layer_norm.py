"""layer_norm: y = (x - mean) * rstd * weight + bias over the last axis, rstd = 1 / sqrt(variance + eps)."""

from __future__ import annotations

from ..backend import array_module
from ..tensor import Tensor, apply


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Gives every row of `x` mean 0 and variance 1, then scales it by `weight` and shifts it by `bias`.

    y = (x - mean) / sqrt(variance + eps) * weight + bias, mean and (biased) variance over the last axis.
    Shapes: x (..., C), weight (C,), bias (C,) -> (..., C)
    Raises ValueError where weight or bias is not (C,).
    Source: Ba, Kiros and Hinton 2016, Layer Normalization, equation 4.

    >>> layer_norm(Tensor([[1.0, 3.0]]), Tensor([1.0, 1.0]), Tensor([0.0, 10.0]), eps=0.0).numpy()
    array([[-1., 11.]], dtype=float32)
    """
    for name, a in ("weight", weight), ("bias", bias):
        if a.shape != x.shape[-1:]:
            raise ValueError(f"layer_norm: {name} must be (C,) = {x.shape[-1:]}, got {a.shape}. Is x's last axis the channels?")
    return apply(layer_norm_forward, layer_norm_backward, x, weight, bias, eps=float(eps))


def layer_norm_forward(x, weight, bias, *, eps, needs):
    centred = x - x.mean(-1, keepdims=True)                                 # (..., C)
    rstd = 1 / array_module(x).sqrt((centred * centred).mean(-1, keepdims=True) + eps)   # (..., 1)
    normalized = centred * rstd                                             # (..., C)
    y = normalized * weight + bias
    return y, (normalized if needs.x or needs.weight else None, rstd if needs.x else None, weight if needs.x else None)


def layer_norm_backward(grad, normalized, rstd, weight, *, needs):
    rows = tuple(range(grad.ndim - 1))
    grad_x = grad_weight = grad_bias = None
    if needs.x:
        g = grad * weight                                                   # (..., C), d loss / d normalized
        along = (g * normalized).mean(-1, keepdims=True) * normalized       # rescaling x changes nothing: the part of g
        grad_x = (g - g.mean(-1, keepdims=True) - along) * rstd             # along x goes, and as for shifts, its mean
    if needs.weight:
        grad_weight = (grad * normalized).sum(rows)                         # (C,)
    if needs.bias:
        grad_bias = grad.sum(rows)                                          # (C,)
    return grad_x, grad_weight, grad_bias
