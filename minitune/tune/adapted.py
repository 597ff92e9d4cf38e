"""What is adapted in a model: its layers as a folder describes them, what was trained beside, and the base below."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..devices import to_device
from ..formats.peft import Adapter, Described, Layer, Target
from ..nn import Conv2d, Embedding, Linear, Module
from .dora import DoRALinear, row_norms
from .houlsby import AdapterLinear
from .ia3 import IA3Linear
from .lora import LoRALayer, LoRALinear
from .lora_layers import LoRAConv2d, LoRAEmbedding
from .nf4 import QLoRALinear
from .patterns import backbone_of, new_parts
from .pissa import PiSSALinear
from .prefix import PrefixAttention
from .prompt import PromptEmbedding

Arrays = dict[str, np.ndarray]
KINDS: dict[type[Module], str] = {Linear: "linear", Embedding: "embedding", Conv2d: "convolution"}
LORA: dict[str, Any] = {"linear": LoRALinear, "embedding": LoRAEmbedding, "convolution": LoRAConv2d}


def adapted_layers(model: Module) -> dict[str, Any]:
    """{name: layer} of the adapted layers, which are those that have `merged()`."""
    return {name: part for name, part in model.named_modules() if hasattr(part, "merged")}


def own_parameters(layer: Any) -> dict[str, Any]:
    """{name: Parameter} of what an adapted layer has beside what it adapts."""
    if isinstance(layer, PrefixAttention):
        return {name: getattr(layer, name) for name in ("prefix_key", "prefix_value")}
    return {name: p for name, p in layer.named_parameters() if not name.startswith("base.")}


def base_parameters(model: Module) -> Iterator[tuple[str, Any]]:
    """(name as without adapters, Parameter) of everything but the adapters' own."""
    own = {id(p) for layer in adapted_layers(model).values() for p in own_parameters(layer).values()}
    for name, p in model.named_parameters():
        if id(p) not in own:
            yield ".".join(step for step in name.split(".") if step != "base"), p


def describe(model: Any) -> Described:
    """What the formats must know of a model: its family, head, base arrays and layers, all without the adapters."""
    backbone: Any = backbone_of(model)
    state = {name: to_device(p.data, "cpu") for name, p in base_parameters(model)}
    inner = tuple(f"{name}." for name, layer in adapted_layers(backbone).items() if not isinstance(layer, PrefixAttention))
    targets = {}
    for name, part in backbone.named_modules():
        base = getattr(part, "base", part)
        of = next((of for kind, of in KINDS.items() if isinstance(base, kind)), None)
        if of and not name.startswith(inner):
            weight = base.weight.data
            targets[name] = Target(of, weight.shape, lambda weight=weight: to_device(row_norms(weight), "cpu"))     # type: ignore
    config, sizes = backbone.config, {}
    if hasattr(config, "n_head"):
        attention = backbone.blocks[0].attention
        sizes = {"layers": config.n_layer, "heads": config.n_head, "channels": config.n_embd,
                 "kv_heads": attention.kv_heads, "head_size": attention.head_size}
    return Described(backbone.family, model.kind, model.settings(), state, targets, sizes)


def collect(model: Any) -> Adapter:
    """All that was trained in a model: adapters, parameters that train, and new heads whether they train or not.

    Raises ValueError where nothing was trained, or everything.
    """
    adapter, prefixes = Adapter(), []
    for name, layer in adapted_layers(backbone_of(model)).items():
        if isinstance(layer, PromptEmbedding):
            adapter.virtual = "prompt", to_device(layer.prompt.data, "cpu")
        elif isinstance(layer, PrefixAttention):
            prefixes += [layer.prefix_key.data, layer.prefix_value.data]
        else:
            adapter.layers[name] = describe_layer(layer)
    if prefixes:
        adapter.virtual = "prefix", np.concatenate([to_device(a, "cpu") for a in prefixes], 1)
    new = {id(p) for part in new_parts(model) for p in part.parameters()}
    base = list(base_parameters(model))
    adapter.parameters = {name: to_device(p.data, "cpu") for name, p in base if p.requires_grad or id(p) in new}
    if not adapter.layers and adapter.virtual is None and len(adapter.parameters) in (0, len(base)):
        state = "everything trains: save_pretrained writes the model" if adapter.parameters else (
            "nothing was trained. Was the adapter merged? Then save_pretrained writes the model; else tune.apply comes first")
        raise ValueError(f"save_adapter: the model has no adapter, and {state}")
    return adapter


def describe_layer(layer: Any) -> Layer:
    """The kind, arrays and settings of an adapted layer; PiSSA as the LoRA of twice the rank that it is on its base."""
    arrays = {name: to_device(p.data, "cpu") for name, p in own_parameters(layer).items()}
    if isinstance(layer, IA3Linear):
        return Layer("IA3", arrays, {"feedforward": layer.feedforward})
    if isinstance(layer, AdapterLinear):
        return Layer("Houlsby", arrays, {"bottleneck": len(arrays["down_project.bias"])})
    if not isinstance(layer, LoRALayer):
        raise ValueError(f"save_adapter: {type(layer).__name__} is an adapted layer that no folder has a place for")
    settings = {"scale": float(layer.scale), "dropout": layer.dropout.p, "use_rslora": layer.use_rslora}
    of = next(of for of, kind in LORA.items() if isinstance(layer, kind))
    if isinstance(layer, PiSSALinear):
        arrays = {"A": np.concatenate([arrays["A"], to_device(layer.start_A, "cpu")]),
                  "B": np.concatenate([arrays["B"], -to_device(layer.start_B, "cpu")], 1)}
    if isinstance(layer, QLoRALinear):
        return Layer("QLoRA", arrays, settings | {"use_double_quant": len(layer.base.codes) > 2})
    return Layer("DoRA" if isinstance(layer, DoRALinear) else "LoRA", arrays, settings, of)
