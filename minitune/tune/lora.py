"""LoRA: a frozen linear layer W and a trained update B A of low rank beside it; merged, the update costs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite, prod, sqrt
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..devices import Array, to_device
from ..nn import Dropout, Linear, Module, Parameter, filled, uniform
from ..tensor import Tensor
from .freezing import freeze
from .patterns import Patterns, backbone_of, match_linear


class LoRALayer(Module):
    """What every low-rank update has: the `base` layer, A and B, the scale, and how it becomes a plain layer again.

    scale = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`: a larger r then does not learn more slowly. Each kind of
    layer says how A and B start and what they make of an input. Raises ValueError for a rank that does not fit.
    Source: Hu et al. 2021, LoRA, section 4.1; of 1 / sqrt(r) Kalajdzievski 2023, A rank stabilization scaling factor for
    fine-tuning with LoRA, theorem 3.2.
    """

    def __init__(self, base: Any, r: int, lora_alpha: float, lora_dropout: float = 0.0, use_rslora: bool = False) -> None:
        outputs, inputs = (shape := base.weight.shape)[0], prod(shape[1:])
        if not (isinstance(r, (int, np.integer)) and 1 <= r <= min(outputs, inputs)):
            raise ValueError(f"{type(self).__name__}: r must be from 1 to {min(outputs, inputs)} for weight {shape}, got {r!r}")
        self.base, self.use_rslora, self.scale = base, use_rslora, lora_alpha / (sqrt(r) if use_rslora else r)
        self.A, self.B = self.start(r, outputs, inputs)
        self.dropout = Dropout(lora_dropout)
        for p in self.A, self.B:                # where the layer is that they adapt
            p.data = to_device(p.data.astype(np.promote_types(p.dtype, base.weight.dtype), copy=False), base.device)

    def start(self, r: int, outputs: int, inputs: int) -> tuple[Parameter, Parameter]:
        """A (R, in), uniform, and B (out, R), 0."""
        return uniform((r, inputs), 1 / sqrt(inputs), decays=True), filled((outputs, r), 0.0, decays=True)

    def delta(self) -> Array:
        """scale * B A in float64, in the shape of the base's weight, to which it is added."""
        B, A = (p.data.astype(np.float64).reshape(len(p), -1) for p in (self.B, self.A))
        return (self.scale * (B @ A)).reshape(self.base.weight.shape)

    def merged(self) -> Module:
        """The plain layer that computes the same: summed in float64, rounded once."""
        return plain(self.base, self.base.weight.data + self.delta())


def plain(base: Any, weight: Array) -> Any:
    """A layer like `base` with another weight, in the dtype of its own; all else it shares."""
    layer = base.sharing_parameters()           # no random weights are drawn for a layer that is about to be filled
    layer.weight = Parameter(weight.astype(base.weight.dtype), base.weight.decays)
    layer.weight.requires_grad = base.weight.requires_grad
    return layer


class LoRALinear(LoRALayer):
    """y = base(x) + scale * (x A^T) B^T. A (R, in) starts uniform, B (out, R) at 0.

    At first it therefore computes exactly what `base` does.
    Source: Hu et al. 2021, LoRA, section 4.1; A starts as in its reference code, U(-1/sqrt(in), 1/sqrt(in)).
    """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., in), residual (..., out) or None -> (..., out)"""
        if self.dropout.p and self.training:    # only the update's input is dropped, so the two paths part
            return self.base(x, residual) + ops.linear(ops.linear(self.dropout(x), self.A), self.B) * self.scale
        return ops.lora_linear(x, self.base.weight, self.base.bias, self.A, self.B, residual, scale=self.scale)

    def effective_weight(self) -> Tensor:
        """W + scale * B A, the (out, in) matrix that this layer multiplies with."""
        return self.base.weight + ops.matmul(self.B, self.A) * self.scale


@dataclass(frozen=True)
class LoRAConfig:
    """Freezes the backbone and puts a LoRALinear of rank `r` in the place of its linear layers that `target_modules` mean.

    scale = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`. `target_modules` are patterns, or "all-linear".
    Embeddings and convolutions that a pattern names become a LoRAEmbedding and a LoRAConv2d. New heads train in full.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: Patterns = "all-linear"
    lora_dropout: float = 0.0
    use_rslora: bool = False
    layers: ClassVar[dict[type[Module], Any]] = {Linear: LoRALinear}        # what stands in the place of which kind of layer

    def layer(self, base: Any) -> Any:
        """The layer that stands in the place of `base`."""
        made = next(adapted for kind, adapted in self.layers.items() if isinstance(base, kind))
        return made(base, self.r, self.lora_alpha, self.lora_dropout, self.use_rslora)

    def install(self, model: Module) -> None:
        if any(hasattr(part, "merged") for part in model.modules()):
            raise ValueError(f"{type(self).__name__}: the model has adapted layers already. Merge them: tune.merge(model)")
        targets = match_linear(model, self.target_modules, type(self).__name__, tuple(self.layers))
        adapted = {name: self.layer(base) for name, base in targets.items()}
        freeze(backbone_of(model))
        for name, layer in adapted.items():     # made before the first is put in: an error changes nothing
            model.set_part(name, layer.train(targets[name].training))


