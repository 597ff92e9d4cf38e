"""finetune: a pre-trained model and a data set of any kind in, a tuned model out. The command and TextClassifier use it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from .. import backend
from ..data import ClassificationSet, Dataset, ExampleSet, LanguageModelSet, Split, Tokenizer
from ..formats.folder import find_model
from ..models import BERT, GPT, Classifier, from_pretrained
from ..models.language_model import LanguageModel
from ..train import Trainer
from ..train.evaluate import BatchSet
from ..tune import Certificate, FreezeConfig, FullConfig, LoRAConfig, Report, apply, fold, merge, standardize
from ..tune.apply import Method
from ..tune.patterns import backbone_of

Backbone = LanguageModel | BERT
DEFAULT_BASE = "minitune-base"                  # comes with the package
TUNING: dict[str, Method] = {"frozen": FreezeConfig(), "full": FullConfig(), "lora": LoRAConfig(r=8, lora_alpha=16)}
ENOUGH = 100                                    # validation rows to choose a classifier's epoch by; fewer choose badly
RATES = {"frozen": 1e-2, "full": 1e-3, "lora": 1e-2}           # at 128 channels; a wider model takes a lower one
STANDARDIZED = RATES | {"full": 2e-3}           # of a classifier whose features are standardised


@dataclass(frozen=True)
class Finetuning:
    """How a model is tuned: the method ("full", "lora" or "frozen"), passes over the data, rate and batch.

    `lr` None means the method's usual rate times 128 / channels. With a validation split the epoch that did best on it is
    kept, and tuning stops after `patience` epochs without a better one; fewer than 100 rows with labels are only watched,
    since one row more or less decides among them. `pooling` None means, for a GPT, "mean" over features that are standardised
    while it is tuned (`tune.standardize`), else what fits the model.
    """

    method: str = "full"
    epochs: int = 15
    lr: float | None = None
    batch_size: int = 16
    accumulate: int = 1
    patience: int = 3
    pooling: str | None = None
    ema: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in TUNING:
            raise ValueError(f"Finetuning: method must be one of {', '.join(TUNING)}, got {self.method!r}")
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"Finetuning: {name} must be at least 1, got {getattr(self, name)}")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"Finetuning: lr must be above 0, got {self.lr}. None takes the method's usual rate")


@dataclass
class Finetuned:
    """What `finetune` made: the model, with adapters merged; how it was trained; what a person should be told."""

    model: LanguageModel | Classifier
    trainer: Trainer
    report: Report
    certificate: Certificate | None = None
    notes: list[str] = field(default_factory=list)


def base_model(base: str | Path | Backbone) -> Backbone:
    """The model with its tokenizer in a model or run folder or shipped by that name, or a copy of the given one; of a head,
    what is under it.

    Raises FileNotFoundError for a folder without a model, ValueError for a model without a tokenizer.
    """
    model = from_pretrained(model_folder(base)) if isinstance(base, (str, Path)) else deepcopy(base)
    backbone = backbone_of(model)
    if not isinstance(backbone, (LanguageModel, BERT)) or model.tokenizer is None:
        raise ValueError("finetune: the base must be a model of texts, such as a GPT, with its tokenizer, tokenizer.json in "
                         f"its folder, got {base}")
    backbone.tokenizer = model.tokenizer
    return backbone


def model_folder(folder: str | Path) -> Path:
    """The folder with the model: a run folder's `model`, the folder itself, or that of a model that comes with the package.

    Raises FileNotFoundError where there is none.
    """
    inside = Path(folder) / "model"
    return inside if (inside / "config.json").exists() else find_model(folder)


def as_set(split: Split, kind: str, tokenizer: Tokenizer, block_size: int,
           causal: bool = True) -> ClassificationSet | ExampleSet | LanguageModelSet:
    """What a model reads of a split of this kind; what is too long is cut, and the set's `truncated` says which.

    Raises ValueError for a kind that is no text, and for texts to write where the model is not causal.
    """
    if kind == "classification":
        return ClassificationSet.from_split(split, tokenizer, block_size, causal)
    if not causal:
        raise ValueError("finetune: a model that reads in both directions, as BERT, writes no text and needs labelled texts, "
                         f"got a data set of kind {kind!r}")
    if kind == "text":
        documents = [tokenizer.frame(ids) for ids in tokenizer.encode_batch(split.texts)]
        return LanguageModelSet(documents, min(block_size, sum(map(len, documents))))     # little text makes one shorter row
    if kind not in ("completion", "chat"):
        raise ValueError(f"finetune: expected texts, got a data set of kind {kind!r}")
    assert split.examples is not None
    return ExampleSet(split.examples, tokenizer, block_size, truncate=True)


def finetune(dataset: Dataset, base: str | Path | Backbone, settings: Finetuning | None = None, out: str | Path | None = None,
             resume: bool = False, progress: bool = True) -> Finetuned:
    """Tunes the model in the folder `base` on a data set: a classifier where it has labels, else a language model.

    `base` may also be "minitune-base", which comes with the package, or a model, which is copied and stays as it is. Texts are
    learned whole, of prompts and chats the answers only. With `out`, history and checkpoints are written there, and `resume`
    goes on from the last. LoRA's adapters are merged at the end, checked on a probe. Raises ValueError for a base,
    data or settings that do not fit.
    """
    settings = settings or Finetuning()
    if settings.method == "frozen" and dataset.kind != "classification":
        raise ValueError("finetune: with method='frozen' a new head alone trains, and a language model gets none. Take 'lora' "
                         "or 'full'")
    backend.seed(settings.seed)
    backbone = base_model(base)
    model: Any = backbone
    standardized = dataset.kind == "classification" and settings.pooling is None and isinstance(backbone, GPT)
    if dataset.kind == "classification":
        model = Classifier(backbone, dataset.labels, "mean" if standardized else settings.pooling)
    elif isinstance(backbone, LanguageModel):
        backbone.require_head()                 # a classifier's folder may hold no output matrix
    report = apply(model, TUNING[settings.method])
    train, valid, notes = _sets(dataset, backbone)
    if standardized:
        standardize(model, train)
    steps = ceil(len(train) / (settings.batch_size * settings.accumulate))
    choose = valid is not None and (dataset.kind != "classification" or len(valid) >= ENOUGH)
    if valid and not choose:
        notes.append(f"{len(valid):,} validation rows are too few to choose an epoch by: the last weights are kept")
    rates = STANDARDIZED if standardized else RATES
    trainer = Trainer(model, train, valid, steps=steps * settings.epochs, batch_size=settings.batch_size,
                      lr=settings.lr or rates[settings.method] * 128 / backbone.config.n_embd, accumulate=settings.accumulate,
                      evaluate_every=steps, keep_best=choose, patience=settings.patience if choose else None,
                      ema=settings.ema, out=out, progress="fine-tuning" if progress else False)
    trainer.fit(resume=resume)
    made = Finetuned(model, trainer, report, notes=notes)
    if settings.method == "lora":
        made.certificate = merge(model, train.batch(np.arange(min(8, len(train)))))
        notes.append(str(made.certificate))
    fold(model)
    return made


def _sets(dataset: Dataset, backbone: Backbone) -> tuple[BatchSet, BatchSet | None, list[str]]:
    """(train, valid or None, what a person should be told about them)."""
    tokenizer, size, causal = backbone.tokenizer, backbone.config.block_size, backbone.causal
    sets = {name: as_set(dataset.splits[name], dataset.kind, tokenizer, size, causal)       # type: ignore[arg-type]
            for name in ("train", "valid") if name in dataset.splits}
    notes = [f"{name}: {note}" for name, rows in sets.items() if (note := cut_note(rows, len(dataset.splits[name]), size))]
    if "valid" not in sets:
        notes.append("there is no validation split: the last weights are kept")
    return sets["train"], sets.get("valid"), notes


def cut_note(rows: BatchSet, count: int, block_size: int) -> str:
    """A sentence on the texts of a set that were cut, "" where none was."""
    cut = len(getattr(rows, "truncated", ()))
    return f"{cut:,} of {count:,} texts are longer than the model's {block_size} tokens and were cut" if cut else ""
