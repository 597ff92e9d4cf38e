"""softmax: y = e^x / sum(e^x) over the last axis."""

from __future__ import annotations

from ..backend import array_module
from ..tensor import Tensor, apply


def softmax(x: Tensor) -> Tensor:
    """y = e^x / sum(e^x) over the last axis: positive numbers that add up to 1. Shapes: x (..., C) -> (..., C)

    >>> softmax(Tensor([0.0, 0.0])).numpy()
    array([0.5, 0.5], dtype=float32)
    """
    if not x.shape:
        raise ValueError("softmax: expected at least one axis, got a scalar")
    return apply(softmax_forward, softmax_backward, x)


def softmax_forward(x, *, needs):
    y = array_module(x).exp(x - x.max(-1, keepdims=True))                   # the shift changes nothing but overflow
    y /= y.sum(-1, keepdims=True)
    return y, (y,)


def softmax_backward(grad, y, *, needs):
    return (y * (grad - (grad * y).sum(-1, keepdims=True)),)
