"""Which adapters a model has, by name, and which of them is in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..devices import device_of, to_device
from ..nn import Module, Parameter
from .adapted import adapted_layers
from .ia3 import IA3Linear
from .lora import LoRALayer
from .nf4 import QLoRALinear
from .patterns import backbone_of, new_parts
from .pissa import PiSSALinear


@dataclass
class Held:
    """An adapter: its layers by their names in the backbone, and the head that belongs to it by the names of its parts."""

    layers: dict[str, Any]
    head: dict[str, Any]


@dataclass
class Registry:
    """The adapters of a model, and which of them is in it. No Module, so that those that wait are no parts of the model."""

    held: dict[str, Held] = field(default_factory=dict)
    active: str | None = None


def registry_of(model: Any) -> Registry:
    """The adapters that a model has, kept by its backbone, which may get a head; those of `tune.apply` are "default"."""
    registry = vars(backbone_of(model)).setdefault("adapters", Registry())
    if registry.active is None and adapted_layers(model):
        names = ("default", *(f"default {i}" for i in range(2, len(registry.held) + 3)))
        registry.active = next(name for name in names if name not in registry.held)
        registry.held[registry.active] = Held(layers_of(model), head_of(model))
    return registry


def check_switchable(model: Any) -> None:
    """Raises ValueError where the active adapter cannot be taken out and put back."""
    registry, layers = registry_of(model), adapted_layers(backbone_of(model))
    held = layers if registry.active is None else registry.held[registry.active].layers
    others = len(registry.held) > 1             # adapters that rest on a base which a merge has changed
    if set(layers) != set(held) or others and any(layers[name] is not held[name] for name in layers):
        raise ValueError(f"adapters: the layers of the active adapter {registry.active!r} are not in the model as they were. "
                         "Was it merged? tune.unmerge puts them back")
    stuck = {type(layer).__name__ for layer in layers.values()
             if not isinstance(layer, (LoRALayer, IA3Linear)) or isinstance(layer, (PiSSALinear, QLoRALinear))}
    if stuck:
        raise ValueError(f"adapters: {', '.join(sorted(stuck))} changed the base or its positions, so they cannot be switched. "
                         "PiSSA can be made a LoRA: tune.pissa_to_lora")
    new = {id(p) for part in new_parts(model) for p in part.parameters()}
    own = {id(p) for layer in layers.values() for name, p in layer.named_parameters() if not name.startswith("base.")}
    if moved := [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in new | own]:
        if registry.held:
            raise ValueError(f"adapters: weights of the base train beside the adapter ({', '.join(moved[:3])}), which other "
                             "adapters rest on. Freeze them, or keep this adapter alone")


def check_new(registry: Registry, name: str) -> None:
    """Raises ValueError for a name that is empty or taken."""
    if not name or name in registry.held:
        raise ValueError(f"adapters: expected a new name, got {name!r}; the model has {', '.join(registry.held) or 'none'}")


def layers_of(model: Any) -> dict[str, Any]:
    """{name in the backbone: layer} of the adapter that is in a model."""
    return adapted_layers(backbone_of(model))


def current(model: Any, name: str) -> Held:
    """An adapter, with the head that is in the model where it is active."""
    registry = registry_of(model)
    if name not in registry.held:
        raise ValueError(f"adapters: the model has no adapter {name!r}; it has {', '.join(registry.held)}")
    return Held(layers_of(model), head_of(model)) if name == registry.active else registry.held[name]


def head_of(model: Any) -> dict[str, Any]:
    """{attribute: part} of what is new beside the backbone."""
    new = {id(part) for part in new_parts(model)}
    return {name: part for name, part in vars(model).items() if id(part) in new}


def put_head(model: Any, head: dict[str, Any]) -> None:
    """Makes these the parts of a model beside its backbone, where and in the dtype that this is."""
    like = next(backbone_of(model).parameters()).data
    for p in head_parameters(head).values():
        p.data = to_device(p.data.astype(like.dtype, copy=False), device_of(like))
    for name, part in head.items():
        setattr(model, name, part)
        if isinstance(part, Module):
            part.train(model.training)


def take_out(model: Any) -> None:
    """Puts the layers back that adapters stand in the place of."""
    backbone = backbone_of(model)
    for name, layer in adapted_layers(backbone).items():
        backbone.set_part(name, layer.base)


def head_parameters(head: dict[str, Any]) -> dict[str, Parameter]:
    """{name in the model: Parameter} of a head."""
    return {f"{name}.{inner}" if inner else name: p for name, part in head.items()
            for inner, p in (part.named_parameters() if isinstance(part, Module) else [("", part)])}
