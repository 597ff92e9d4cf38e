"""from_pretrained: the model in a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..data import Tokenizer
from ..formats.family import kind_of, short
from ..formats.folder import find_model, lines, read_model
from ..nn import filled, shapes_only
from .awd_lstm import AWDLSTM, AWDLSTMConfig
from .bert import BERT, BERTConfig
from .classifier import Classifier
from .cnn import CNN, CNNConfig
from .gpt import GPT, GPTConfig
from .llama import Llama, LlamaConfig
from .masked_language_model import MaskedLanguageModel
from .other_heads import MultiLabelClassifier, MultipleChoice, TokenClassifier
from .pretrained import SPECIAL_IDS
from .vit import ViT, ViTConfig

BACKBONES: dict[str, tuple[Any, Any]] = {
    backbone.family.name: (backbone, config)
    for backbone, config in ((GPT, GPTConfig), (BERT, BERTConfig), (Llama, LlamaConfig), (ViT, ViTConfig),
                             (AWDLSTM, AWDLSTMConfig), (CNN, CNNConfig))}
HEADS: dict[str, Any] = {head.kind: head for head in (Classifier, MultiLabelClassifier, TokenClassifier, MultipleChoice,
                                                      MaskedLanguageModel)}


def from_pretrained(folder: str | Path) -> Any:
    """The model in a folder that `save_pretrained` or Hugging Face wrote, in evaluation mode: a backbone, or a head on one.

    `folder` may also be the name of a model that comes with the package: "minitune-base", a small GPT that has read books;
    a folder of that name in the working directory comes before it. The weights are float32, whatever the folder holds.
    Nothing in the folder is executed, nothing downloaded.
    Raises FileNotFoundError where a file is missing, ValueError where its contents do not fit: all that is wrong with
    config.json, or else with the arrays.
    """
    folder = find_model(folder)
    config, tensors = read_model(folder)
    backbone_type, config_type = classes_of(config)
    stored = backbone_type.family.read(config, tensors)
    with shapes_only():                         # no random weights are drawn for a model that is about to be filled
        backbone = model = described(backbone_type, config_of(config_type, stored.fields))
        if stored.kind is not None:
            model = described(HEADS[stored.kind], model, **stored.settings)
            own = kind_of(backbone_type.family.name, config)
            if own and "head.bias" in stored.state and getattr(model, "head", None) and model.head.bias is None:
                model.head.bias = filled(model.head.weight.shape[:1], 0.0)      # that of a head that was standardised
    if misfits := stored.misfits + model.misfits(stored.state):
        raise ValueError(f"from_pretrained: {folder}: the arrays do not fit this model:" + lines(misfits))
    model.load_state_dict(stored.state)
    file = folder / "tokenizer.json"
    if hasattr(backbone.config, "vocab_size") and file.exists():
        model.tokenizer = _tokenizer(file, config, backbone.config.vocab_size)
    getattr(model, "backbone", model).special_ids = {key: config[key] for key in SPECIAL_IDS if key in config}
    model.eval()                                # as Hugging Face's: dropout is off until the model is trained
    return model


def classes_of(config: dict[str, Any]) -> tuple[Any, Any]:
    """The classes of the backbone and its config that model_type names, Hugging Face's name or our own with a head's kind."""
    model_type = config.get("model_type")
    for name, classes in BACKBONES.items():
        if model_type in (name, f"minitune_{name}") or kind_of(name, config) in HEADS:
            return classes
    raise ValueError(f"from_pretrained: model_type is {short(model_type)}, expected one of {', '.join(BACKBONES)}")


def config_of(kind: Any, fields: dict[str, Any]) -> Any:
    """The config of these fields; others are left alone, as Hugging Face's are."""
    known = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(kind)}
    if missing := [f"{name} is missing" for name, required in known.items() if required and name not in fields]:
        raise ValueError(f"from_pretrained: config.json does not describe a {kind.__name__}: " + "; ".join(missing))
    return described(kind, **{name: value for name, value in fields.items() if name in known})


def described(kind: Any, *parts: Any, **settings: Any) -> Any:
    """What config.json describes; whatever is wrong with it is told as such."""
    try:
        return kind(*parts, **settings)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"from_pretrained: config.json does not describe a {kind.__name__}: {error}") from error


def _tokenizer(file: Path, config: dict[str, Any], rows: int) -> Tokenizer:
    """The tokenizer in a file, where the embedding has a row for each token that a text may hold."""
    start, end, pad = (value[0] if isinstance(value, list) and value else value for value in map(config.get, SPECIAL_IDS))
    # of several ends, as Llama 3 has them for texts and for turns, generation stops at the first alone
    start, end, pad = (value if type(value) is int else None for value in (start, end, pad))
    try:
        tokenizer = Tokenizer.load(file, end, pad, start)
    except UnicodeDecodeError as damage:
        raise ValueError(f"from_pretrained: {file}: not a whole tokenizer.json ({damage})") from damage
    if max(tokenizer.largest_id, tokenizer.end) >= rows:
        raise ValueError(f"from_pretrained: {file.parent}: tokenizer.json has {tokenizer.vocab_size:,} tokens, the model's "
                         f"embedding {rows:,} rows. Is it another model's tokenizer?")
    tokenizer.backward = config.get("reads_backward", False)
    if type(tokenizer.backward) is not bool:
        raise ValueError(f"from_pretrained: config.json: reads_backward must be true or false, got {short(tokenizer.backward)}")
    for name in "start", "pad", "mask":         # which somebody added to the tokenizer alone
        if (getattr(tokenizer, name) or 0) >= rows:
            setattr(tokenizer, name, None)
    return tokenizer
