"""Adapters as folders: PEFT's, both ways, and minitune's own of the same shape for what PEFT cannot hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..devices import to_device
from ..formats.family import short
from ..formats.peft import MINITUNE, Adapter, Unheld, fingerprint, from_own, read_folder, to_own, write_folder
from ..formats.peft_reading import from_peft
from ..formats.peft_writing import to_peft
from .adapted import adapted_layers, base_parameters, collect, describe
from .adapters import add
from .nf4 import QLoRALinear
from .patterns import backbone_of
from .pissa import PiSSALinear, weight_fingerprint
from .registry import registry_of
from .report import Report
from .standardized import StandardizedLinear, with_bias
from .virtual_tokens import VirtualTokens


@dataclass(frozen=True)
class SavedAdapter:
    """What `save_adapter` wrote: how many numbers in how many bytes; `reason` says why the form is not PEFT's, or is empty."""

    folder: Path
    parameters: int
    nbytes: int
    reason: str = ""

    def __str__(self) -> str:
        form = f"minitune's form, for {self.reason}" if self.reason else "PEFT's form"
        return f"{self.folder}: {self.parameters:,} numbers in {self.nbytes:,} bytes, in {form}"


def save_adapter(model: Any, folder: str | Path, base: str | None = None) -> SavedAdapter:
    """Writes what was trained in a model, its adapters and new heads, as a folder; the base is not written.

    adapter_config.json, adapter_model.safetensors and README.md are PEFT's, which loads them onto the base that
    `save_pretrained` wrote: LoRA, rsLoRA, DoRA, PiSSA (as the LoRA of twice the rank that it is on the base), IA3, and prompts
    and prefixes where PEFT computes the same. Query, key and value of a GPT are one c_attn there: A copied where the three have
    one, else B block-diagonal, of three times the rank. Heads are PEFT's modules_to_save.
    What PEFT has no place for (Houlsby's adapters, biases and layers trained in full, adapters of a base in four bits, heads
    and models that Hugging Face has not) is written in minitune's form, with a peft_type that PEFT refuses, and the returned
    `reason`. minitune_adapter.json holds fingerprints of arrays, base and vocabulary, and the labels; `load_adapter` checks
    them. `base` is a name or path that others find the base by. All files are renamed when all are whole.
    Raises ValueError where nothing was trained, or everything; and where the model's adapters would be left out, as none of
    them is active or they were merged.

    >>> from minitune import models, tune
    >>> from tempfile import TemporaryDirectory
    >>> gpt = models.GPT(models.GPTConfig(vocab_size=10, block_size=4, n_layer=1, n_head=2, n_embd=16))
    >>> tune.apply(gpt, tune.LoRAConfig(r=2)).trainable
    576
    >>> with TemporaryDirectory() as folder:
    ...     saved = tune.save_adapter(gpt, folder)      # query, key and value as one: r is 6, and B mostly 0
    ...     print(saved.parameters, saved.reason == "")
    768 True
    """
    _refuse_left_out(model)
    adapter, described = collect(model), describe(model)
    try:
        (config, tensors), reason = to_peft(adapter, described), ""
    except Unheld as error:
        reason = str(error)
        config, tensors = to_own(adapter, reason)
    config |= {"base_model_name_or_path": base}
    own = {"base": _fingerprints(model, adapter), "made_of": _made_of(model), "base_name": base,
           "base_model": _base_words(model), "depth": _depth(model),
           "vocabulary": vocabulary_hash(model), "kind": model.kind, "settings": json.loads(json.dumps(model.settings())),
           "blocks": adapter.blocks}
    saved = SavedAdapter(Path(folder), sum(a.size for a in tensors.values()), sum(a.nbytes for a in tensors.values()), reason)
    write_folder(folder, config, tensors, own, _card(config, own, saved))
    return saved


