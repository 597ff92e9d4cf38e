"""IA3: learned vectors that scale keys, values and what is inside the MLP; merged, they cost nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..devices import device_of, to_device
from ..nn import Linear, Module, Parameter, filled
from ..tensor import Tensor
from .freezing import freeze
from .lora import plain
from .patterns import Patterns, backbone_of, match_linear


class IA3Linear(Module):
    """y = vector * base(x), the bias scaled as well; or base(vector * x) where `feedforward`. vector starts at 1.

    vector is (out,), or (in,) where `feedforward`. At first it therefore computes what `base` does.
    Source: Liu et al. 2022, Few-shot parameter-efficient fine-tuning is better and cheaper than in-context learning, section
    3.3; the names as in PEFT.
    """

    def __init__(self, base: Any, feedforward: bool = False) -> None:
        self.base, self.feedforward = base, feedforward
        self.vector = filled((base.weight.shape[int(feedforward)],), 1.0)
        dtype = np.promote_types(self.vector.dtype, base.weight.dtype)
        self.vector.data = to_device(self.vector.data.astype(dtype), device_of(base.weight.data))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., in), residual (..., out) or None -> (..., out)"""
        vector = ops.cast(self.vector, x.dtype)
        if self.feedforward:
            return self.base(x * vector, residual)
        y = self.base(x) * vector
        return y if residual is None else y + residual

    def effective_weight(self) -> Tensor:
        """The (out, in) matrix that this layer multiplies with: rows scaled, or columns where `feedforward`."""
        return self.base.effective_weight() * (self.vector if self.feedforward else self.vector.reshape(-1, 1))

    def merged(self) -> Linear:
        """A plain Linear that computes the same: weight and bias scaled in float64, rounded once."""
        vector = self.vector.data.astype(np.float64)
        layer = plain(self.base, self.base.weight.data * (vector if self.feedforward else vector[:, None]))
        if layer.bias is not None and not self.feedforward:
            bias = self.base.bias
            layer.bias = Parameter((bias.data * vector).astype(bias.dtype), bias.decays)
            layer.bias.requires_grad = bias.requires_grad
        return layer


@dataclass(frozen=True)
class IA3Config:
    """Freezes the backbone and scales what the layers of `target_modules` give, or what those of `feedforward_modules` read.

    By default keys and values, and what is between the MLP's layers: a block trains 2 C + m numbers for m inner channels (with
    grouped heads fewer for keys and values). Both settings are patterns; the second means some of the layers that the first
    does. New heads train in full. Raises ValueError where a pattern means no linear layer, and for a model with adapted layers.
    Source: Liu et al. 2022, section 3.3.

    >>> from minitune import models, tune
    >>> gpt = models.GPT(models.GPTConfig(vocab_size=10, block_size=4, n_layer=3, n_head=2, n_embd=16))
    >>> tune.apply(gpt, IA3Config()).trainable == 3 * (2 * 16 + 4 * 16)
    True
    """

    target_modules: Patterns = ("attention.key", "attention.value", "mlp.down")
    feedforward_modules: Patterns = ("mlp.down",)

    def install(self, model: Module) -> None:
        if any(hasattr(part, "merged") for part in model.modules()):
            raise ValueError("IA3Config: the model has adapted layers already. Merge them first: tune.merge(model)")
        targets = match_linear(model, self.target_modules, "IA3Config")
        inner = match_linear(model, self.feedforward_modules, "IA3Config") if self.feedforward_modules else {}
        if wrong := [name for name in inner if name not in targets]:
            raise ValueError(f"IA3Config: feedforward_modules mean {', '.join(wrong[:4])}, which target_modules do not. Name "
                             "them in both")
        adapted = {name: IA3Linear(base, name in inner) for name, base in targets.items()}
        freeze(backbone_of(model))
        for name, layer in adapted.items():     # made before the first is put in: an error changes nothing
            model.set_part(name, layer.train(targets[name].training))
