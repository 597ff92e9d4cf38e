"""The layers with parameters of their own: Linear, Embedding, LayerNorm, RMSNorm; and Dropout."""

from __future__ import annotations

from .. import ops
from ..backend import Array
from ..tensor import Tensor
from .module import Module
from .parameter import Parameter, filled, normal


class Linear(Module):
    """y = x weight^T + bias + residual. weight (out, in), bias (out,).

    Weights start normal with deviation `std`, the bias at 0.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True, std: float = 0.02) -> None:
        self.weight = normal((outputs, inputs), std, decays=True)
        self.bias: Parameter | None = filled((outputs,), 0.0) if bias else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., in), residual (..., out) or None -> (..., out)"""
        return ops.linear(x, self.weight, self.bias, residual)

    def effective_weight(self) -> Tensor:
        """The (out, in) matrix this layer multiplies with. A layer that adapts another gives the sum of both."""
        return self.weight


class Embedding(Module):
    """A row of weight (V, C) for every id, in the dtype of the model's activations."""

    def __init__(self, rows: int, channels: int, std: float = 0.02) -> None:
        self.weight = normal((rows, channels), std)

    def forward(self, ids: Array) -> Tensor:
        """ids (...) integers -> (..., C)"""
        return ops.cast(ops.embedding(self.weight, ids), self.dtype)

    def effective_weight(self) -> Tensor:
        """The (V, C) table, which a tied head multiplies with."""
        return self.weight


class LayerNorm(Module):
    """Layer normalisation over the last axis. weight (C,) starts at 1, bias (C,) at 0."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        self.weight, self.bias, self.eps = filled((channels,), 1.0), filled((channels,), 0.0), eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., C)"""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(Module):
    """Root mean square normalisation over the last axis. weight (C,) starts at 1."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        self.weight, self.eps = filled((channels,), 1.0), eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., C)"""
        return ops.rms_norm(x, self.weight, self.eps)


class Dropout(Module):
    """Drops elements with probability p while training, and nothing in evaluation."""

    def __init__(self, p: float) -> None:
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p) if self.training and self.p else x
