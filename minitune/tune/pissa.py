"""PiSSA: LoRA that trains the strongest directions of a weight itself, and freezes what is left of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..devices import Array, array_module, to_device
from ..formats.peft import fingerprint
from ..nn import Linear, Module
from .lora import LoRAConfig, LoRALinear, plain
from .patterns import backbone_of


def weight_fingerprint(weight: Array) -> str:
    """16 hex digits that tell a weight from others, whatever it is called, in float32 or float64."""
    return fingerprint({"weight": to_device(weight, "cpu")})[:16]


class PiSSALinear(LoRALinear):
    """y = x (W_rest + scale * B A)^T + bias. B = U sqrt(S / scale), A = sqrt(S / scale) V^T, W_rest = W - scale * B A.

    U (out, R), S (R,), V (in, R) are the largest R of the singular values of W and their vectors. At first the layer computes
    what the given one does, but for rounding. `base` becomes a frozen layer with W_rest (out, in), a Parameter of its own: W,
    which other models may share, stays as it is; `made_of` is its fingerprint. `start_A` and `start_B` remember where A and B
    began. Where W has no numbers (`nn.shapes_only`), A and B keep LoRA's start.
    Source: Meng et al. 2024, PiSSA: Principal singular values and singular vectors adaptation, equations 2 to 4.
    """

    made_of: str = ""

    def __init__(self, base: Linear, r: int, lora_alpha: float, lora_dropout: float = 0.0, use_rslora: bool = False) -> None:
        if not lora_alpha > 0:
            raise ValueError(f"PiSSALinear: lora_alpha must be above 0, for A and B start as W / scale, got {lora_alpha}")
        super().__init__(base, r, lora_alpha, lora_dropout, use_rslora)
        W = base.weight.data
        if any(W.strides):                      # else a shape without memory
            self.made_of = weight_fingerprint(W)
            U, S, VT = array_module(W).linalg.svd(W.astype(np.float64), full_matrices=False)
            root = (S[:r] / self.scale) ** 0.5
            self.A.data, self.B.data = ((root[:, None] * VT[:r]).astype(self.A.dtype), (U[:, :r] * root).astype(self.B.dtype))
            self.base = plain(base, W - self.delta())
            self.base.weight.requires_grad = False
        self.start_A, self.start_B = self.A.data.copy(), self.B.data.copy()

    def to_lora(self, base: Linear) -> LoRALinear:
        """The same function as a LoRALinear of rank 2 R on the layer that this one was made of, which is frozen.

        W_rest + scale * B A = W + scale * [B, -B_0] [A; A_0], with B_0 A_0 as they began. Raises ValueError for a `base` of
        another shape, or with another weight W than W_rest + scale * B_0 A_0.
        """
        A, B = (to_device(start, self.base.device) for start in (self.start_A, self.start_B))
        W, rest = base.weight.data, self.base.weight.data
        if W.shape != rest.shape or abs(rest + self.scale * (B @ A) - W).max() > 1e-4 * abs(W).max():   # only rounding differs
            raise ValueError(f"PiSSALinear.to_lora: expected the layer as it was before PiSSA, of shape {rest.shape}, got "
                             f"{'another weight of that shape' if W.shape == rest.shape else W.shape}. Was it trained since?")
        base.requires_grad_(False)
        layer, xp = LoRALinear(base, 1, self.scale, self.dropout.p), array_module(W)        # of any rank: its A and B follow
        layer.A.data, layer.B.data = xp.concatenate([self.A.data, A]), xp.concatenate([self.B.data, -B], 1)
        return layer


def pissa_to_lora(model: Module, original: Module) -> None:
    """Makes every PiSSALinear of `model` a LoRALinear on the layer of the same name in `original`, in place.

    `original` is the model as it was before PiSSA, or its backbone; its layers are shared from then on, and frozen. What is
    trained then fits the base that everybody has. Raises ValueError, before anything is put in, where a layer is of another
    weight, or there is none to convert.
    Source: Meng et al. 2024, PiSSA, appendix on converting PiSSA into LoRA.
    """
    layers = {name: part for name, part in backbone_of(model).named_modules() if isinstance(part, PiSSALinear)}
    if not layers:
        raise ValueError("pissa_to_lora: the model has no PiSSA layers. Was it merged already?")
    bases = dict(backbone_of(original).named_modules())
    if missing := [name for name in layers if not isinstance(bases.get(name), Linear)]:
        raise ValueError(f"pissa_to_lora: the original has no plain linear layer at {', '.join(missing[:4])}")
    converted = {name: layer.to_lora(bases[name]) for name, layer in layers.items()}        # type: ignore[arg-type]
    for name, layer in converted.items():
        backbone_of(model).set_part(name, layer.train(layers[name].training))


@dataclass(frozen=True)
class PiSSAConfig(LoRAConfig):
    """LoRA by `PiSSALinear`s: as many numbers train as in LoRA, from another start. The fields are those of LoRAConfig.

    Linear layers alone are adapted. Of each the singular values are computed once, all of them, which takes long for thousands
    of channels.
    """

    layers: ClassVar[dict[type[Module], Any]] = {Linear: PiSSALinear}
