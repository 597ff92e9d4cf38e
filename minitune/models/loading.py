"""from_pretrained: the model in a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..data import Tokenizer
from ..formats.family import Stored, own_type, short
from ..formats.folder import read_model
from ..nn import shapes_only
from .awd_lstm import AWDLSTM, AWDLSTMConfig
from .bert import BERT, BERTConfig
from .classifier import Classifier
from .cnn import CNN, CNNConfig
from .gpt import GPT, GPTConfig
from .llama import Llama, LlamaConfig
from .masked_language_model import MaskedLanguageModel
from .other_heads import MultiLabelClassifier, MultipleChoice, TokenClassifier
from .vit import ViT, ViTConfig

BACKBONES: dict[str, tuple[Any, Any]] = {
    backbone.family.name: (backbone, config)
    for backbone, config in ((GPT, GPTConfig), (BERT, BERTConfig), (Llama, LlamaConfig), (ViT, ViTConfig),
                             (AWDLSTM, AWDLSTMConfig), (CNN, CNNConfig))}
HEADS: dict[str, Any] = {head.kind: head for head in (Classifier, MultiLabelClassifier, TokenClassifier, MultipleChoice,
                                                      MaskedLanguageModel)}


def from_pretrained(folder: str | Path) -> Any:
    """The model in a folder that `save_pretrained` or Hugging Face wrote, in evaluation mode: a backbone, or a head on one.

    The weights are float32, whatever the folder holds. Nothing in the folder is executed.
    Raises FileNotFoundError where a file is missing, ValueError where its contents do not fit; all misfits are listed.
    """
    config, tensors = read_model(folder)
    backbone, fields_of = _backbone(config)
    stored = backbone.family.read(config, tensors)
    with shapes_only():                         # no random weights are drawn for a model that is about to be filled
        model = backbone(_config(fields_of, stored.fields))
        if stored.kind is not None:
            model = HEADS[stored.kind](model, **stored.settings)
    _fill(model, stored, folder)
    file = Path(folder) / "tokenizer.json"
    if "vocab_size" in stored.fields and file.exists():
        model.tokenizer = _tokenizer(file, stored.fields["vocab_size"])
    model.eval()                                # as Hugging Face's: dropout is off until the model is trained
    return model


def _backbone(config: dict[str, Any]) -> tuple[Any, Any]:
    """The classes of the backbone and its config that model_type names, Hugging Face's name or our own with a head's kind."""
    model_type = config.get("model_type")
    for name, classes in BACKBONES.items():
        if model_type == name or model_type in (own_type(name, kind)["model_type"] for kind in (None, *HEADS)):
            return classes
    raise ValueError(f"from_pretrained: model_type is {short(model_type)}, expected one of {', '.join(BACKBONES)}")


def _config(config: Any, fields: dict[str, Any]) -> Any:
    """The config of these fields."""
    known = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(config)}
    wrong = [f"{name} is unknown" for name in fields if name not in known]
    wrong += [f"{name} is missing" for name, required in known.items() if required and name not in fields]
    if not wrong:
        try:
            return config(**fields)
        except (TypeError, ArithmeticError) as error:           # a value of a type that the config's checks do not expect
            wrong = [str(error)]
    raise ValueError(f"from_pretrained: config.json does not describe a {config.__name__}: " + "; ".join(wrong))


def _tokenizer(file: Path, rows: int) -> Tokenizer:
    """The tokenizer in a file, where the embedding has a row for each of its tokens."""
    try:
        tokenizer = Tokenizer.load(file)
    except UnicodeDecodeError as damage:
        raise ValueError(f"from_pretrained: {file}: not a whole tokenizer.json ({damage})") from damage
    if tokenizer.vocab_size > rows:
        raise ValueError(f"from_pretrained: {file.parent}: tokenizer.json has {tokenizer.vocab_size:,} tokens, the model's "
                         f"embedding {rows:,} rows. Is it another model's tokenizer?")
    return tokenizer


def _fill(model: Any, stored: Stored, folder: str | Path) -> None:
    """Puts the arrays into the model; raises ValueError with all that do not fit."""
    misfits = list(stored.misfits)
    try:
        model.load_state_dict(stored.state)
    except ValueError as error:
        misfits += str(error).split("\n  ")[1:]
    if misfits:
        raise ValueError(f"from_pretrained: {folder}: the arrays do not fit this model:\n  " + "\n  ".join(misfits))
