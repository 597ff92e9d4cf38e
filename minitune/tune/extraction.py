"""What a full fine-tuning changed, as a LoRA of rank r: the largest singular values of each weight's change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..devices import array_module
from ..formats.peft import Adapter, Layer
from ..nn import Linear
from .adapted import adapted_layers
from .installing import install
from .patterns import backbone_of
from .standardized import StandardizedLinear, with_bias


@dataclass(frozen=True)
class Extraction:
    """Which share of the squared change a LoRA keeps, by layer; `left_out` are changed parameters that it cannot hold."""

    r: int
    shares: dict[str, float]
    kept: float                                 # of the squared change of all parameters of the backbone
    left_out: dict[str, float] = field(default_factory=dict)        # {parameter: its share of that}

    def __str__(self) -> str:
        lost = sorted(self.left_out, key=lambda name: -self.left_out[name])
        share = sum(self.left_out.values())
        others = f"; not in linear layers: {share:.2%}, most of it in {', '.join(lost[:3])}" if lost else ""
        return f"rank {self.r} keeps {self.kept:.2%} of the squared change, in {len(self.shares)} layers{others}"


def extract_lora(tuned: Any, base: Any, r: int) -> Extraction:
    """Makes `base` compute nearly what `tuned` does, by a LoRA of rank `r` on each linear layer whose weight differs, in place.

    W_tuned - W_base = U S V^T;  B = U_r sqrt(S_r) (out, R), A = sqrt(S_r) V_r^T (R, in), scale 1: no matrix of that rank is
    nearer to the change (Eckart and Young 1936). The share that it keeps is the sum of the largest R squared singular values
    over the sum of all. Where both have a head of the same kind, that of `tuned` is copied. The result says which share of the
    whole change is kept, and what lies in biases, norms and embeddings, which stay those of `base`.
    Raises ValueError for models that differ in more than their numbers, have adapters or a standardised head, or are equal in
    all linear layers, and for a rank below 1.
    """
    if not isinstance(r, int) or r < 1:
        raise ValueError(f"extract_lora: r must be an int of at least 1, got {r!r}")
    for name, model in (("tuned", tuned), ("base", base)):
        if isinstance(getattr(model, "head", None), StandardizedLinear):
            raise ValueError(f"extract_lora: the head of {name} is standardised. First: tune.fold({name})")
        if adapted_layers(model):
            raise ValueError(f"extract_lora: {name} has adapted layers. Merge them first: tune.merge(model)")
    after, before = (dict(backbone_of(model).named_parameters()) for model in (tuned, base))
    if wrong := [name for name in before.keys() | after.keys()
                 if name not in before or name not in after or before[name].shape != after[name].shape]:
        raise ValueError(f"extract_lora: the two models are not of one kind: they differ in {', '.join(sorted(wrong)[:4])}")
    changes = {name: after[name].data.astype(np.float64) - before[name].data.astype(np.float64) for name in before}
    squares = {name: float((change**2).sum()) for name, change in changes.items()}
    if not (total := sum(squares.values())):
        raise ValueError("extract_lora: the two models are equal, there is nothing to extract")
    adapter, shares = Adapter(), {}
    for name, part in backbone_of(base).named_modules():
        if isinstance(part, Linear) and (square := squares.get(f"{name}.weight", 0.0)):
            adapter.layers[name], shares[name] = _nearest(changes[f"{name}.weight"], r, square)
    if not adapter.layers:
        raise ValueError("extract_lora: no linear layer differs, and a LoRA changes no others")
    kept = sum(shares[name] * squares[f"{name}.weight"] for name in shares) / total
    adapter.parameters = _same_head(tuned, base)
    head: Any = getattr(base, "head", None)
    if "head.bias" in adapter.parameters and getattr(head, "bias", True) is None:
        base.head = with_bias(head)
    try:
        install(base, adapter)
    except ValueError:                          # as with a head for other labels: nothing has changed
        if "head.bias" in adapter.parameters:
            base.head = head
        raise
    return Extraction(r, shares, kept, {name: square / total for name, square in squares.items()
                                        if square and name.removesuffix(".weight") not in shares})


def _nearest(change: Any, r: int, square: float) -> tuple[Layer, float]:
    """(the LoRA of rank r that is nearest to a change, the share of its squares that it keeps)."""
    xp = array_module(change)
    U, S, VT = xp.linalg.svd(change, full_matrices=False)
    root = xp.sqrt(S[:r])
    arrays = {"A": root[:, None] * VT[:r], "B": U[:, :r] * root}
    arrays = {name: (array if xp is np else array.get()).astype(np.float32) for name, array in arrays.items()}
    return Layer("LoRA", arrays, {"scale": 1.0, "dropout": 0.0, "use_rslora": False}), float((S[:r] ** 2).sum() / square)


def _same_head(tuned: Any, base: Any) -> dict[str, Any]:
    """The arrays of the head of `tuned` where `base` has one of the same kind."""
    if base.kind is None or tuned.kind != base.kind:
        return {}
    return {name: p.numpy() for name, p in tuned.named_parameters() if not name.startswith("backbone.")}