def _refuse_left_out(model: Any) -> None:
    """Raises ValueError where a head would be written without the adapters, or the moments, that it was trained with."""
    if isinstance(getattr(model, "head", None), StandardizedLinear):
        raise ValueError("save_adapter: the head is standardised, and its moments would be left out. First: tune.fold(model)")
    if adapted_layers(backbone_of(model)):
        return
    if merged := [name for name, part in model.named_modules() if hasattr(part, "merged_from")]:
        raise ValueError(f"save_adapter: the adapter was merged into {', '.join(merged[:3])}, and would be left out. Take it "
                         "out again, tune.unmerge(model, certificate), or write the whole model by save_pretrained")
    if waiting := list(registry_of(model).held):
        raise ValueError(f"save_adapter: no adapter is in the model, and {', '.join(waiting)} would be left out. Put one in: "
                         f"tune.set_adapter(model, {waiting[0]!r}); or take them off: tune.remove_adapter")


def load_adapter(model: Any, folder: str | Path, name: str = "default", swap: bool = False,
                 keep_head: bool = False) -> Report:
    """Puts the adapter of a folder, PEFT's or minitune's, into a model, in place; the backbone is frozen, the adapter trains.

    The model is the base that the adapter was trained on, with a head of the same kind where it had one. It becomes the active
    adapter `name`; LoRA and IA3 adapters that the model has stay beside it (`set_adapter`). `swap` puts it in the place of the
    adapter that has this name. `keep_head` takes an adapter without a head for a model that has one. Returns the report.

    Raises FileNotFoundError where a file is missing, and ValueError, with nothing changed, where one is damaged or a factor is
    transposed; where the base, the vocabulary, the head or its labels are not those that it was trained with; where layers do
    not fit or are missing; and for settings of PEFT that minitune does not compute.
    """
    config, tensors, own = read_folder(folder)
    _check_base(model, own, config, folder)
    _check_vocabulary(model, own, folder)
    _check_kind(model, own, folder)
    own_form = config.get("peft_type") == MINITUNE
    adapter = from_own(config, tensors) if own_form else from_peft(config, tensors, describe(model), own.get("blocks"))
    _check_head(model, adapter, keep_head, folder)
    head: Any = getattr(model, "head", None)
    if "head.bias" not in adapter.parameters or getattr(head, "bias", True) is not None:
        return add(model, name, adapter, swap)
    model.head, before = with_bias(head), registry_of(model).active         # that of another adapter stays without one
    try:
        made = add(model, name, adapter, swap)
    except ValueError:
        model.head = head
        raise
    if before not in (None, name):
        registry_of(model).held[before].head["head"] = head
    return made


# ---- What must be the same -----------------------------------------------------------------------------------------------

def _fingerprints(model: Any, adapter: Adapter) -> dict[str, str]:
    """{array of the backbone: the beginning of its fingerprint} of all that stayed as it was."""
    backbone: Any = backbone_of(model)
    moved = {f"{name}.weight" for name, part in backbone.named_modules() if isinstance(part, (PiSSALinear, QLoRALinear))}
    moved |= {name.removeprefix("backbone.") for name in adapter.parameters}
    return {name: _short_fingerprint(name, p) for name, p in base_parameters(backbone) if name not in moved}


def _made_of(model: Any) -> dict[str, str]:
    """{weight of the backbone: its fingerprint before PiSSA took directions out of it, or it was put into four bits}"""
    layers: Any = adapted_layers(backbone_of(model)).items()
    made_of = {name: getattr(layer, "made_of", "") or getattr(layer.base, "made_of", "") for name, layer in layers}
    return {f"{name}.weight": digest for name, digest in made_of.items() if digest}


def _short_fingerprint(name: str, parameter: Any) -> str:
    return fingerprint({name: to_device(parameter.data, "cpu")})[:16]


def vocabulary_hash(model: Any) -> str | None:
    """SHA-256 of the tokens and ids of the model's tokenizer; None without one."""
    tokenizer = getattr(model, "tokenizer", None) or getattr(backbone_of(model), "tokenizer", None)
    if tokenizer is None:
        return None
    return sha256(json.dumps(sorted(tokenizer.vocabulary.items())).encode()).hexdigest()


def _base_words(model: Any) -> str:
    """A base in words, for errors and the README."""
    backbone: Any = backbone_of(model)
    kind = next(cls.__name__ for cls in type(backbone).__mro__ if not issubclass(cls, VirtualTokens))
    numbers = sum(p.size for _, p in base_parameters(backbone))
    return f"a {kind} of {numbers:,} numbers, {_depth(model)} blocks, {backbone.config.n_embd} channels"


