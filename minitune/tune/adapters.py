"""Several adapters on one model, by name: switched without a reload, added to one another, swapped and removed."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from ..devices import array_module
from ..formats.peft import Adapter
from ..nn import shapes_only
from .adapted import adapted_layers
from .apply import Method, apply
from .dora import DoRALinear
from .ia3 import IA3Config
from .installing import check_parameters, install, make_layers, on_base
from .lora import LoRAConfig, LoRALayer
from .nf4 import QLoRAConfig
from .patterns import backbone_of
from .pissa import PiSSAConfig
from .registry import (
    Held,
    check_new,
    check_switchable,
    current,
    head_of,
    head_parameters,
    layers_of,
    put_head,
    registry_of,
    take_out,
)
from .report import Report, report


def adapter_names(model: Any) -> list[str]:
    """The names of a model's adapters, in the order in which they came; what `tune.apply` put in is called "default"."""
    return list(registry_of(model).held)


def active_adapter(model: Any) -> str | None:
    """The name of the adapter that computes now, or None."""
    return registry_of(model).active


def add_adapter(model: Any, name: str, method: Method) -> Report:
    """Puts a new adapter `name` on a model beside those that it has, and makes it active: `method` as for `tune.apply`.

    Its head starts as a copy of the one that is there. Raises ValueError, with nothing changed, for a name that is taken and
    for methods whose adapters cannot be taken out: all but LoRA, DoRA and IA3.
    """
    registry = registry_of(model)
    check_new(registry, name)
    if not isinstance(method, (LoRAConfig, IA3Config)) or isinstance(method, (PiSSAConfig, QLoRAConfig)):
        raise ValueError(f"add_adapter: {type(method).__name__} changes the base or its positions, on which other adapters "
                         "rest. LoRAConfig, DoRAConfig and IA3Config make adapters that can be switched")
    check_switchable(model)
    before, head = registry.active, head_of(model)
    set_adapter(model, None)
    put_head(model, deepcopy(head))
    try:
        made = apply(model, method)
    except ValueError:                          # nothing else was changed
        put_head(model, head)
        set_adapter(model, before)
        raise
    registry.held[name], registry.active = Held(layers_of(model), head_of(model)), name
    return made


def set_adapter(model: Any, name: str | None) -> None:
    """Makes another of a model's adapters compute, with its head; None takes the active one out, and leaves its head.

    The weights of the base are not touched: switching there and back gives the same bits. Which parameters train goes with the
    adapter. Optimizers hold the parameters that they were made of: make a new one, or one for each.
    Raises ValueError for a name that the model does not have, and where the active one was merged.
    """
    registry, backbone = registry_of(model), backbone_of(model)
    if name is not None and name not in registry.held:
        raise ValueError(f"set_adapter: the model has no adapter {name!r}; it has {', '.join(registry.held) or 'none'}")
    if name == registry.active:
        return
    check_switchable(model)
    if registry.active is not None:
        registry.held[registry.active] = Held(layers_of(model), head_of(model))
        take_out(model)
    if name is not None:
        held = registry.held[name]
        parts = dict(backbone.named_modules())
        for place, layer in held.layers.items():
            layer.base = parts[place]
            backbone.set_part(place, on_base(layer).train(model.training))
        put_head(model, held.head)
    registry.active = name


def remove_adapter(model: Any, name: str) -> None:
    """Takes an adapter off a model for good; where it was the active one the base computes alone, under the head it had."""
    registry = registry_of(model)
    if name not in registry.held:
        raise ValueError(f"remove_adapter: the model has no adapter {name!r}; it has {', '.join(registry.held) or 'none'}")
    if name == registry.active:
        set_adapter(model, None)
    del registry.held[name]


