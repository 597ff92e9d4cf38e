"""Adapter folders in PEFT's form: adapter_config.json, adapter_model.safetensors and README.md.

A fourth file, minitune_adapter.json, holds what PEFT's format has no place for: fingerprints of the arrays, of the base and of
the vocabulary, and the labels. Knows no model class.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from .family import Arrays, short, translate
from .folder import PICKLES, read_json, read_tensors, write_tensors, write_together
from .gpt2 import QKV

CONFIG, WEIGHTS, CARD, OWN = "adapter_config.json", "adapter_model.safetensors", "README.md", "minitune_adapter.json"
MINITUNE = "MINITUNE"                           # the peft_type of what PEFT cannot hold, so that its tools refuse it
ROOT = "base_model.model."                      # before the names of arrays
TASKS = {"classifier": "SEQ_CLS", "multi_label_classifier": "SEQ_CLS", "token_classifier": "TOKEN_CLS"}
VIRTUAL = {"prompt": "PROMPT_TUNING", "prefix": "PREFIX_TUNING"}
NAMES = {                                       # (what is adapted, our array) -> PEFT's name
    ("linear", "A"): "lora_A.weight", ("linear", "B"): "lora_B.weight",
    ("convolution", "A"): "lora_A.weight", ("convolution", "B"): "lora_B.weight",
    ("embedding", "A"): "lora_embedding_A", ("embedding", "B"): "lora_embedding_B",
    ("linear", "magnitude"): "lora_magnitude_vector", ("linear", "vector"): "ia3_l"}


class Unheld(ValueError):
    """PEFT's format has no place for this adapter; the message says for what."""


@dataclass
class Layer:
    """An adapted layer: "LoRA" and "DoRA" have arrays A, B (magnitude) and a `scale`, "IA3" a vector; others are minitune's.

    `of` is what is adapted, "linear", "embedding" or "convolution".
    """

    kind: str
    arrays: Arrays
    settings: dict[str, Any]
    of: str = "linear"


@dataclass
class Adapter:
    """All that was trained: layers by their names in the backbone, parameters in full, and a prompt or prefix."""

    layers: dict[str, Layer] = field(default_factory=dict)
    parameters: Arrays = field(default_factory=dict)
    virtual: tuple[str, np.ndarray] | None = None       # ("prompt", (P, C)) or ("prefix", (P, 2 L kv_heads D))
    blocks: dict[str, dict[str, list[int]]] = field(default_factory=dict)   # the ranks of each third of a joined layer


@dataclass(frozen=True)
class Target:
    """What an adapter can be put on: the kind of layer, the weight's shape, and the length of each of its rows."""

    of: str
    shape: tuple[int, ...]
    norms: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Described:
    """A model as a folder sees it: family, head and its settings, names of arrays, layers, and the numbers a prompt needs."""

    family: Any
    kind: str | None
    settings: dict[str, Any]
    state: Arrays                               # of the base, in minitune's names
    targets: dict[str, Target]
    sizes: dict[str, int]

    @property
    def prefix(self) -> str:
        """What stands before the backbone's names there."""
        return self.family.prefix if self.family.prefixed or self.kind is not None else ""

    def place(self, name: str) -> tuple[str, int | None]:
        """(Hugging Face's module, which third of it or None) of a layer of the backbone. Raises Unheld where there is none."""
        block, _, which = name.rpartition(".")
        theirs, third = translate(name, self.family.names), None
        if theirs is None and which in QKV and (theirs := translate(f"{block}.qkv", self.family.names)):
            third = QKV.index(which)
        if theirs is not None:
            return self.prefix + theirs, third
        if (theirs := translate(name, self.family.outside)) is None:
            raise Unheld(f"Hugging Face has no layer for {name}")
        return theirs, third

    @cached_property
    def modules(self) -> dict[str, list[str]]:
        """{Hugging Face's module: the layers here that it is}, of all that could be adapted."""
        places: dict[str, list[str]] = {}
        for name in self.targets:
            places.setdefault(self.place(name)[0], []).append(name)
        return places

    def tied_embedding(self, name: str) -> bool:
        """Whether this layer is a token embedding that is the output matrix, too."""
        causal = self.family.architectures[0].endswith(("LMHeadModel", "ForCausalLM"))
        return (name == "token_embedding" and (self.kind == "masked_language_model" or causal and self.kind is None)
                and "lm_head" not in self.targets)

    def task(self) -> str | None:
        """PEFT's name of what the model does."""
        if self.kind is not None:
            return TASKS.get(self.kind) if self.family.name != "vit" else None
        causal = self.family.architectures[0].endswith(("LMHeadModel", "ForCausalLM"))
        return "CAUSAL_LM" if causal else "FEATURE_EXTRACTION"


# ---- Folders -----------------------------------------------------------------------------------------------------------

