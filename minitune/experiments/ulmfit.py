"""ulmfit: a text classifier in three stages: a general language model, the language model of the task, the classifier.

Source: Howard and Ruder 2018, Universal language model fine-tuning for text classification, section 3.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from .. import backend
from ..data import ClassificationSet, Dataset, LongTextSet, Split
from ..formats.folder import write_text
from ..models import Classifier, from_pretrained
from ..train import RateFinding, RateSweep, Trainer, lr_find, predict_proba, remove_checkpoints, sweep
from ..tune import Report, report
from ..tune.patterns import backbone_of
from .recipe import LanguageModelStage, Recipe, texts_of, tune_language_model

RECIPE = Recipe(language_model=LanguageModelStage())


@dataclass(frozen=True)
class Labels:
    """The third stage's sizes: passes over the labelled texts, the head's rate, texts a step.

    `rate` None: `lr_find` suggests one, and a short training with each of it, a third and three times of it decides on the
    validation texts, where there are any. Texts longer than the model reads are read in up to `chunks` rows, pooled together.
    """

    rate: float | None = 3e-3
    epochs: int = 10
    batch_size: int = 16
    least_steps: int = 60
    chunks: int = 1


@dataclass
class ULMFiT:
    """What `ulmfit` made: one classifier, or two that read in opposite directions and whose probabilities are averaged."""

    classifiers: list[Classifier]
    chunks: int
    history: list[dict[str, Any]] = field(default_factory=list)
    """What each stage did: its name, direction, steps, what validation said."""
    reports: list[Report] = field(default_factory=list)
    rates: list[tuple[RateFinding, RateSweep | None]] = field(default_factory=list)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.classifiers[0].labels

    def predict_proba(self, texts: list[str]) -> np.ndarray:
        """The probability of every class for every text, (N, K): the mean over the directions."""
        split = Split(texts, np.zeros(len(texts), int))
        return np.mean([predict_proba(model, as_rows(split, model, self.chunks)) for model in self.classifiers], 0)

    def error(self, split: Split) -> float:
        """The share of a split's texts that are put into a wrong class."""
        return float((self.predict_proba(split.texts).argmax(1) != split.labels).mean())

    def table(self) -> str:
        """What each stage did, a line each."""
        names = list(dict.fromkeys(name for row in self.history for name in row))
        cells = [names, *([_short(row.get(name, "")) for name in names] for row in self.history)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells)

    def save(self, folder: str | Path) -> None:
        """Writes each classifier as a folder that `models.from_pretrained` reads, `forward` and, of a pair, `backward`."""
        for model in self.classifiers:
            model.save_pretrained(Path(folder) / _direction(model))


def ulmfit(dataset: Dataset, base: str | Path = "minitune-base", out: str | Path | None = None, recipe: Recipe = RECIPE,
           labels: Labels | None = None, backward_base: str | Path | None = None, seed: int = 0,
           progress: bool = True) -> ULMFiT:
    """Fine-tunes a pre-trained language model to a task in ULMFiT's way, and returns the classifier.

    1. The general language model is `base`, a model folder or the name of one that ships with minitune; `experiments.pretrain`
       makes others, from any texts.
    2. `recipe.language_model` goes on with it on the task's texts, without labels: all that the data set has beside valid and
       test. None leaves this out.
    3. A classifier on it learns the labels of `dataset.train`: rates that fall from layer to layer, a slanted triangle of
       rates over the steps, layers unfrozen from the last on, features pooled over the text, as `recipe` says.
    With `backward_base`, a model whose tokenizer reads `backward`, all this is done once more in that direction, and the
    probabilities of both are averaged. With `out`, each stage's model and history are written there; called again, it goes on.
    Raises ValueError for a data set without labels, or a base without its tokenizer.
    """
    if dataset.kind != "classification":
        raise ValueError(f"ulmfit: expected texts with labels, got {dataset.name} of kind {dataset.kind!r}")
    made = ULMFiT([], (labels or Labels()).chunks)
    for folder in [base, *([backward_base] if backward_base else [])]:
        backend.seed(seed)
        model = general_model(folder, recipe)
        place = Path(out) / ("backward" if model.tokenizer.backward else "forward") if out else None
        if recipe.language_model:
            model, done = task_language_model(model, dataset, recipe, place, progress)
            made.history.append(done)
        made.classifiers.append(task_classifier(model, dataset, recipe, labels or Labels(), made, place, progress))
    return made


