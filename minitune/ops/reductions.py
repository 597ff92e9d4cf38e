"""Operations that sum up one or more axes: sum, mean, max."""

from __future__ import annotations

from math import prod
from typing import Any

from ..backend import Array, array_module
from ..tensor import Tensor, apply

Axis = int | tuple[int, ...] | None


def _axes(operation: str, x: Tensor, axis: Axis) -> tuple[int, ...]:
    """The axes as a tuple of numbers from 0; None means all of them."""
    asked = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    if any(not -x.ndim <= a < x.ndim for a in asked) or len({a % x.ndim for a in asked}) != len(tuple(asked)):
        raise ValueError(f"{operation}: axis must name different axes of shape {x.shape}, got {axis}")
    return tuple(a % x.ndim for a in asked)


def _spread(grad: Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """Gives a reduced array its lost axes back, with length 1."""
    return grad.reshape([1 if axis in axes else length for axis, length in enumerate(shape)])


def sum(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """y = sum of x over `axis` (a number, a tuple, or None for all).

    >>> sum(Tensor([[1.0, 2.0], [3.0, 4.0]]), axis=0).numpy()
    array([4., 6.], dtype=float32)
    """
    return apply(sum_forward, sum_backward, x, axes=_axes("sum", x, axis), keepdims=keepdims)


def sum_forward(x, *, axes, keepdims, needs):
    return x.sum(axes, keepdims=keepdims), (x.shape, axes)


def sum_backward(grad, shape, axes, *, needs):
    return (array_module(grad).broadcast_to(_spread(grad, shape, axes), shape),)


def mean(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """y = mean of x over `axis` (a number, a tuple, or None for all)."""
    axes = _axes("mean", x, axis)
    if not prod(x.shape[a] for a in axes):
        raise ValueError(f"mean: nothing to average along axis {axis} of shape {x.shape}")
    return apply(mean_forward, mean_backward, x, axes=axes, keepdims=keepdims)


def mean_forward(x, *, axes, keepdims, needs):
    return x.mean(axes, keepdims=keepdims), (x.shape, axes)


def mean_backward(grad, shape, axes, *, needs):
    grad = grad / prod(shape[axis] for axis in axes)
    return (array_module(grad).broadcast_to(_spread(grad, shape, axes), shape),)


def max(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """y = largest element of x over `axis`; elements that share the maximum share its gradient in equal parts."""
    return apply(max_forward, max_backward, x, axes=_axes("max", x, axis), keepdims=keepdims)


def max_forward(x, *, axes, keepdims, needs):
    top = x.max(axes, keepdims=True)
    return top if keepdims else top.reshape([n for a, n in enumerate(x.shape) if a not in axes]), (x == top, axes)


def max_backward(grad, is_top, axes, *, needs):
    share = is_top / is_top.sum(axes, keepdims=True, dtype=grad.dtype)
    return ((_spread(grad, is_top.shape, axes) * share).astype(grad.dtype, copy=False),)


def logsumexp(x: Any) -> Any:
    """log(sum(e^x)) over the last axis of an array, kept as an axis of length 1; safe from overflow."""
    xp = array_module(x)
    top = x.max(-1, keepdims=True)
    return top + xp.log(xp.exp(x - top).sum(-1, keepdims=True))
