"""What PEFT wrote, as minitune computes it: settings and shapes are checked, joined layers taken apart."""

from __future__ import annotations

import re
from math import sqrt
from typing import Any

import numpy as np

from .family import SIZE, Arrays, Expected, Family, number, short, translate
from .folder import lines
from .peft import NAMES, ROOT, TASKS, VIRTUAL, Adapter, Described, Layer

NUMBER = Expected("a number", number)
STARTS = (True, False, "gaussian", "orthogonal", "eva", None)      # init_lora_weights that leave the base alone
# settings of LoRA and IA3 that change nothing about what trained weights compute, or that are read here
READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "fan_in_fan_out", "use_rslora",
        "use_dora", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern",
        "alpha_pattern", "task_type", "base_model_name_or_path", "inference_mode", "auto_mapping", "revision", "peft_version",
        "feedforward_modules", "init_ia3_weights", "bias", "megatron_core", "qalora_group_size", "ensure_weight_tying",
        "runtime_config", "eva_config", "corda_config", "lora_ga_config", "loftq_config"}


def from_peft(config: dict[str, Any], tensors: Arrays, model: Described,
              blocks: dict[str, dict[str, list[int]]] | None = None) -> Adapter:
    """The adapter in a folder of PEFT's, in minitune's names.

    Raises ValueError, with all that is wrong: settings that minitune does not compute, arrays of other shapes or without a
    place here, and layers that the config means and the arrays lack.
    """
    kind = config.get("peft_type")
    if kind not in ("LORA", "IA3", *VIRTUAL.values()):
        raise ValueError(f"load_adapter: peft_type is {short(kind)}, expected LORA, IA3, PROMPT_TUNING or PREFIX_TUNING")
    if not isinstance(model.family, Family):
        raise ValueError(f"load_adapter: PEFT has no adapters for a {model.family.name} model")
    wrong = _not_computed(config, kind)
    adapter, rest = Adapter(), {}
    layers: dict[str, Arrays] = {}
    for key, array in tensors.items():
        if array.dtype.kind != "f":
            wrong.append(f"{key}: {array.dtype} numbers, expected floating point")
            continue
        name, ours = _key(key, ROOT if kind in ("LORA", "IA3") else "base_model.")
        if ours is None:
            rest[name] = array
        else:
            layers.setdefault(name, {})[ours] = array
    if kind in VIRTUAL.values():
        adapter.virtual = _virtual_from_peft(config, rest, model, wrong)
    _read_saved(rest, config, model, adapter, wrong)
    _read_layers(layers, config, model, adapter, blocks or {}, wrong)
    if wrong:
        raise ValueError("load_adapter: this adapter does not fit the model, or is not computed here:" + lines(wrong))
    return adapter


def _not_computed(config: dict[str, Any], kind: str) -> list[str]:
    """Complaints about settings that change what the arrays compute and that minitune has not; raises for no numbers."""
    if kind in VIRTUAL.values():
        wrong = [] if not config.get("prefix_projection") else [
            "prefix_projection is true: the arrays are the inputs of an MLP. Save the prefix that this makes"]
        one = config.get("num_transformer_submodules") in (None, 1)
        return wrong + ([] if one else ["num_transformer_submodules is not 1"])
    sizes = [("r", SIZE, config.get("r", 8)), ("lora_alpha", NUMBER, config.get("lora_alpha", 8)),
             *(("rank_pattern", SIZE, r) for r in (config.get("rank_pattern") or {}).values()),
             *(("alpha_pattern", NUMBER, alpha) for alpha in (config.get("alpha_pattern") or {}).values())]
    if wrong := [f"{key} is {short(value)}, expected {expected.words}" for key, expected, value in sizes
                 if not expected.holds(value)]:
        raise ValueError("load_adapter: adapter_config.json: " + "; ".join(wrong))
    wrong = [f"{key} is {short(value)}, which minitune does not compute" for key, value in config.items()
             if key not in READ and value not in (None, False, [], {})]
    if config.get("bias", "none") != "none":
        wrong.append(f"bias is {short(config['bias'])}: the base's biases were trained, too. Expected \"none\"")
    start = config.get("init_lora_weights")
    if start not in STARTS and start != "pissa":
        wrong.append(f"init_lora_weights is {short(start)}: the base was changed when the adapter was made. Save it in PEFT "
                     "with path_initial_model_for_weight_conversion, which makes it a LoRA for the base as it is")
    if start == "pissa" and (config.get("use_dora") or not config.get("lora_alpha", 8) > 0):
        wrong.append("init_lora_weights is 'pissa' beside use_dora or without a scale, which minitune does not compute")
    return wrong


