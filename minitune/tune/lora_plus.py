"""LoRA+: B learns faster than A."""

from __future__ import annotations

from ..nn import Module
from ..optim import Group
from .lora import LoRALayer
from .lora_layers import LoRAEmbedding


def lora_plus(model: Module, ratio: float = 16.0, weight_decay: float = 0.01) -> list[Group]:
    """The groups of an optimizer in which each B learns `ratio` times as fast as A and all else: `AdamW(lora_plus(model), lr)`.

    rate of B = ratio, of the rest 1, relative to the step's rate. `weight_decay` is of A, B and the weights of linear layers
    alone. Of an embedding, where A is what starts at 0 and no wide sum is learned, both have rate 1. The paper's usual
    ratio is 2^4.
    Raises ValueError for a ratio below 1 and for a model without LoRA layers.
    Source: Hayou, Ghosh and Yu 2024, LoRA+: Efficient low rank adaptation of large models, section 4.
    """
    if not ratio >= 1:
        raise ValueError(f"lora_plus: ratio must be at least 1, got {ratio}. Did you give its inverse?")
    fast = {id(part.B) for part in model.modules() if isinstance(part, LoRALayer) and not isinstance(part, LoRAEmbedding)}
    if not fast:
        raise ValueError("lora_plus: the model has no LoRA layers. Put them in first: tune.apply(model, LoRAConfig(r=8))")
    groups = []
    for is_fast, rate in (False, 1.0), (True, ratio):
        for decays in (True, False):
            own = [p for p in model.parameters() if (id(p) in fast, p.decays) == (is_fast, decays)]
            groups += [Group(own, rate, weight_decay if decays else 0.0)] if own else []
    return groups
