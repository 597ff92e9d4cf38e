"""Pre-training: a tokenizer and a small GPT from the unlabelled texts of a data set."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

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
    """
    settings, folder = settings or Pretraining(), Path(folder)
    asked = asdict(settings) | {"dataset": dataset.name, "fingerprint": dataset.fingerprint, "version": dataset.version}
    record = folder / "pretraining.json"
    if record.exists() and asked.items() <= json.loads(record.read_text(encoding="utf-8")).items():
        model = from_pretrained(folder)
        assert isinstance(model, GPT)
        return model
    record.unlink(missing_ok=True)              # written last: it says that the folder is whole
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
    model.save_pretrained(folder)
    tokens = settings.steps * settings.batch_size * settings.block_size
    measured = {"perplexity": evaluate(model, valid)["perplexity"], "tokens_in_texts": int(np.size(rows.ids)),
                "tokens_read": tokens, "parameters": model.num_parameters()}
    write_text(record, json.dumps(asked | measured, indent=2) + "\n")
    return model