@dataclass
class Certificate:
    """What `merge` did: the layers it replaced, which `unmerge` puts back, and how far the logits moved."""

    layers: dict[str, Any]
    gap: float | None           # the largest difference of a logit on the probe; None without a probe
    largest: float | None       # the largest logit on the probe, to compare the gap with
    plain: dict[str, Any] = field(default_factory=dict, repr=False)         # the layers that it put in their places

    def __str__(self) -> str:
        checked = "not probed" if self.gap is None else f"logits moved by at most {self.gap:.2g} (largest {self.largest:.3g})"
        return f"merged {len(self.layers)} adapted layers; {checked}"


def merge(model: Module, probe: Any = None, untie: bool = False) -> Certificate:
    """Replaces every adapted layer, which is one that has `merged()`, by the plain one that this makes.

    A LoRALinear becomes a Linear of weight W + scale * B A, summed in float64, rounded once.
    `probe`, a batch or ids (B, T), is run before and after, and the certificate says how far the logits moved.
    A weight that is tied to another layer is refused, unless `untie`: the merged layer then has a weight of its own, and
    the other keeps what it has. Raises ValueError for a tie, and where there is nothing to merge; RuntimeError where the
    probe's logits are not finite. Nothing is changed then.
    """
    layers: dict[str, Any] = {name: part for name, part in model.named_modules() if hasattr(part, "merged")}
    if not layers:
        raise ValueError("merge: the model has no adapted layers")
    if not untie:
        _refuse_tied(model, layers)
    before = None if probe is None else _logits(model, probe)
    certificate = Certificate(layers, None, None, {name: layer.merged() for name, layer in layers.items()})
    for name, merged in certificate.plain.items():              # all of them were made before one is put in
        merged.merged_from = type(layers[name])
        model.set_part(name, merged)
    if before is not None:
        certificate.gap = gap = float(np.abs(_logits(model, probe) - before).max())
        certificate.largest = float(np.abs(before).max())
        if not isfinite(gap):
            unmerge(model, certificate)
            raise RuntimeError("merge: the logits on the probe are not finite; nothing was merged")
    return certificate


def unmerge(model: Module, certificate: Certificate) -> None:
    """Puts the layers back that `merge` replaced: the same objects, so base weights and updates are bit-exact.

    They come where the merged ones are now, in their dtype and the model's mode. Raises ValueError, with nothing changed, where
    the layers that this merge put in are not in the model: the certificate is of another model, or of an earlier merge.
    """
    names = dict(model.named_modules())
    if missing := [name for name, merged in certificate.plain.items() if names.get(name) is not merged]:
        raise ValueError("unmerge: the certificate is of another model, or of an earlier merge; no merged layer is at "
                         f"{', '.join(missing[:4])}")
    for name, layer in certificate.layers.items():              # device, dtype and mode may have changed since
        model.set_part(name, layer.to(model.device, certificate.plain[name].dtype).train(model.training))


def _refuse_tied(model: Module, layers: dict[str, Any]) -> None:
    bases = {id(vars(layer.base).get("weight")): name for name, layer in layers.items()}
    owners = [(id(value), name) for name, part in model.named_modules() for value in vars(part).values()
              if isinstance(value, Parameter)]
    for base, name in bases.items():
        if others := [owner for weight, owner in owners if weight == base and owner != f"{name}.base"]:
            raise ValueError(f"merge: the weight of {name} is tied to {', '.join(others)}, which would no longer share "
                             "it. Merge with untie=True, or give one of them a copy of its own first")


def _logits(model: Module, probe: Any) -> np.ndarray:
    with model.evaluating():
        return model(probe).numpy()
