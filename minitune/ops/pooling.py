"""Pooling of images: the largest element, or the mean, of every window."""

from __future__ import annotations

import numpy as np

from ..backend import array_module
from ..tensor import Tensor, apply
from .checks import BOTH, check_int
from .conv2d import check_window, shifts


def max_pool2d(x: Tensor, kernel_size: int, stride: int | None = None) -> Tensor:
    """y[b, c, i, j] = the largest x[b, c, i * stride + u, j * stride + v], u and v from 0 to kernel_size - 1.

    `stride` is `kernel_size` unless given: windows side by side. The first of equal elements takes the gradient. Rows and
    columns at the end that fill no window are left out.
    Shapes: x (B, C, H, W) -> (B, C, (H - kernel_size) // stride + 1, likewise W)
    Raises ValueError where x has other axes or is smaller than a window, or `kernel_size` or `stride` is no int.

    >>> max_pool2d(Tensor([[[[1.0, 5.0, 2.0], [3.0, 4.0, 0.0]]]]), 2).numpy()
    array([[[[5.]]]], dtype=float32)
    """
    return apply(max_pool2d_forward, max_pool2d_backward, x, **_settings("max_pool2d", x, kernel_size, stride))


def avg_pool2d(x: Tensor, kernel_size: int, stride: int | None = None) -> Tensor:
    """y[b, c, i, j] = the mean of x[b, c, i * stride + u, j * stride + v], u and v from 0 to kernel_size - 1.

    `stride` is `kernel_size` unless given. Shapes and errors as for max_pool2d.

    >>> avg_pool2d(Tensor([[[[1.0, 5.0, 2.0], [3.0, 3.0, 0.0]]]]), 2).numpy()
    array([[[[3.]]]], dtype=float32)
    """
    return apply(avg_pool2d_forward, avg_pool2d_backward, x, **_settings("avg_pool2d", x, kernel_size, stride))


def _settings(name: str, x: Tensor, kernel_size: int, stride: int | None) -> dict[str, int]:
    """What forward is told, once shapes fit."""
    if len(x.shape) != 4:
        raise ValueError(f"{name}: expected x (B, C, H, W), got {x.shape}. Grey images have C = 1: images[:, None]")
    check_int(name, "kernel_size", kernel_size, 1, BOTH)
    stride = kernel_size if stride is None else stride
    check_window(name, x.shape[2:], (kernel_size, kernel_size), stride)
    return {"kernel_size": int(kernel_size), "stride": stride}             # np.int64 would widen float32


def max_pool2d_forward(x, *, kernel_size, stride, needs):
    first, *others = shifts(x.shape[2:], (kernel_size, kernel_size), stride)
    number = np.min_scalar_type(kernel_size**2).type                        # a byte, for windows up to 15
    y = x[first]                                                            # (B, C, OH, OW)
    winner = array_module(x).zeros(y.shape, number)
    for place, shift in enumerate(others, 1):
        winner = array_module(x).maximum(winner, (x[shift] > y) * number(place))
        y = array_module(x).maximum(y, x[shift])
    return y, (winner, x.shape, kernel_size, stride)


def max_pool2d_backward(grad, winner, shape, kernel_size, stride, *, needs):
    grad_x = array_module(grad).zeros(shape, grad.dtype)
    for place, shift in enumerate(shifts(shape[2:], (kernel_size, kernel_size), stride)):
        grad_x[shift] += grad * (winner == place)
    return (grad_x,)


def avg_pool2d_forward(x, *, kernel_size, stride, needs):
    y = sum(x[shift] for shift in shifts(x.shape[2:], (kernel_size, kernel_size), stride)) / kernel_size**2
    return y, (x.shape, kernel_size, stride)


def avg_pool2d_backward(grad, shape, kernel_size, stride, *, needs):
    grad_x = array_module(grad).zeros(shape, grad.dtype)
    for shift in shifts(shape[2:], (kernel_size, kernel_size), stride):
        grad_x[shift] += grad / kernel_size**2
    return (grad_x,)
