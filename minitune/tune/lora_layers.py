"""LoRA on embeddings and convolutions, where a pattern of LoRAConfig names them. Linear layers: lora.py."""

from __future__ import annotations

from math import sqrt

import numpy as np

from .. import ops
from ..devices import Array
from ..nn import Conv2d, Embedding, Parameter, filled, normal, uniform
from ..tensor import Tensor
from .lora import LoRAConfig, LoRALayer


class LoRAEmbedding(LoRALayer):
    """y = base(ids) + scale * (A^T)[ids] B^T. A (R, V) starts at 0, B (C, R) normal with deviation 1; nothing is dropped out.

    At first it therefore computes exactly what `base` does. An output matrix that is tied to the embedding is the sum too: the
    logits are x effective_weight()^T, with gradients from both ends, so the tie holds in training and merging alike. PEFT,
    unless told `ensure_weight_tying`, leaves the output as it was.
    Source: Hu et al. 2021, LoRA, section 4.1, and the Embedding of its published code.
    """

    def start(self, r: int, outputs: int, inputs: int) -> tuple[Parameter, Parameter]:
        """A (R, V), 0, and B (C, R), normal: `outputs` is the number V of the table's rows, `inputs` their length C."""
        return filled((r, outputs), 0.0), normal((inputs, r), 1.0)

    def forward(self, ids: Array) -> Tensor:
        """ids (...) integers -> (..., C)"""
        low = ops.cast(ops.embedding(ops.transpose(self.A), ids), self.base.dtype)      # (..., R)
        return self.base(ids) + ops.linear(low, self.B) * self.scale

    def effective_weight(self) -> Tensor:
        """W + scale * (B A)^T, the (V, C) table, which a tied head multiplies with."""
        return self.base.weight + ops.transpose(ops.matmul(self.B, self.A)) * self.scale

    def delta(self) -> Array:
        """scale * (B A)^T in float64, (V, C)."""
        return self.scale * (self.B.data.astype(np.float64) @ self.A.data.astype(np.float64)).T


class LoRAConv2d(LoRALayer):
    """y = base(x) + scale * conv(conv(x, A), B): A (R, C, k, k) as `base` with R filters, B (F, R, 1, 1) from these to its F.

    A starts uniform within 1 / sqrt(C k^2), B at 0, so that at first it computes exactly what `base` does.
    Source: Hu et al. 2021, LoRA, section 4.1, of filters as rows of a matrix (F, C k^2); in two convolutions as in PEFT.
    """

    def start(self, r: int, outputs: int, inputs: int) -> tuple[Parameter, Parameter]:
        """A (R, C, k, k), uniform, and B (F, R, 1, 1), 0."""
        A = uniform((r, *self.base.weight.shape[1:]), 1 / sqrt(inputs), decays=True)
        return A, filled((outputs, r, 1, 1), 0.0, decays=True)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, F, OH, OW)"""
        dropped = self.dropout(ops.cast(x, self.base.dtype))
        low = ops.conv2d(dropped, self.A, None, self.base.stride, self.base.padding)    # (B, R, OH, OW)
        return self.base(x) + ops.conv2d(low, self.B) * self.scale

    def effective_weight(self) -> Tensor:
        """W + scale * B A, the (F, C, k, k) filters that this layer computes with."""
        update = ops.matmul(self.B.reshape(*self.B.shape[:2]), self.A.reshape(len(self.A), -1))     # (F, C k k)
        return self.base.weight + update.reshape(self.base.weight.shape) * self.scale


LoRAConfig.layers |= {Embedding: LoRAEmbedding, Conv2d: LoRAConv2d}
