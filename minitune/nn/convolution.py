"""The convolutional layer."""

from __future__ import annotations

from math import sqrt

from .. import ops
from ..ops.checks import BOTH, check_int
from ..tensor import Tensor
from .module import Module
from .parameter import Parameter, filled, normal


class Conv2d(Module):
    """Filters of k x k over images, k = kernel_size. weight (F, C, k, k), bias (F,).

    Weights start normal with deviation `std`, unless given sqrt(2 / (C k^2)), which keeps the size of numbers from layer to
    layer of relu; the bias starts at 0. Raises ValueError where a size is no int of at least 1.
    Source: He et al. 2015, Delving deep into rectifiers, equation 10.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1, padding: int = 0, bias: bool = True,
                 std: float | None = None) -> None:
        check_int("Conv2d", "inputs", inputs)
        check_int("Conv2d", "outputs", outputs)
        check_int("Conv2d", "kernel_size", kernel_size, use=BOTH)
        std = sqrt(2 / (inputs * kernel_size**2)) if std is None else std
        self.weight = normal((outputs, inputs, kernel_size, kernel_size), std, decays=True)
        self.bias: Parameter | None = filled((outputs,), 0.0) if bias else None
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, F, OH, OW)"""
        return ops.conv2d(ops.cast(x, self.dtype), self.weight, self.bias, self.stride, self.padding)
