"""LoRA: a frozen linear layer W and a trained update B A of low rank beside it; merged, the update costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

import numpy as np

from .. import ops
from ..devices import device_of, to_device
from ..nn import Dropout, Linear, Module, Parameter, filled, uniform
from ..tensor import Tensor
from .freezing import freeze
from .patterns import Patterns, backbone_of, match_linear


class LoRALinear(Module):
    """y = base(x) + scale * (x A^T) B^T, scale = lora_alpha / r. A (R, in) starts uniform, B (out, R) at 0.

    At first it therefore computes exactly what `base` does.
    Source: Hu et al. 2021, LoRA, section 4.1; A starts as in its reference code, U(-1/sqrt(in), 1/sqrt(in)).
    """

    def __init__(self, base: Linear, r: int, lora_alpha: float, lora_dropout: float = 0.0) -> None:
        outputs, inputs = base.weight.shape
        if not 1 <= r <= min(outputs, inputs):
            raise ValueError(f"LoRALinear: r must be from 1 to {min(outputs, inputs)} for weight {base.weight.shape}, got {r}")
        self.base, self.scale = base, lora_alpha / r
        self.A = uniform((r, inputs), 1 / sqrt(inputs), decays=True)
        self.B = filled((outputs, r), 0.0, decays=True)
        self.dropout = Dropout(lora_dropout)
        for p in self.A, self.B:                # where the layer is that they adapt
            p.data = to_device(p.data.astype(np.promote_types(p.dtype, base.weight.dtype)), device_of(base.weight.data))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., in), residual (..., out) or None -> (..., out)"""
        if self.dropout.p and self.training:    # only the update's input is dropped, so the two paths part
            low = ops.linear(self.dropout(x), self.A)
            return self.base(x, residual) + ops.linear(low, self.B) * self.scale
        return ops.lora_linear(x, self.base.weight, self.base.bias, self.A, self.B, residual, scale=self.scale)

    def effective_weight(self) -> Tensor:
        """W + scale * B A, the (out, in) matrix that this layer multiplies with."""
        return self.base.weight + ops.matmul(self.B, self.A) * self.scale


@dataclass(frozen=True)
class LoRAConfig:
    """Freezes the backbone and puts a LoRALinear of rank `r` in the place of its linear layers that `target_modules` mean.

    scale = lora_alpha / r. `target_modules` are patterns, or "all-linear". New heads train in full.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: Patterns = "all-linear"
    lora_dropout: float = 0.0

    def install(self, model: Module) -> None:
        if any(isinstance(part, LoRALinear) for _, part in model.named_modules()):
            raise ValueError("LoRAConfig: the model has LoRA layers already. Merge them first: tune.merge(model)")
        targets = match_linear(model, self.target_modules, "LoRAConfig")
        adapted = {name: LoRALinear(base, self.r, self.lora_alpha, self.lora_dropout) for name, base in targets.items()}
        freeze(backbone_of(model))
        for name, layer in adapted.items():     # made before the first is put in: an error changes nothing
            model.set_part(name, layer)


@dataclass
class Certificate:
    """What `merge` did: the layers it replaced, which `unmerge` puts back, and how far the logits moved."""

    layers: dict[str, LoRALinear]
    gap: float | None           # the largest difference of a logit on the probe; None without a probe
    largest: float | None       # the largest logit on the probe, to compare the gap with

    def __str__(self) -> str:
        checked = "not probed" if self.gap is None else f"logits moved by at most {self.gap:.2g} (largest {self.largest:.3g})"
        return f"merged {len(self.layers)} LoRA layers; {checked}"


def merge(model: Module, probe: Any = None) -> Certificate:
    """Replaces every LoRALinear by a plain Linear of weight W + scale * B A, summed in float64, rounded once.

    `probe`, a batch or ids (B, T), is run before and after, and the certificate says how far the logits moved.
    Raises ValueError where there is nothing to merge, or where a weight is tied to another layer, which merging would
    change as well; RuntimeError where the probe's logits are not finite. Nothing is changed then.
    """
    layers = {name: part for name, part in model.named_modules() if isinstance(part, LoRALinear)}
    if not layers:
        raise ValueError("merge: the model has no LoRA layers")
    _refuse_tied(model, layers)
    before = None if probe is None else _logits(model, probe)
    for name, layer in layers.items():
        model.set_part(name, _merged(layer))
    certificate = Certificate(layers, None, None)
    if before is not None:
        certificate.gap = float(np.abs(_logits(model, probe) - before).max())
        certificate.largest = float(np.abs(before).max())
        if not isfinite(certificate.gap):
            unmerge(model, certificate)
            raise RuntimeError("merge: the logits on the probe are not finite; nothing was merged")
    return certificate


def unmerge(model: Module, certificate: Certificate) -> None:
    """Puts the layers back that `merge` replaced: the same objects, so base weights and updates are bit-exact."""
    names = dict(model.named_modules())
    missing = [name for name in certificate.layers if not isinstance(names.get(name), Linear)]
    if missing:
        raise ValueError(f"unmerge: the certificate is of another model; no merged layer is at {', '.join(missing[:4])}")
    for name, layer in certificate.layers.items():
        model.set_part(name, layer.train(model.training))   # the model's mode may have changed since


def _merged(layer: LoRALinear) -> Linear:
    update = layer.scale * (layer.B.data.astype(np.float64) @ layer.A.data.astype(np.float64))
    plain = Linear.__new__(Linear)              # no random weights are drawn for a layer that is about to be filled
    plain.weight = Parameter((layer.base.weight.data + update).astype(layer.base.weight.dtype), decays=True)
    plain.weight.requires_grad = layer.base.weight.requires_grad
    plain.bias = layer.base.bias
    return plain


def _refuse_tied(model: Module, layers: dict[str, LoRALinear]) -> None:
    bases = {id(layer.base.weight): name for name, layer in layers.items()}
    owners = [(id(value), name) for name, part in model.named_modules() for value in vars(part).values()
              if isinstance(value, Parameter)]
    for base, name in bases.items():
        others = [owner for weight, owner in owners if weight == base and owner != f"{name}.base"]
        if others:
            raise ValueError(f"merge: the weight of {name} is tied to {', '.join(others)}, which would no longer share "
                             "it. Give one of them a copy of its own first")


def _logits(model: Module, probe: Any) -> np.ndarray:
    with model.evaluating():
        return model(probe).numpy()
