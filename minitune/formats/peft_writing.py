"""What was trained here as PEFT writes it: joined layers, r and lora_alpha by layer, and short names of targets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from math import sqrt
from typing import Any

import numpy as np

from .family import Arrays, Family, translate
from .gpt2 import QKV
from .peft import NAMES, ROOT, VIRTUAL, Adapter, Described, Layer, Unheld


def to_peft(adapter: Adapter, model: Described) -> tuple[dict[str, Any], Arrays]:
    """(adapter_config.json, arrays) in PEFT's names. Raises Unheld where PEFT has no place for it, or computes otherwise."""
    if not isinstance(model.family, Family):
        raise Unheld(f"Hugging Face has no {model.family.name} model")
    if model.kind is not None and model.family.class_for(model.kind, model.settings, model.state) is None:
        raise Unheld("Hugging Face has no class for this head")
    common: dict[str, Any] = {"auto_mapping": None, "base_model_name_or_path": None, "inference_mode": True,
                              "revision": None, "task_type": model.task()}
    if adapter.virtual is not None:
        return _virtual_to_peft(adapter, model, common)
    if (kinds := {layer.kind for layer in adapter.layers.values()}) == {"QLoRA"}:
        raise Unheld("PEFT's folder does not say that the base is in four bits")
    if len(kinds) != 1 or not kinds <= {"LoRA", "DoRA", "IA3"}:
        raise Unheld(f"PEFT has no adapter for {' and '.join(sorted(kinds)) or 'weights trained in full'}")
    joined = _joined(adapter, model)
    tensors = {f"{ROOT}{name}.{NAMES[layer.of, key]}": _as_peft(layer, key)
               for name, layer in joined.items() for key in layer.arrays}
    saved, arrays = _saved(adapter, model)
    common |= {"modules_to_save": saved or None, "exclude_modules": None, "fan_in_fan_out": bool(model.family.transposed),
               "target_modules": _short_names(joined, model)}
    if kinds == {"IA3"}:
        inner = [name for name, layer in joined.items() if layer.settings["feedforward"]]
        config = {"peft_type": "IA3", "feedforward_modules": _short_names(inner, model), "init_ia3_weights": True}
    else:
        config = _lora_config(joined, kinds == {"DoRA"})
    return common | config, tensors | {ROOT + name: array for name, array in arrays.items()}


def _as_peft(layer: Layer, key: str) -> np.ndarray:
    array = layer.arrays[key]
    return array if key != "vector" else array.reshape((1, -1) if layer.settings["feedforward"] else (-1, 1))


def _joined(adapter: Adapter, model: Described) -> dict[str, Layer]:
    """Layers by Hugging Face's names, those that are one there joined; and a tied output beside an adapted embedding."""
    parts: dict[str, dict[int | None, Layer]] = {}
    for name, layer in adapter.layers.items():
        theirs, third = model.place(name)
        parts.setdefault(theirs, {})[third] = layer
        if layer.of == "embedding" and model.tied_embedding(name):
            if model.kind is not None or layer.kind != "LoRA":
                raise Unheld("PEFT adapts a tied output apart from the embedding")
            A, B = layer.arrays["A"], layer.arrays["B"]         # W + scale (B A)^T: the factors of an output change places
            parts["lm_head"] = {None: Layer("LoRA", {"A": B.T, "B": A.T}, layer.settings)}
    joined = {}
    for theirs, thirds in parts.items():
        if None in thirds:
            joined[theirs] = thirds[None]
        else:
            joined[theirs], ranks = _join([thirds.get(i) for i in range(3)], theirs, model)
            adapter.blocks |= {theirs: ranks} if ranks else {}
    return joined


def _join(parts: list[Layer | None], theirs: str, model: Described) -> tuple[Layer, dict[str, list[int]]]:
    """(one layer of three, the ranks of each): A copied where it is one, else B block-diagonal; 0 for a third without."""
    names = model.modules[theirs]
    first = next(part for part in parts if part is not None)
    if first.kind == "IA3":
        if any(part is not None and part.settings != first.settings for part in parts):
            raise Unheld(f"{theirs} is one layer there, of which PEFT scales inputs or outputs")
        if first.settings["feedforward"]:
            raise Unheld(f"{theirs} is one layer there, and its thirds read differently scaled inputs")
        vectors = [np.ones(model.targets[name].shape[0]) if part is None else part.arrays["vector"]
                   for name, part in zip(names, parts, strict=True)]
        return Layer("IA3", {"vector": np.concatenate(vectors).astype(first.arrays["vector"].dtype)}, first.settings), {}
    A, scale = first.arrays["A"], first.settings["scale"]
    present = [part for part in parts if part is not None]
    if not scale and any(part.settings["scale"] for part in present):
        raise Unheld(f"{theirs} is one layer there, with one lora_alpha, which is 0 for some of its thirds")
    shared = all(np.array_equal(part.arrays["A"], A) for part in present)
    ranks, start = {}, 0
    for which, part in zip(QKV, parts, strict=True):
        if part is not None:
            ranks[which] = [start, start + len(part.arrays["A"])]
            start = start if shared else ranks[which][1]
    r = len(A) if shared else start
    B = np.zeros((sum(model.targets[name].shape[0] for name in names), r), A.dtype)
    row = 0
    for which, name, part in zip(QKV, names, parts, strict=True):
        rows = model.targets[name].shape[0]
        if part is not None:
            B[row:row + rows, slice(*ranks[which])] = part.arrays["B"] * (part.settings["scale"] / scale if scale else 1.0)
        row += rows
    arrays = {"A": A if shared else np.concatenate([part.arrays["A"] for part in present]), "B": B}
    if first.kind == "DoRA":
        arrays["magnitude"] = np.concatenate([
            model.targets[name].norms().astype(A.dtype) if part is None else part.arrays["magnitude"]
            for name, part in zip(names, parts, strict=True)])
    return Layer(first.kind, arrays, first.settings), ranks


