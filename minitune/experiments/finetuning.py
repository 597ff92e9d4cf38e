"""finetune: a pre-trained model and a data set of any kind in, a tuned model out. The command and TextClassifier use it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import numpy as np

from .. import backend
from ..data import Batch, ClassificationSet, Dataset, ExampleSet, LanguageModelSet, Split, Tokenizer
from ..models import GPT, Classifier, from_pretrained
from ..train import Trainer
from ..train.evaluate import BatchSet
from ..tune import Certificate, FreezeConfig, FullConfig, LoRAConfig, Report, apply, merge
from ..tune.apply import Method

TUNING: dict[str, Method] = {"frozen": FreezeConfig(), "full": FullConfig(), "lora": LoRAConfig(r=8, lora_alpha=16)}
RATES = {"frozen": 1e-2, "full": 1e-3, "lora": 1e-2}           # at 128 channels; a wider model takes a lower one


@dataclass(frozen=True)
class Finetuning:
    """How a model is tuned: the method ("full", "lora" or "frozen"), passes over the data, rate and batch.

    `lr` None means the method's usual rate times 128 / channels. With a validation split the epoch that did best on it is
    kept, and tuning stops after `patience` epochs without a better one.
    """

    method: str = "full"
    epochs: int = 10
    lr: float | None = None
    batch_size: int = 16
    accumulate: int = 1
    patience: int = 3
    pooling: str = "mean"
    ema: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in TUNING:
            raise ValueError(f"Finetuning: method must be one of {', '.join(TUNING)}, got {self.method!r}")
        if self.epochs < 1:
            raise ValueError(f"Finetuning: epochs must be at least 1, got {self.epochs}")


@dataclass
class Finetuned:
    """What `finetune` made: the model, with adapters merged; how it was trained; what a person should be told."""

    model: GPT | Classifier
    trainer: Trainer
    report: Report
    certificate: Certificate | None = None
    notes: list[str] = field(default_factory=list)


def base_model(base: str | Path | GPT) -> GPT:
    """The GPT with its tokenizer in a model or run folder, or the given one; of a classifier, what is under its head.

    Raises FileNotFoundError for a folder without a model, ValueError for a model without a tokenizer.
    """
    if isinstance(base, GPT):
        model: GPT | Classifier = base
    else:
        model = from_pretrained(model_folder(base))
    gpt = model.backbone if isinstance(model, Classifier) else model
    if not isinstance(gpt, GPT) or model.tokenizer is None:
        raise ValueError(f"finetune: {base} must hold a GPT with its tokenizer.json")
    gpt.tokenizer = model.tokenizer
    return gpt


def model_folder(folder: str | Path) -> Path:
    """The folder with the model: a run folder's `model`, or the folder itself."""
    inside = Path(folder) / "model"
    return inside if (inside / "config.json").exists() else Path(folder)


def as_set(split: Split, kind: str, tokenizer: Tokenizer, block_size: int) -> ClassificationSet | ExampleSet | LanguageModelSet:
    """What a model reads of a split of this kind; what is too long is cut, and the set's `truncated` says which.

    Raises ValueError for a kind that is no text, and where a text is too short to fill a row.
    """
    if kind == "classification":
        return ClassificationSet.from_split(split, tokenizer, block_size)
    if kind == "text":
        return LanguageModelSet.from_texts(split.texts, tokenizer, block_size)
    if kind not in ("completion", "chat"):
        raise ValueError(f"finetune: expected texts, got a data set of kind {kind!r}")
    assert split.examples is not None
    return ExampleSet(split.examples, tokenizer, block_size, truncate=True)


def finetune(dataset: Dataset, base: str | Path | GPT, settings: Finetuning | None = None, out: str | Path | None = None,
             resume: bool = False, progress: bool = True) -> Finetuned:
    """Tunes the model in the folder `base` on a data set: a classifier where it has labels, else a language model.

    Texts are learned whole, of prompts and chats the answers only. With `out`, history and checkpoints are written there,
    and `resume` goes on from the last. LoRA's adapters are merged at the end, checked on a probe.
    Raises ValueError for a base, data or settings that do not fit.
    """
    settings = settings or Finetuning()
    backend.seed(settings.seed)
    gpt = base_model(base)
    model = Classifier(gpt, dataset.labels, settings.pooling) if dataset.kind == "classification" else gpt
    report = apply(model, TUNING[settings.method])
    train, valid, notes = _sets(dataset, gpt)
    steps = ceil(len(train) / (settings.batch_size * settings.accumulate))
    trainer = Trainer(model, train, valid, steps=steps * settings.epochs, batch_size=settings.batch_size,
                      lr=settings.lr or RATES[settings.method] * 128 / gpt.config.n_embd, accumulate=settings.accumulate,
                      evaluate_every=steps, patience=settings.patience if valid else None, ema=settings.ema, out=out,
                      progress="fine-tuning" if progress else False)
    trainer.fit(resume=resume)
    made = Finetuned(model, trainer, report, notes=notes)
    if settings.method == "lora":
        made.certificate = merge(model, _probe(train))
        notes.append(str(made.certificate))
    return made


def _sets(dataset: Dataset, gpt: GPT) -> tuple[BatchSet, BatchSet | None, list[str]]:
    """(train, valid or None, what a person should be told about them)."""
    assert gpt.tokenizer is not None
    size, notes = gpt.config.block_size, []
    train = as_set(dataset.train, dataset.kind, gpt.tokenizer, size)
    cut = len(getattr(train, "truncated", ()))
    if cut:
        notes.append(f"{cut:,} of {len(dataset.train):,} training texts are longer than the model's {size} tokens and were cut")
    if "valid" not in dataset.splits:
        return train, None, [*notes, "there is no validation split: the last weights are kept"]
    try:
        return train, as_set(dataset.valid, dataset.kind, gpt.tokenizer, size), notes
    except ValueError as short:
        if dataset.kind != "text":
            raise
        return train, None, [*notes, f"the validation text is not used: {short}"]


def _probe(train: BatchSet) -> Batch:
    return train.batch(np.arange(min(8, len(train))))
