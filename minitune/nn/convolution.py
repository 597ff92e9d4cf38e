"""The convolutional layer."""

from __future__ import annotations

from math import sqrt

from .. import ops
from ..tensor import Tensor
from .module import Module
from .parameter import Parameter, filled, normal


class Conv2d(Module):
    """Filters of size x size over images. weight (F, C, size, size), bias (F,).

    Weights start normal with deviation `std`, unless given sqrt(2 / (C size^2)), which keeps the size of numbers from layer to
    layer of relu; the bias starts at 0. Source: He et al. 2015, Delving deep into rectifiers, equation 10.
    """

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0, bias: bool = True,
                 std: float | None = None) -> None:
        std = sqrt(2 / (inputs * size**2)) if std is None else std
        self.weight = normal((outputs, inputs, size, size), std, decays=True)
        self.bias: Parameter | None = filled((outputs,), 0.0) if bias else None
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, F, OH, OW)"""
        return ops.conv2d(x, self.weight, self.bias, self.stride, self.padding)
