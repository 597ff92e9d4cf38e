"""conv2d a few images at a time: their windows are gathered in the core's cache, multiplied and forgotten, not kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...backend import Array
from ...cores import share
from .compiled import LEAST, compiled, not_float32

BLOCK = 1 << 18         # numbers of gathered windows: a megabyte


@compiled
def _gather(padded, columns, w, stride):
    """padded (C, n, H, W) -> columns (C, h w, n, OH, OW)"""
    C, places, n, OH, OW = columns.shape
    for c in range(C):
        for place in range(places):
            for b in range(n):
                for i in range(OH):
                    source, target = padded[c, b, i * stride + place // w, place % w :], columns[c, place, b, i]
                    if stride == 1:             # a loop over neighbours uses vectors
                        for j in range(OW):
                            target[j] = source[j]
                    else:
                        for j in range(OW):
                            target[j] = source[j * stride]


@compiled
def _scatter(columns, padded, w, stride):
    """columns (C, h w, n, OH, OW) are added up where they were gathered: padded (C, n, H, W)"""
    C, places, n, OH, OW = columns.shape
    for c in range(C):
        for place in range(places):
            for b in range(n):
                for i in range(OH):
                    source, target = columns[c, place, b, i], padded[c, b, i * stride + place // w, place % w :]
                    if stride == 1:
                        for j in range(OW):
                            target[j] += source[j]
                    else:
                        for j in range(OW):
                            target[j * stride] += source[j]


class _Blocks:
    """Cuts a batch into blocks of images, with room for the padded images and the windows of one block."""

    def __init__(self, x_shape, weight_shape, y_shape, stride, padding) -> None:
        (B, C, H, W), (_, _, h, self.w), (*_, OH, OW) = x_shape, weight_shape, y_shape
        self.n = max(1, min(B, BLOCK // (C * h * self.w * OH * OW)))
        self.padded = np.zeros((C, self.n, H + 2 * padding, W + 2 * padding), np.float32)      # around the images it stays 0
        self.columns = np.empty(C * h * self.w * self.n * OH * OW, np.float32)
        self.inner = ..., slice(padding, padding + H), slice(padding, padding + W)
        self.shape, self.stride = (C, h * self.w, OH, OW), stride

    def between(self, start: int, stop: int) -> Iterator[tuple[slice, Array]]:
        """(images, room for their windows (C, h w, n, OH, OW)) of each block."""
        C, places, OH, OW = self.shape
        for first in range(start, stop, self.n):
            n = min(self.n, stop - first)
            yield slice(first, first + n), self.columns[: C * places * n * OH * OW].reshape(C, places, n, OH, OW)

    def gather(self, x: Array, columns: Array) -> None:
        """x (n, C, H, W) -> columns"""
        self.padded[:, : len(x)][self.inner] = x.swapaxes(0, 1)
        _gather(self.padded, columns, self.w, self.stride)

    def scatter(self, columns: Array, x: Array) -> None:
        """columns, added up -> x (n, C, H, W)"""
        summed = np.zeros((len(self.padded), len(x), *self.padded.shape[2:]), np.float32)
        _scatter(columns, summed, self.w, self.stride)
        x[:] = summed[self.inner].swapaxes(0, 1)


def conv2d_unsupported(x, weight, bias, *, stride, padding):
    return not_float32(x, weight, bias)


def conv2d_forward(x, weight, bias, *, stride, padding, needs):
    (B, _, H, W), (F, _, h, w) = x.shape, weight.shape
    y = np.empty((B, F, (H + 2 * padding - h) // stride + 1, (W + 2 * padding - w) // stride + 1), np.float32)
    matrix, offset = weight.reshape(F, -1), np.float32(0) if bias is None else bias[:, None, None, None]

    def part(start, stop):
        blocks = _Blocks(x.shape, weight.shape, y.shape, stride, padding)
        for images, columns in blocks.between(start, stop):
            blocks.gather(x[images], columns)
            product = matrix @ columns.reshape(matrix.shape[1], -1)         # (F, n OH OW)
            np.add(product.reshape(F, -1, *y.shape[2:]), offset, out=y[images].swapaxes(0, 1))

    share(part, B, LEAST * max(B, 1) // max(y.size, 1))
    return y, (x if needs.weight else None, weight if needs.x else None, x.shape, weight.shape, stride, padding)


def conv2d_backward(grad, x, weight, x_shape, weight_shape, stride, padding, *, needs):
    B, F = grad.shape[:2]
    grad_x = np.empty(x_shape, np.float32) if needs.x else None
    transposed = weight.reshape(F, -1).T if needs.x else None               # (C h w, F)
    parts = {}                                                              # {first image: what a core summed up}

    def part(start, stop):
        blocks = _Blocks(x_shape, weight_shape, grad.shape, stride, padding)
        of_weight, of_bias = np.zeros((F, blocks.shape[0] * blocks.shape[1]), np.float32), np.zeros(F, np.float32)
        for images, columns in blocks.between(start, stop):
            rows = grad[images].swapaxes(0, 1).reshape(F, -1)               # (F, n OH OW)
            flat = columns.reshape(of_weight.shape[1], -1)                  # (C h w, n OH OW)
            if needs.weight:
                blocks.gather(x[images], columns)
                of_weight += rows @ flat.T
            if needs.bias:
                of_bias += rows.sum(1)
            if needs.x:
                np.matmul(transposed, rows, out=flat)
                blocks.scatter(columns, grad_x[images])
        parts[start] = of_weight, of_bias

    share(part, B, LEAST * max(B, 1) // max(grad.size, 1))
    of_weight, of_bias = (sum(parts[start][i] for start in sorted(parts)) for i in (0, 1))
    return grad_x, of_weight.reshape(weight_shape) if needs.weight else None, of_bias if needs.bias else None
