"""Pre-training: a tokenizer and a small GPT from the unlabelled texts of a data set."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import backend
from ..data import Dataset, LanguageModelSet, Tokenizer
from ..formats.folder import write_text
from ..models import GPT, GPTConfig, from_pretrained
from ..train import Trainer, evaluate


@dataclass(frozen=True)
class Pretraining:
    """The settings of a pre-training: a GPT of these sizes, `steps` steps of `batch_size` rows of `block_size` tokens."""

    vocab_size: int = 2048
    block_size: int = 128
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    steps: int = 1000
    batch_size: int = 16
    lr: float = 2e-3
    held_out: int = 64          # rows kept back to measure perplexity on
    seed: int = 0


def pretrain(dataset: Dataset, folder: str | Path, settings: Pretraining | None = None, progress: bool = True) -> GPT:
    """The GPT pre-trained on `dataset.unlabelled`, with its tokenizer, saved in `folder`.

    A folder that holds a model of the same settings and texts is read instead. pretraining.json records the settings,
    the texts' fingerprint and the perplexity on the rows held out; history.csv how it went.
    Raises ValueError where the folder holds another model: it is not overwritten.
    """
    settings, folder = settings or Pretraining(), Path(folder)
    asked = asdict(settings) | {"dataset": dataset.name, "fingerprint": dataset.fingerprint, "version": dataset.version}
    record = folder / "pretraining.json"
    if (folder / "model.safetensors").exists():
        _check_same(asked, json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}, folder)
        model = from_pretrained(folder)
        assert isinstance(model, GPT)
        return model
    backend.seed(settings.seed)
    texts = dataset.unlabelled.texts
    tokenizer = Tokenizer.train(texts, settings.vocab_size)
    rows = LanguageModelSet.from_texts(texts, tokenizer, settings.block_size)
    train, valid = rows.split(settings.held_out)
    model = GPT(GPTConfig(tokenizer.vocab_size, settings.block_size, settings.n_layer, settings.n_head, settings.n_embd))
    model.tokenizer = tokenizer
    trainer = Trainer(model, train, steps=settings.steps, lr=settings.lr, batch_size=settings.batch_size,
                      schedule="cosine", out=folder, progress="pre-training" if progress else False)
    trainer.fit()
    tokens = settings.steps * settings.batch_size * settings.block_size
    measured = {"perplexity": evaluate(model, valid)["perplexity"], "tokens_in_texts": int(rows.ids.size),
                "tokens_read": tokens, "parameters": model.num_parameters()}
    write_text(record, json.dumps(asked | measured, indent=2) + "\n")
    model.save_pretrained(folder)               # last: it says that the folder is whole
    return model


def _check_same(asked: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    differ = [f"{name} {found.get(name)!r}, not {value!r}" for name, value in asked.items() if found.get(name) != value]
    if differ:
        raise ValueError(f"pretrain: {folder} holds another model ({', '.join(differ[:3]) if found else 'no record of how'}"
                         "). Give another folder, or move this one away")