def _lora_config(joined: dict[str, Layer], dora: bool) -> dict[str, Any]:
    """r and lora_alpha that most layers have, and those of the others by name."""
    if len({(layer.settings["use_rslora"], layer.settings["dropout"]) for layer in joined.values()}) > 1:
        raise Unheld("PEFT has one use_rslora and one lora_dropout for all layers")
    one = next(iter(joined.values())).settings
    r = {name: len(layer.arrays["A"]) for name, layer in joined.items()}
    alpha = {name: _whole(layer.settings["scale"] * (sqrt(r[name]) if one["use_rslora"] else r[name]))
             for name, layer in joined.items()}
    usual_r, usual_alpha = (Counter(values.values()).most_common(1)[0][0] for values in (r, alpha))
    return {"peft_type": "LORA", "r": usual_r, "lora_alpha": usual_alpha, "lora_dropout": one["dropout"], "bias": "none",
            "use_rslora": one["use_rslora"], "use_dora": dora, "init_lora_weights": True, "layers_to_transform": None,
            "layers_pattern": None, "rank_pattern": _pattern(r, usual_r), "alpha_pattern": _pattern(alpha, usual_alpha)}


def _whole(number: float) -> float:
    return int(number) if float(number).is_integer() else float(number)


def _pattern(values: dict[str, Any], usual: Any) -> dict[str, Any]:
    """{regular expression for a module's name: value}, of those that are not the usual one."""
    alike: dict[str, set] = {}
    for name, value in values.items():
        alike.setdefault(_generic(name), set()).add(value)
    return {_generic(name) if len(alike[_generic(name)]) == 1 else re.escape(name): value
            for name, value in values.items() if value != usual}


def _generic(name: str) -> str:
    return re.sub(r"(\\\.)\d+(\\\.)", r"\1\\d+\2", re.escape(name))


def _short_names(names: Iterable[str], model: Described) -> list[str]:
    """Ends of names that mean these modules and no others."""
    names, every = list(names), model.modules
    found = set()
    for name in names:
        end = re.split(r"\.\d+\.", name)[-1]
        found.add(end if {other for other in every if f".{other}".endswith(f".{end}")} <= set(names) else name)
    return sorted(found)


def _saved(adapter: Adapter, model: Described) -> tuple[list[str], Arrays]:
    """(PEFT's modules_to_save, their arrays): heads, and modules of the backbone that were trained in full."""
    heads = model.family.head_names(model.kind) or {}
    modules: set[str] = set()
    arrays: Arrays = {}
    for name, array in adapter.parameters.items():
        bare = name.removeprefix("backbone.") if model.kind is not None else name
        if model.kind is not None and not name.startswith("backbone."):
            theirs = translate(name, heads)
            if theirs is None:
                raise Unheld(f"Hugging Face's class has no {name}")
            modules.add(theirs.split(".")[0])
        else:
            owner, _, part = bare.rpartition(".")
            theirs, third = model.place(owner)
            whole = {f"{owner}.{other}" for other in ("weight", "bias")} & {n.removeprefix("backbone.") for n in model.state}
            given = {n.removeprefix("backbone.") for n in adapter.parameters}
            if third is not None or owner in model.targets or not whole <= given or owner in adapter.layers:
                raise Unheld(f"PEFT saves whole modules, and {bare} is trained alone, or tied, or part of another layer")
            modules.add(theirs)
            theirs = f"{theirs}.{part}"
        arrays[theirs] = array
    if model.kind is not None and (tied := model.family.tied({})) and "cls" in modules:
        words = adapter.parameters.get("backbone.token_embedding.weight", model.state["backbone.token_embedding.weight"])
        sources = arrays | {"bert.embeddings.word_embeddings.weight": words}
        arrays |= {copy: sources[original].copy() for copy, original in tied.items() if original in sources}
    return sorted(modules), arrays


def _virtual_to_peft(adapter: Adapter, model: Described, common: dict[str, Any]) -> tuple[dict[str, Any], Arrays]:
    assert adapter.virtual is not None
    kind, array = adapter.virtual
    if adapter.layers:
        raise Unheld("PEFT has no prompt beside other adapters")
    if common["task_type"] is None:
        raise Unheld("PEFT's prompts have no task for this head")
    if kind == "prompt" and model.settings.get("pooling") not in (None, "last"):
        raise Unheld("PEFT lets a classifier read the first position, which is the prompt's there and the text's here")
    if kind == "prefix" and model.kind is not None:
        raise Unheld("PEFT has no prefix for models under this head")
    saved, arrays = _saved(adapter, model)
    if any("." in name for name in saved):
        raise Unheld("PEFT saves heads beside a prompt, no parts of the backbone")
    numbers = {"num_virtual_tokens": len(array), "num_transformer_submodules": 1, "num_layers": model.sizes["layers"]}
    if kind == "prefix":
        sizes = {"num_attention_heads": model.sizes["kv_heads"], "token_dim": array.shape[1] // (2 * model.sizes["layers"]),
                 "prefix_projection": False, "encoder_hidden_size": model.sizes["channels"]}
    else:
        sizes = {"num_attention_heads": model.sizes["heads"], "token_dim": array.shape[1], "prompt_tuning_init": "RANDOM"}
    config = common | {"peft_type": VIRTUAL[kind], "modules_to_save": saved or None} | numbers | sizes
    return config, {"prompt_embeddings": array} | {f"base_model.{name}": head for name, head in arrays.items()}
