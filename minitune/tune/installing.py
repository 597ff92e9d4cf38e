"""Adapters that a folder describes, put into a model; an error changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..devices import device_of, to_device
from ..formats.peft import Adapter, Layer
from ..nn import shapes_only
from .adapted import KINDS, LORA, Arrays, adapted_layers, base_parameters, own_parameters
from .dora import DoRALinear
from .freezing import freeze
from .houlsby import AdapterLinear
from .ia3 import IA3Linear
from .nf4 import QLoRALinear
from .patterns import backbone_of, new_parts
from .prefix import PrefixAttention, PrefixConfig
from .prompt import PromptConfig, PromptEmbedding


def make_layer(layer: Layer, base: Any) -> Any:
    """The adapted layer that this describes, on `base`. Raises ValueError where its arrays do not fit."""
    with shapes_only():                         # no random numbers are drawn for what is about to be filled
        made = _made(layer, base)
    own = own_parameters(made)
    if set(own) != set(layer.arrays):
        raise ValueError(f"a {layer.kind} layer has {', '.join(own)}, got {', '.join(layer.arrays)}")
    for name, p in own.items():
        array = layer.arrays[name]
        free = layer.kind in ("LoRA", "DoRA", "QLoRA") and name in ("A", "B")       # but for the rank, which these bring along
        rank = "AB".find(name) if free else -1
        expected = [n if i == rank else m for i, (n, m) in enumerate(zip(array.shape, p.shape, strict=False))]
        if array.ndim != p.ndim or list(array.shape) != expected:
            raise ValueError(f"{name} has shape {array.shape}, expected {p.shape}{' but for the rank' * free}")
        p.data = np.array(array, p.dtype, order="C")
    return on_base(made)


def on_base(layer: Any) -> Any:
    """The adapted layer with its own numbers where its base is, in the same dtype."""
    weight = layer.base.weight.data
    for p in own_parameters(layer).values():
        p.data = to_device(p.data.astype(weight.dtype, copy=False), device_of(weight))
    return layer


def _made(layer: Layer, base: Any) -> Any:
    settings = layer.settings
    if layer.kind == "IA3":
        return IA3Linear(base, settings["feedforward"])
    if layer.kind == "Houlsby":
        return AdapterLinear(base, settings["bottleneck"])
    kinds = {"LoRA": LORA[layer.of], "DoRA": DoRALinear, "QLoRA": QLoRALinear}
    if layer.kind not in kinds:
        raise ValueError(f"{layer.kind!r} is no kind of adapted layer; there are {', '.join(kinds)}, IA3, Houlsby")
    double = (settings["use_double_quant"],) if layer.kind == "QLoRA" else ()
    made = kinds[layer.kind](base, 1, 1.0, settings["dropout"], settings["use_rslora"], *double)
    made.scale = settings["scale"]
    return made


def make_layers(adapter: Adapter, bases: dict[str, Any]) -> dict[str, Any]:
    """{name in the backbone: adapted layer} on the layers `bases`. Raises ValueError, with all that does not fit."""
    made, wrong = {}, []
    for name, layer in adapter.layers.items():
        if not isinstance(base := bases.get(name), tuple(KINDS)):
            wrong.append(f"{name}: the model has no such layer")
            continue
        try:
            made[name] = make_layer(layer, base)
        except KeyError as missing:
            wrong.append(f"{name}: {missing} is missing from what describes it")
        except ValueError as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        raise ValueError("load_adapter: the adapter does not fit the model: " + "; ".join(wrong[:6]))
    return made


def install(model: Any, adapter: Adapter) -> None:
    """Puts an adapter into a model without one, whose backbone is frozen; nothing is changed where it raises ValueError."""
    backbone: Any = backbone_of(model)
    own = dict(model.named_parameters())
    check_parameters(model, adapter.parameters)
    layers = make_layers(adapter, dict(backbone.named_modules()))
    if adapter.virtual is not None:
        kind, array = adapter.virtual
        (PromptConfig if kind == "prompt" else PrefixConfig)(len(array)).install(model)
    freeze(backbone)
    for name, array in adapter.parameters.items():
        own[name].data = to_device(array.astype(own[name].dtype), device_of(own[name].data))
        own[name].requires_grad = True
    for part in new_parts(model):
        for p in part.parameters():
            p.requires_grad = True
    for name, layer in layers.items():
        backbone.set_part(name, layer.train(model.training))
    _fill_virtual(backbone, adapter)


def check_parameters(model: Any, arrays: Arrays) -> None:
    """Raises ValueError where parameters that were trained in full have no place in the model."""
    own = dict(base_parameters(model))
    wrong = [f"{name}: " + (f"expected {own[name].shape}, got {array.shape}" if name in own else "unknown")
             for name, array in arrays.items() if name not in own or own[name].shape != array.shape]
    if wrong:
        raise ValueError("load_adapter: the adapter does not fit the model: " + "; ".join(wrong[:6]))


def _fill_virtual(backbone: Any, adapter: Adapter) -> None:
    """The prompt's or prefix's numbers into their places, trained."""
    if adapter.virtual is None:
        return
    kind, array = adapter.virtual
    owned = [p for layer in adapted_layers(backbone).values() if isinstance(layer, (PromptEmbedding, PrefixAttention))
             for p in own_parameters(layer).values()]
    parts = [array] if kind == "prompt" else np.split(array, len(owned), 1)
    for p, part in zip(owned, parts, strict=True):
        p.data, p.requires_grad = to_device(np.array(part, p.dtype, order="C"), backbone.device), True