def _key(key: str, root: str) -> tuple[str, str | None]:
    """(module, our name of the array), or (parameter, None) of what is no adapter's."""
    name = re.sub(r"\.modules_to_save(\.default)?\.", ".", key.removeprefix(root))
    for (_, ours), theirs in NAMES.items():
        if name.endswith(f".{theirs}"):
            return name.removesuffix(f".{theirs}"), ("embedding " if "embedding" in theirs else "") + ours
    return name, None


def _read_layers(found: dict[str, Arrays], config: dict[str, Any], model: Described, adapter: Adapter,
                 blocks: dict[str, dict[str, list[int]]], wrong: list[str]) -> None:
    """Layers from the arrays; complaints go to `wrong`."""
    modules = model.modules
    full = {name.removeprefix(model.family.prefix): name for name in modules}
    here = {full.get(name.removeprefix(model.family.prefix), name): arrays for name, arrays in found.items()}
    if config.get("peft_type") in ("LORA", "IA3"):
        meant = _meant(config, model, wrong)
        wrong += [f"{name}: target_modules mean it, and the file has no arrays for it" for name in meant if name not in here]
        if not here:
            wrong.append(f"the file holds no arrays of {config['peft_type']}")
    tied = None if "lm_head" in modules else here.pop("lm_head", None)
    for name, arrays in here.items():
        if name not in modules:
            wrong.append(f"{name}: the model has no such layer, or it is part of the head, which is trained in full here")
            continue
        layer = _layer(name, arrays, config, model, wrong)
        if layer is None:
            continue
        if len(modules[name]) == 1:
            adapter.layers[modules[name][0]] = layer
            if layer.of == "embedding" and model.tied_embedding(modules[name][0]):
                _check_tied(layer, tied, name, wrong)
                tied = None
        else:
            adapter.layers |= _apart(layer, modules[name], model, blocks.get(name))
    if tied is not None:
        wrong.append("lm_head: the output matrix is the token embedding here, and the adapter is for one of its own. Untie "
                     "them first: tune.untie(model)")


def _check_tied(layer: Layer, tied: Arrays | None, name: str, wrong: list[str]) -> None:
    """An embedding that is the output, too, must be adapted as both."""
    if tied is None:
        wrong.append(f"{name}: PEFT adapts the embedding alone, and here it is the output matrix, too. Untie them first: "
                     "tune.untie(model)")
    elif not (np.array_equal(tied["A"], layer.arrays["B"].T) and np.array_equal(tied["B"], layer.arrays["A"].T)):
        wrong.append(f"lm_head: its factors are not those of {name}, with which it is tied here. Untie them first: "
                     "tune.untie(model)")


def _layer(name: str, arrays: Arrays, config: dict[str, Any], model: Described, wrong: list[str]) -> Layer | None:
    """The layer that these arrays are, whole; None, with complaints, where they do not fit."""
    names = model.modules[name]
    target = model.targets[names[0]]
    kind = ("IA3" if config["peft_type"] == "IA3" else "DoRA" if config.get("use_dora") else
            "PiSSA" if config.get("init_lora_weights") == "pissa" else "LoRA")
    if target.of != "linear" and kind != "LoRA":
        wrong.append(f"{name}: {kind} on a layer of kind {target.of}, which minitune does not compute. LoRA it does")
        return None
    outputs, inputs = sum(model.targets[other].shape[0] for other in names), target.shape[1:]
    if kind == "IA3":
        inner = _matches(config.get("feedforward_modules"), name, model)
        size = inputs[0] if inner else outputs
        if set(arrays) != {"vector"} or arrays["vector"].shape != ((1, size) if inner else (size, 1)):
            wrong.append(f"{name}.ia3_l: expected {(1, size) if inner else (size, 1)}, got "
                         f"{[array.shape for array in arrays.values()]}")
            return None
        return Layer("IA3", {"vector": arrays["vector"].reshape(-1)}, {"feedforward": inner})
    r, alpha = (_by_pattern(config.get(f"{which}_pattern"), name, usual)
                for which, usual in (("rank", config.get("r", 8)), ("alpha", config.get("lora_alpha", 8))))
    shapes = {"A": (r, *inputs), "B": (outputs, r, *(1 for _ in inputs[1:]))}
    if target.of == "embedding":                # the rows of a table are inputs, not outputs
        shapes = {"embedding A": (r, outputs), "embedding B": (inputs[0], r)}
    shapes |= {"magnitude": (outputs,)} if kind == "DoRA" else {}
    misfits = _shape_misfits(name, arrays, shapes, target.of)
    wrong += misfits
    if misfits:
        return None
    settings = {"scale": alpha / (sqrt(r) if config.get("use_rslora") else r), "dropout": config.get("lora_dropout", 0.0),
                "use_rslora": bool(config.get("use_rslora"))}
    named = {key.split()[-1]: array for key, array in arrays.items()}
    layer = Layer("DoRA" if kind == "DoRA" else "LoRA", named, settings, target.of)
    return _with_start(layer, names, model) if kind == "PiSSA" else layer