def _depth(model: Any) -> int:
    return len(getattr(backbone_of(model), "blocks", []))


def _check_base(model: Any, own: dict[str, Any], config: dict[str, Any], folder: Any) -> None:
    """Raises ValueError where the backbone is another than the one that the adapter was trained on."""
    expected = {**(own.get("made_of") or {}), **(own.get("base") or {})}
    if not expected:
        return
    base, unchanged = dict(base_parameters(backbone_of(model))), own.get("base") or {}
    here = {name: _short_fingerprint(name, p) for name, p in base.items() if name in unchanged}
    here |= {name: weight_fingerprint(base[name].data) for name in expected if name in base and name not in unchanged}
    here |= {name: digest for name, digest in _made_of(model).items() if name in expected}
    other = [name for name, digest in here.items() if digest != expected[name]]
    deeper = own.get("depth", _depth(model)) != _depth(model)       # the blocks that both have may be the same
    if other or deeper or not here:
        named = config.get("base_model_name_or_path") or own.get("base_name")
        raise ValueError(f"load_adapter: {folder}: trained on another base: {own.get('base_model')}"
                         f"{f', called {named}' if named else ''}. The model here is {_base_words(model)}, and "
                         f"{len(other)} of {len(here)} arrays differ{', as ' * bool(other)}{', '.join(other[:3])}. Load that "
                         "base. Was this one trained, merged into, or saved in float16?")


def _check_vocabulary(model: Any, own: dict[str, Any], folder: Any) -> None:
    """Raises ValueError where the model's tokenizer is another than the one that the adapter was trained with."""
    expected, here = own.get("vocabulary"), vocabulary_hash(model)
    if expected and here and expected != here:
        raise ValueError(f"load_adapter: {folder}: trained with another vocabulary (hash {expected[:12]}, the tokenizer here "
                         f"has {here[:12]}): the same ids would mean other tokens. Take the tokenizer that it was trained with")


def _check_kind(model: Any, own: dict[str, Any], folder: Any) -> None:
    """Raises ValueError where the adapter was trained under another head, or one that reads or names its classes otherwise."""
    if (kind := own.get("kind")) is None:
        return
    if kind != model.kind:
        raise ValueError(f"load_adapter: {folder}: trained under a {kind}, the model is "
                         f"a {model.kind or 'backbone without a head'}")
    here = json.loads(json.dumps(model.settings()))
    wrong = [f"{key} {short(value)}, the model has {short(here.get(key))}" for key, value in own.get("settings", {}).items()
             if here.get(key) != value]
    if wrong:
        raise ValueError(f"load_adapter: {folder}: its head was trained with {'; '.join(wrong)}")


def _check_head(model: Any, adapter: Adapter, keep_head: bool, folder: Any) -> None:
    """Raises ValueError where the adapter holds no head and the model has one that may be random."""
    backbone = "backbone." if model.kind is not None else ""
    needed = [name for name, _ in base_parameters(model) if not name.startswith(backbone)] if backbone else []
    missing = [name for name in needed if name not in adapter.parameters]
    if missing and not keep_head:
        raise ValueError(f"load_adapter: {folder}: holds no {', '.join(missing[:4])}, and the model's own may be random: its "
                         "answers would be. Load it on a model with a trained head and keep_head=True, or on the backbone")


def _card(config: dict[str, Any], own: dict[str, Any], saved: SavedAdapter) -> str:
    """README.md: the keys that PEFT's tools read, and what is in the folder in words."""
    front = ["---"] + [f"base_model: {json.dumps(config['base_model_name_or_path'])}"] * bool(config["base_model_name_or_path"])
    front += [] if saved.reason else ["library_name: peft"]
    labels = own["settings"].get("labels")
    trained = config["peft_type"] if not saved.reason else f"in minitune's form, for {saved.reason}"
    words = f"Trained with minitune: {trained}. {saved.parameters:,} numbers."
    named = [f"Labels: {', '.join(labels)}."] if labels else []
    return "\n".join([*front, "---", "", "# Adapter", "", words, "", f"Base: {own['base_model']}.", *named, ""])