def add_weighted_adapter(model: Any, adapters: Sequence[str], weights: Sequence[float], name: str,
                         head: str | None = None) -> None:
    """Makes a new adapter `name` that changes each weight by the weighted sum of what the given LoRA adapters do, and sets it.

    sum_i w_i scale_i B_i A_i = [w_1 scale_1 B_1, w_2 scale_2 B_2 ...] [A_1; A_2; ...], exactly: its rank is the sum of theirs.
    The head is that of the adapter called `head`, which may be left out where all have the same.
    Raises ValueError for other adapters than LoRA, as many weights as adapters are not, and for heads that differ.
    """
    registry = registry_of(model)
    check_new(registry, name)
    check_switchable(model)
    if missing := [given for given in adapters if given not in registry.held]:
        raise ValueError(f"add_weighted_adapter: the model has no adapter {missing[0]!r}; it has {', '.join(registry.held)}")
    if len(adapters) != len(weights) or not adapters:
        raise ValueError(f"add_weighted_adapter: expected a weight for each adapter, got {len(weights)} for {len(adapters)}")
    held = [current(model, given) for given in adapters]
    other = {type(layer).__name__ for one in held for layer in one.layers.values()
             if not isinstance(layer, LoRALayer) or isinstance(layer, DoRALinear)}
    if other:
        raise ValueError(f"add_weighted_adapter: only LoRA adapters are sums of products, not {', '.join(sorted(other))}")
    chosen = current(model, head).head if head is not None else held[0].head
    if head is None and any(not _same(chosen, one.head) for one in held):
        raise ValueError("add_weighted_adapter: the adapters' heads differ, and a sum of them answers no question. Name the "
                         "adapter whose head it gets: head=...")
    places = dict.fromkeys(place for one in held for place in one.layers)
    layers = {place: _summed([(weight, one.layers[place]) for weight, one in zip(weights, held, strict=True)
                              if place in one.layers]) for place in places}
    registry.held[name] = Held(layers, deepcopy(chosen))
    set_adapter(model, name)


def _summed(parts: list[tuple[float, Any]]) -> Any:
    """One LoRA layer of scale 1 that adds what these add, each times its weight."""
    _, first = parts[0]
    with shapes_only():
        made = type(first)(first.base, 1, 1.0, first.dropout.p)
    xp = array_module(first.A.data)
    made.A.data = xp.concatenate([layer.A.data for _, layer in parts])
    made.B.data = xp.concatenate([(layer.B.data * (weight * layer.scale)).astype(layer.B.dtype) for weight, layer in parts], 1)
    return made


def add(model: Any, name: str, adapter: Adapter, swap: bool) -> Report:
    """Puts an adapter that was read into a model and makes it active; nothing is changed where it raises ValueError."""
    registry = registry_of(model)
    if name in registry.held and not swap:
        raise ValueError(f"load_adapter: the model has an adapter {name!r} already. Give another name, or swap=True to put "
                         "this one in its place")
    if swap and name not in registry.held:
        raise ValueError(f"load_adapter: there is no adapter {name!r} to swap; there are {', '.join(registry.held) or 'none'}")
    if not registry.held:
        install(model, adapter)
        if adapted_layers(model):
            registry.held[name], registry.active = Held(layers_of(model), head_of(model)), name
        return report(model)
    check_switchable(model)
    inside = [given for given in adapter.parameters if model.kind is None or given.startswith("backbone.")]
    other = {layer.kind for layer in adapter.layers.values()} - {"LoRA", "DoRA", "IA3"}
    if inside or other or adapter.virtual is not None:
        raise ValueError("load_adapter: LoRA, DoRA and IA3 adapters stand beside others, and this one changes the base itself "
                         f"({', '.join(inside[:3]) or 'its layers or positions'}). Load it into a model without adapters")
    check_parameters(model, adapter.parameters)
    bases = {place: getattr(part, "base", part) for place, part in backbone_of(model).named_modules()}
    layers, head = make_layers(adapter, bases), deepcopy(head_of(model))
    _fill(head, adapter.parameters)
    if swap and registry.active == name:
        set_adapter(model, None)
    registry.held[name] = Held(layers, head)
    set_adapter(model, name)
    return report(model)


def _fill(head: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    for name, p in head_parameters(head).items():
        if name in arrays:
            p.data = array_module(p.data).asarray(arrays[name].astype(p.dtype))


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    a, b = head_parameters(one), head_parameters(other)
    return set(a) == set(b) and all(bool((a[name].data == b[name].data).all()) for name in a)