def _with_start(layer: Layer, names: list[str], model: Described) -> Layer:
    """A PiSSA adapter as a LoRA of twice the rank on the base as it is: W - scale B_0 A_0 + scale B A."""
    backbone = "" if model.kind is None else "backbone."
    W = np.concatenate([model.state[f"{backbone}{name}.weight"] for name in names]).astype(np.float64)
    A, B, r = layer.arrays["A"], layer.arrays["B"], len(layer.arrays["A"])
    U, S, VT = np.linalg.svd(W, full_matrices=False)
    root = np.sqrt(S[:r] / layer.settings["scale"])
    arrays = {"A": np.concatenate([A, root[:, None] * VT[:r]]), "B": np.concatenate([B, -U[:, :r] * root], 1)}
    dtype = np.promote_types(A.dtype, np.float32)           # what is taken off the base is no rounder than the base
    return Layer("LoRA", {name: array.astype(dtype) for name, array in arrays.items()}, layer.settings)


def _shape_misfits(name: str, arrays: Arrays, shapes: dict[str, tuple[int, ...]], of: str) -> list[str]:
    wrong = []
    for key, shape in shapes.items():
        theirs = NAMES[of, key.split()[-1]]
        if key not in arrays:
            wrong.append(f"{name}.{theirs}: missing, or the layer is of another kind")
        elif arrays[key].shape != shape:
            turned = arrays[key].shape == shape[::-1] and len(shape) == 2
            wrong.append(f"{name}.{theirs}: expected {shape}, got {arrays[key].shape}" +
                         (". It is transposed: mlx writes its factors so, PEFT does not" if turned else ""))
    return wrong + [f"{name}: {key} was not expected" for key in arrays if key not in shapes]


def _apart(layer: Layer, names: list[str], model: Described, ranks: dict[str, list[int]] | None) -> dict[str, Layer]:
    """A joined layer as the three that it is here: A copied, each with its rows of B, and without ranks that these leave out.

    Which ranks a third has, minitune's folders say; elsewhere they are the columns of B with numbers in its rows, where no two
    thirds share one.
    """
    ends = np.cumsum([model.targets[name].shape[0] for name in names])
    rows = [slice(end - model.targets[name].shape[0], end) for name, end in zip(names, ends, strict=True)]
    if layer.kind == "IA3":
        vectors = {name: layer.arrays["vector"][row] for name, row in zip(names, rows, strict=True)}
        some = any((vector != 1).any() for vector in vectors.values())
        return {name: Layer("IA3", {"vector": vector}, layer.settings) for name, vector in vectors.items()
                if not some or (vector != 1).any()}
    A, B = layer.arrays["A"], layer.arrays["B"]
    used = [np.flatnonzero(B[row].any(0)) for row in rows]
    if ranks is not None:
        used = [np.arange(*ranks.get(name.rpartition(".")[2], (0, 0))) for name in names]
    elif sum(map(len, used)) == 0 or sum(map(len, used)) > len(set(np.concatenate(used))):
        used = [np.arange(len(A)) for _ in names]
    apart = {}
    for name, row, columns in zip(names, rows, used, strict=True):
        if len(columns) == 0 and layer.kind == "DoRA":          # its magnitude may have been trained
            columns = np.arange(len(A)) if ranks is None else columns
        if len(columns):
            arrays = {"A": A[columns].copy(), "B": np.ascontiguousarray(B[row][:, columns])}
            arrays |= {"magnitude": layer.arrays["magnitude"][row].copy()} if layer.kind == "DoRA" else {}
            apart[name] = Layer(layer.kind, arrays, layer.settings)
    return apart


