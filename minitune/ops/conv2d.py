"""conv2d: every window of an image times every filter, as one matrix product of gathered windows."""

from __future__ import annotations

from typing import Any

from ..backend import Array, array_module
from ..backend import matmul as product
from ..tensor import Tensor, apply
from .checks import BOTH, check_int


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """y[b, f, i, j] = bias[f] + sum of weight[f, c, u, v] * x[b, c, i * stride + u - padding, j * stride + v - padding].

    The sum is over channels c and places u, v of the filter; outside the image x is 0. As everywhere in deep learning this is
    a correlation: the filter is not flipped. Letters: F filters, h and w their height and width.
    Shapes: x (B, C, H, W), weight (F, C, h, w), bias (F,) or None -> (B, F, (H + 2 padding - h) // stride + 1, likewise W)
    Raises ValueError where shapes do not fit, the filter is larger than the padded image, or `stride` or `padding` is no int.
    Source: LeCun et al. 1989, Backpropagation applied to handwritten zip code recognition; as a product of matrices:
    Chellapilla, Puri and Simard 2006, High performance convolutional neural networks for document processing, section 2.

    >>> conv2d(Tensor([[[[1.0, 2.0, 4.0]]]]), Tensor([[[[-1.0, 1.0]]]])).numpy()
    array([[[[1., 2.]]]], dtype=float32)
    """
    if len(x.shape) != 4 or len(weight.shape) != 4 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"conv2d: expected x (B, C, H, W) and weight (F, C, h, w), got {x.shape} and {weight.shape}. Grey "
                         "images have C = 1: images[:, None]")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"conv2d: bias must be (F,) = {weight.shape[:1]}, got {bias.shape}")
    if not x.shape[1] or not len(weight):
        raise ValueError(f"conv2d: expected at least one channel and one filter, got x {x.shape} and weight {weight.shape}")
    check_int("conv2d", "padding", padding, 0, BOTH)
    lengths = x.shape[2] + 2 * padding, x.shape[3] + 2 * padding
    check_window("conv2d", lengths, weight.shape[2:], stride)
    return apply(conv2d_forward, conv2d_backward, x, weight, bias, stride=stride, padding=padding)


def check_window(name: str, lengths: tuple[int, ...], size: tuple[int, ...], stride: int) -> None:
    """At least one window must fit into the (padded) image."""
    check_int(name, "stride", stride, 1, BOTH)
    if not all(1 <= n <= length for n, length in zip(size, lengths, strict=True)):
        raise ValueError(f"{name}: a window of {size[0]} x {size[1]} does not fit in an image of {lengths[0]} x {lengths[1]}. "
                         "Give larger images or padding, or fewer layers that shrink them")


def shifts(lengths: tuple[int, int], size: tuple[int, int], stride: int) -> list[tuple[Any, ...]]:
    """For each place in a window the index of the elements that stand there, over all windows: (..., rows, columns)."""
    (H, W), (h, w) = lengths, size
    return [(..., slice(u, u + H - h + 1, stride), slice(v, v + W - w + 1, stride)) for u in range(h) for v in range(w)]


def conv2d_forward(x, weight, bias, *, stride, padding, needs):
    F, _, *size = weight.shape
    columns = _gather(x, size, stride, padding)                             # (C, h w, B, OH, OW)
    y = product(weight.reshape(F, -1), columns.reshape(weight[0].size, -1))         # (F, B OH OW)
    if bias is not None:
        y += bias[:, None]
    y = y.reshape(F, *columns.shape[2:]).swapaxes(0, 1)                     # (B, F, OH, OW)
    return y, (columns if needs.weight else None, weight if needs.x else None, weight.shape, x.shape, stride, padding)


def conv2d_backward(grad, columns, weight, weight_shape, x_shape, stride, padding, *, needs):
    grad_x = grad_weight = grad_bias = None
    F, C, h, w = weight_shape
    rows = grad.swapaxes(0, 1).reshape(F, -1)                               # (F, B OH OW)
    if needs.x:
        grad_columns = product(weight.reshape(F, -1).T, rows).reshape(C, h * w, len(grad), *grad.shape[2:])
        grad_x = _scatter(grad_columns, (h, w), x_shape[2:], stride, padding)
    if needs.weight:
        grad_weight = product(rows, columns.reshape(C * h * w, -1).T).reshape(weight_shape)
    if needs.bias:
        grad_bias = rows.sum(1)
    return grad_x, grad_weight, grad_bias


def _gather(x: Array, size: tuple[int, int], stride: int, padding: int) -> Array:
    """The elements of every window: x (B, C, H, W) -> (C, h w, B, OH, OW)"""
    x = array_module(x).pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    return array_module(x).stack([x[shift].swapaxes(0, 1) for shift in shifts(x.shape[2:], size, stride)], 1)


def _scatter(columns: Array, size: tuple[int, int], lengths: tuple[int, int], stride: int, padding: int) -> Array:
    """Adds every element to where `_gather` took it: (C, h w, B, OH, OW) -> (B, C, H, W)"""
    (C, _, B), (H, W) = columns.shape[:3], lengths
    x = array_module(columns).zeros((C, B, H + 2 * padding, W + 2 * padding), columns.dtype)
    for place, shift in enumerate(shifts(x.shape[2:], size, stride)):
        x[shift] += columns[:, place]
    return x[..., padding : padding + H, padding : padding + W].swapaxes(0, 1)
