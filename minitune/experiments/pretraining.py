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
from ..train import Trainer, evaluate, remove_checkpoints
from ..train.checkpoint import checkpoints


@dataclass(frozen=True)
class Pretraining:
    """The settings of a pre-training: a GPT of these sizes, `steps` steps of `batch_size` rows of `block_size` tokens.

    With `backward` it reads every text from its end, as the second model of ULMFiT's pair does.
    """

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
    backward: bool = False


def pretrain(dataset: Dataset, folder: str | Path, settings: Pretraining | None = None, progress: bool = True,
             out: str | Path | None = None, device: str = "cpu", dtype: str | None = None) -> GPT:
    """The GPT pre-trained on `dataset.unlabelled`, with its tokenizer, saved in `folder`.

    Where there are no unlabelled texts, the training texts are read. A folder that holds a model of the same settings and
    texts is read instead; an interrupted pre-training goes on from its last checkpoint. pretraining.json records the
    settings, the texts' fingerprint and the perplexity on what was held out, the validation texts or else the last rows;
    history.csv, in `out` if that is given, how it went. `device` and `dtype` are those of `Module.to`, and no part of the
    record; what was interrupted goes on in the dtype that it was begun in. Raises ValueError for a data set without texts or
    with too few, and where the folder holds another model or the beginning of one: it is not overwritten.
    """
    settings, folder, out = settings or Pretraining(), Path(folder), Path(out or folder)
    asked = asdict(settings) | {"dataset": dataset.name, "fingerprint": dataset.fingerprint, "version": dataset.version}
    record, whole = folder / "pretraining.json", (folder / "model.safetensors").exists()
    if whole or checkpoints(out):
        _check_same(asked, json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}, folder)
    if whole:
        model = from_pretrained(folder)
        assert isinstance(model, GPT)
        return model.to(device, dtype)
    backend.seed(settings.seed)
    model, train, valid = _model_and_rows(dataset, settings)
    model.to(device, dtype)
    trainer = Trainer(model, train, valid, steps=settings.steps, lr=settings.lr, batch_size=settings.batch_size,
                      schedule="cosine", out=out, progress="pre-training" if progress else False)
    write_text(record, json.dumps(asked, indent=2) + "\n")          # whose the checkpoints are
    trainer.fit(resume=True)
    measured = {"perplexity": evaluate(model, valid)["perplexity"], "training_tokens": train.ids.size,
                "tokens_read": settings.steps * settings.batch_size * settings.block_size, "parameters": model.num_parameters()}
    write_text(record, json.dumps(asked | measured, indent=2) + "\n")
    model.save_pretrained(folder)               # last: it says that the folder is whole
    remove_checkpoints(out)
    return model


def _model_and_rows(dataset: Dataset, settings: Pretraining) -> tuple[GPT, LanguageModelSet, LanguageModelSet]:
    """(a new model with its tokenizer, rows to train on, rows to measure on)."""
    if dataset.kind == "images":
        raise ValueError(f"pretrain: expected texts, got the images of {dataset.name}")
    texts = (dataset.unlabelled if "unlabelled" in dataset.splits else dataset.train).texts
    tokenizer = Tokenizer.train(texts, settings.vocab_size)
    tokenizer.backward = settings.backward
    rows = LanguageModelSet.from_texts(texts, tokenizer, settings.block_size)
    if dataset.kind == "text" and "valid" in dataset.splits:
        parts = rows, LanguageModelSet.from_texts(dataset.valid.texts, tokenizer, settings.block_size)
    elif len(rows) > 1:
        parts = rows.split(min(settings.held_out, max(1, len(rows) // 10)))
    else:
        raise ValueError(f"pretrain: the texts fill one row of {settings.block_size} tokens, and two are needed: one to train "
                         "on, one to measure on. Give more text or a smaller block_size")
    model = GPT(GPTConfig(tokenizer.vocab_size, settings.block_size, settings.n_layer, settings.n_head, settings.n_embd))
    model.tokenizer = tokenizer
    return model, *parts


def _check_same(asked: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    found = {"backward": False} | found if found else found         # records of before had no other
    differ = [f"{name} {found.get(name)!r}, not {value!r}" for name, value in asked.items() if found.get(name) != value]
    if differ:
        raise ValueError(f"pretrain: {folder} holds another model ({', '.join(differ[:3]) if found else 'no record of how'}"
                         "). Give another folder, or move this one away")