def _read_saved(rest: Arrays, config: dict[str, Any], model: Described, adapter: Adapter, wrong: list[str]) -> None:
    """Parameters saved in full: the head's, or the backbone's; what the base has the same is left out."""
    family, backbone = model.family, "" if model.kind is None else "backbone."
    heads = {theirs: own for own, theirs in (family.head_names(model.kind) or {}).items()}
    names = {theirs: own for own, theirs in family.names.items()}
    outside = {theirs: own for own, theirs in family.outside.items()}
    trained = config.get("modules_to_save") or []
    tied = family.tied({"tie_word_embeddings": True})
    inner: Arrays = {}
    copies: Arrays = {}
    for key, array in rest.items():
        key = key.replace(".base_layer.", ".").replace(".original_module.", ".")
        bare = key.removeprefix(family.prefix)
        ours = translate(key, heads) if model.kind is not None else None
        part = translate(bare, names) or translate(key, outside)
        if ours is None and part is None and key in tied:
            copies[key] = array
        elif ours is not None:
            adapter.parameters[ours] = array
        elif part is not None:
            inner[part] = array.T if bare.endswith(family.transposed) else array
        else:
            wrong.append(f"{key}: the model has no such parameter. Is it of another head?")
    for part, array in family.split(inner, wrong).items():
        own = model.state.get(backbone + part)
        if own is not None and own.shape == array.shape and np.array_equal(own.astype("<f4"), array.astype("<f4")):
            continue
        if own is not None and own.shape != array.shape and part.startswith(("token_embedding", "lm_head")):
            wrong.append(f"{part}: {len(array):,} rows, the model has {len(own):,}. Was the adapter trained with another "
                         "vocabulary?")
        elif own is None or not trained:
            wrong.append(f"{part}: not the base's weight, and modules_to_save does not name it. Was the adapter trained on "
                         "another base?")
        else:
            adapter.parameters[backbone + part] = array
    here = model.state | adapter.parameters
    for key, array in copies.items():
        bare = tied[key].removeprefix(family.prefix)
        own = here.get(translate(tied[key], heads) or f"{backbone}{translate(bare, names)}")
        if own is None or not np.array_equal(own.astype("<f4"), array.astype("<f4")):
            wrong.append(f"{key}: not {tied[key]}, with which it is one here. PEFT trains a saved module apart from what "
                         "it was tied to: leave it out of modules_to_save")
    for name, array in adapter.parameters.items():
        if model.state[name].shape != array.shape:
            wrong.append(f"{name}: expected {model.state[name].shape}, got {array.shape}. Has the head other labels?")


def _virtual_from_peft(config: dict[str, Any], rest: Arrays, model: Described,
                       wrong: list[str]) -> tuple[str, np.ndarray] | None:
    """The prompt or prefix; None, with a complaint, where it is of another shape or reads otherwise."""
    kind = next(ours for ours, theirs in VIRTUAL.items() if theirs == config["peft_type"])
    array, sizes = rest.pop("prompt_embeddings", np.zeros(0)), model.sizes
    width = sizes["channels"] if kind == "prompt" else 2 * sizes["layers"] * sizes["kv_heads"] * sizes["head_size"]
    if array.shape != (expected := (config.get("num_virtual_tokens"), width)):
        wrong.append(f"prompt_embeddings: expected {expected}, got {array.shape}")
        return None
    if kind == "prompt" and (model.kind in TASKS and model.settings.get("pooling") not in (None, "last")):
        wrong.append("PEFT lets this classifier read the first position, which is the prompt's there and the text's here")
    return kind, array


# ---- PEFT's settings ---------------------------------------------------------------------------------------------------

def _meant(config: dict[str, Any], model: Described, wrong: list[str]) -> list[str]:
    """The modules that target_modules mean, less exclude_modules, in the layers of layers_to_transform."""
    targets, modules = config.get("target_modules"), model.modules
    if targets is None:
        return []
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return [name for name, own in modules.items() if model.targets[own[0]].of == "linear" and name != "lm_head"]
    try:
        meant = [name for name in modules if _matches(targets, name, model)
                 and not _matches(config.get("exclude_modules"), name, model)]
    except re.error as error:
        wrong.append(f"target_modules is {short(targets)}, no regular expression ({error})")
        return []
    layers, pattern = config.get("layers_to_transform"), config.get("layers_pattern")
    if layers is None or layers == [] or isinstance(targets, str):
        return meant
    patterns = [pattern] if isinstance(pattern, str) else pattern or [r"[^.]*"]
    numbers = [layers] if isinstance(layers, int) else layers
    found = {name: next(filter(None, (re.match(rf"(?:^|.*?\.){p}\.(\d+)\.", name) for p in patterns)), None) for name in meant}
    return [name for name, number in found.items() if number is not None and int(number[1]) in numbers]


def _matches(patterns: Any, name: str, model: Described) -> bool:
    """Whether PEFT's list of ends, or its regular expression, means this module."""
    spellings = {name, name.removeprefix(model.family.prefix), model.family.prefix + name.removeprefix(model.family.prefix)}
    if isinstance(patterns, str):
        return any(re.fullmatch(patterns, spelling) for spelling in spellings)
    return any(f".{spelling}".endswith(f".{end}") for spelling in spellings for end in patterns or ())


def _by_pattern(patterns: Any, name: str, usual: Any) -> Any:
    """The value of the first regular expression that means this module's name, or its end."""
    return next((value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", name)), usual)
