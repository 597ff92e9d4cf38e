"""DoRA: LoRA for the direction of each row of a weight, and a trained number for its length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..devices import Array, array_module
from ..nn import Linear, Module, Parameter
from ..tensor import Tensor, no_grad
from .lora import LoRAConfig, LoRALinear, plain


class DoRALinear(LoRALinear):
    """y = x W'^T + bias + residual, W' = m * V / |V|, V = W + scale * B A, |V| the Euclidean length of each row of V.

    A (R, in) and B (out, R) as in LoRALinear. `magnitude` m (out,) starts as |W|, so that at first the layer computes what
    `base` does. |V| follows V but counts as a constant in the gradient, as the paper's section 4.3 has it. While training with
    dropout the trained part, W' - W, reads the dropped input, as in PEFT. A row of zeros has no direction: it stays 0.
    Source: Liu et al. 2024, DoRA: Weight-decomposed low-rank adaptation, equations 5 and 11; rows, for weights are (out, in).
    """

    def __init__(self, base: Linear, r: int, lora_alpha: float, lora_dropout: float = 0.0, use_rslora: bool = False) -> None:
        super().__init__(base, r, lora_alpha, lora_dropout, use_rslora)
        self.magnitude = Parameter(row_norms(base.weight.data).astype(self.A.dtype))

    def gain(self) -> Tensor:
        """m / |V|, by which each output of V is scaled: (out,)."""
        with no_grad():                         # |V| is a constant in the gradient
            V = super().effective_weight().data
        return self.magnitude * (1 / row_norms(V)).astype(self.A.dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., in), residual (..., out) or None -> (..., out)"""
        gain, W, bias = self.gain(), self.base.weight, self.base.bias
        if self.dropout.p and self.training:
            x_dropped = self.dropout(x)
            update = ops.linear(ops.linear(x_dropped, self.A), self.B) * (gain * self.scale)
            return self.base(x, residual) + ops.linear(x_dropped, W) * (gain - 1) + update
        y = ops.lora_linear(x, W, None, self.A, self.B, scale=self.scale) * gain
        y = y if bias is None else y + bias
        return y if residual is None else y + residual

    def effective_weight(self) -> Tensor:
        """m * V / |V|, the (out, in) matrix that this layer multiplies with."""
        return super().effective_weight() * self.gain()[:, None]

    def merged(self) -> Module:
        """The plain layer that computes the same: W' in float64, rounded once."""
        V = self.base.weight.data + self.delta()
        return plain(self.base, (self.magnitude.data / row_norms(V))[:, None] * V)


def row_norms(weight: Array) -> Array:
    """The Euclidean length of each row, in float64; never 0, so that it can be divided by."""
    squares = array_module(weight).einsum("oi,oi->o", weight, weight, dtype=np.float64)
    return np.maximum(squares, np.finfo(np.float64).tiny) ** 0.5


@dataclass(frozen=True)
class DoRAConfig(LoRAConfig):
    """LoRA by `DoRALinear`s: `magnitude` trains beside A and B, out more numbers a layer. The fields are those of LoRAConfig.

    Linear layers alone are adapted.
    """

    layers: ClassVar[dict[type[Module], Any]] = {Linear: DoRALinear}