def fingerprint(arrays: Arrays) -> str:
    """SHA-256 of names, shapes and numbers, these in float32."""
    digest = sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape} ".encode())
        digest.update(np.ascontiguousarray(arrays[name], "<f4").data)
    return digest.hexdigest()


def write_folder(folder: str | Path, config: dict[str, Any], tensors: Arrays, own: dict[str, Any], card: str) -> None:
    """Writes the four files of an adapter, all or none; `own` gets the fingerprint of the arrays."""
    own = own | {"arrays": fingerprint(tensors)}
    texts = {CONFIG: json.dumps(config, indent=2) + "\n", CARD: card, OWN: json.dumps(own, indent=2) + "\n"}
    files: dict[Path, Callable[[Path], Any]] = {Path(folder) / WEIGHTS: lambda file: write_tensors(file, tensors)}
    files |= {Path(folder) / name: partial(_write, text) for name, text in texts.items()}
    write_together(files)


def _write(text: str, file: Path) -> None:
    file.write_text(text, encoding="utf-8")


def read_folder(folder: str | Path) -> tuple[dict[str, Any], Arrays, dict[str, Any]]:
    """(adapter_config.json, arrays, minitune_adapter.json or {}) of an adapter's folder. Nothing in it is executed.

    Raises FileNotFoundError where a file is missing, ValueError where one is damaged, or where the arrays are not those that
    minitune wrote beside minitune_adapter.json: a transposed factor may have the right shape and computes something else.
    """
    folder = Path(folder)
    for name in CONFIG, WEIGHTS:
        if not (folder / name).exists():
            raise FileNotFoundError(_missing(folder, name))
    config, tensors = read_json(folder / CONFIG), read_tensors(folder / WEIGHTS)
    own = read_json(folder / OWN) if (folder / OWN).exists() else {}
    if own and own.get("arrays") != fingerprint(tensors):
        raise ValueError(f"load_adapter: {folder / WEIGHTS}: not the arrays that {OWN} describes (the fingerprint differs). "
                         "Was the file written anew by another tool, or a factor transposed? Take the folder as it was saved; "
                         f"if the new arrays are meant and PEFT's, remove {OWN}")
    return config, tensors, own


def _missing(folder: Path, name: str) -> str:
    if (folder / "config.json").exists():
        return f"load_adapter: {folder} holds a model, no adapter. models.from_pretrained reads it"
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    found = f"; the folder holds {', '.join(pickles[:6])}. Let whoever made them save safetensors" if pickles else ""
    inside = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG}"))
    found += f". Is one of its folders meant: {', '.join(inside[:6])}?" if inside else ""
    return (f"load_adapter: {folder / name} is missing. An adapter's folder holds {CONFIG} and {WEIGHTS}; pickled weights are "
            f"not read, since reading them runs code{found}")


# ---- minitune's own form -------------------------------------------------------------------------------------------------

def to_own(adapter: Adapter, reason: str) -> tuple[dict[str, Any], Arrays]:
    """(adapter_config.json, arrays) of what PEFT cannot hold, for that reason: our names, and a peft_type that PEFT refuses."""
    config = {"peft_type": MINITUNE, "base_model_name_or_path": None, "reason": reason,
              "layers": {name: {"kind": layer.kind, "of": layer.of} | layer.settings for name, layer in adapter.layers.items()},
              "virtual": adapter.virtual and adapter.virtual[0]}
    tensors = {f"layers.{name}.{key}": array for name, layer in adapter.layers.items() for key, array in layer.arrays.items()}
    tensors |= {f"parameters.{name}": array for name, array in adapter.parameters.items()}
    return config, tensors | ({"virtual": adapter.virtual[1]} if adapter.virtual else {})


def from_own(config: dict[str, Any], tensors: Arrays) -> Adapter:
    """The adapter in a folder of minitune's own form. Raises ValueError where config and arrays do not belong together."""
    described, adapter = config.get("layers"), Adapter()
    if not isinstance(described, dict) or not all(isinstance(given, dict) for given in described.values()):
        raise ValueError(f"load_adapter: {CONFIG}: layers is {short(described)}, expected an object for each layer")
    for name, given in described.items():
        arrays = {key.removeprefix(f"layers.{name}."): array for key, array in tensors.items()
                  if key.startswith(f"layers.{name}.")}
        settings = {key: value for key, value in given.items() if key not in ("kind", "of")}
        adapter.layers[name] = Layer(str(given.get("kind")), arrays, settings, str(given.get("of")))
    adapter.parameters = {key.removeprefix("parameters."): array for key, array in tensors.items()
                          if key.startswith("parameters.")}
    if config.get("virtual") is not None:
        adapter.virtual = str(config["virtual"]), tensors["virtual"]
    return adapter