def general_model(base: str | Path, recipe: Recipe) -> Any:
    """The first stage's language model with its tokenizer, or one of its sizes with new weights.

    Raises ValueError for a folder that holds another kind of model, or no tokenizer.
    """
    stored = from_pretrained(base)
    backbone = backbone_of(stored)
    if stored.tokenizer is None or not hasattr(backbone, "language_loss"):
        raise ValueError(f"ulmfit: expected a language model with its tokenizer in {base}, got {type(stored).__name__}"
                         f"{'' if stored.tokenizer else ' without tokenizer.json'}")
    model = backbone if recipe.pretrained else type(backbone)(backbone.config)
    model.tokenizer = stored.tokenizer
    return model


def task_language_model(model: Any, dataset: Dataset, recipe: Recipe, out: Path | None = None,
                        progress: bool = True) -> tuple[Any, dict[str, Any]]:
    """The second stage: (the language model, tuned on the task's texts in place, what was done).

    With `out`, the model is kept in `out/language_model`, and read from there where the same stage has ended before.
    """
    stage, texts = recipe.language_model, texts_of(dataset)
    assert stage is not None
    if stage.texts == "labelled":
        texts = dataset.train.texts
    valid = dataset.splits["valid"].texts if "valid" in dataset.splits else None                # type: ignore[union-attr]
    folder = out / "language_model" if out else None
    asked = json.loads(json.dumps({"stage": repr(stage), "pretrained": recipe.pretrained, "fingerprint": dataset.fingerprint}))
    if folder and (folder / "stage.json").exists():
        found = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        if {name: found.get(name) for name in asked} != asked:
            raise ValueError(f"ulmfit: {folder} holds another language model: {found}. Give another folder, or move it away")
        return from_pretrained(folder), found["done"]
    trainer = tune_language_model(model, texts, stage, valid, folder, progress="language model" if progress else False)
    measured = trainer.best.measured if trainer.best else {}
    done = {"stage": "language model", "direction": _direction(model), "texts": len(texts), "steps": trainer.step,
            "loss": trainer.history.rows[-1]["loss"]} | {f"valid {name}": value for name, value in measured.items()}
    if folder:
        model.save_pretrained(folder)
        remove_checkpoints(folder)
        write_text(folder / "stage.json", json.dumps(asked | {"done": done}, indent=2) + "\n")
    return model, done


def task_classifier(backbone: Any, dataset: Dataset, recipe: Recipe, labels: Labels, made: ULMFiT, out: Path | None = None,
                    progress: bool = True) -> Classifier:
    """The third stage: a classifier on a language model; what was done is added to `made`."""
    train = as_rows(dataset.train, backbone, labels.chunks)
    valid = as_rows(dataset.valid, backbone, labels.chunks) if "valid" in dataset.splits else None
    steps = max(labels.least_steps, ceil(labels.epochs * len(train) / labels.batch_size))

    def trainer(rate: float, steps: int = steps, **settings: Any) -> Trainer:
        model = recipe.classifier(deepcopy(backbone), dataset.labels)      # each classifier has weights of its own
        return recipe.trainer(model, train, valid, rate=rate, steps=steps, batch_size=labels.batch_size, **settings)

    rate = labels.rate
    if rate is None:
        found = lr_find(trainer(1.0, progress=progress))
        short = partial(trainer, progress=False, steps=max(labels.least_steps, steps // 4))
        tried = sweep(short, found.around(1)) if valid else None
        made.rates.append((found, tried))
        rate = tried.best if tried else found.suggestion
    run = trainer(rate, out=out / "classifier" if out else None, progress="classifier" if progress else False)
    run.fit(resume=out is not None)
    model: Any = run.model
    made.reports.append(report(model, run.optimizer))
    measured = run.best.measured if run.best else {}
    made.history.append({"stage": "classifier", "direction": _direction(model), "texts": len(train), "steps": run.step,
                         "rate": rate, "loss": run.history.rows[-1]["loss"]} | {f"valid {k}": v for k, v in measured.items()})
    return model


def as_rows(split: Split, model: Any, chunks: int) -> ClassificationSet:
    """A labelled split as `model` reads it: a row a text, or up to `chunks` rows."""
    size, causal, tokenizer = backbone_of(model).config.block_size, model.causal, model.tokenizer
    if chunks > 1 and not backbone_of(model).recurrent:
        return LongTextSet.from_split(split, tokenizer, size, causal, chunks)
    return ClassificationSet.from_split(split, tokenizer, size * chunks, causal)


def _direction(model: Any) -> str:
    return "backward" if model.tokenizer.backward else "forward"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
