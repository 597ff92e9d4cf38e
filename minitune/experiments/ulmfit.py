"""ulmfit: a text classifier in three stages: a general language model, the language model of the task, the classifier.

Source: Howard and Ruder 2018, Universal language model fine-tuning for text classification, section 3.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from .. import backend
from ..data import ClassificationSet, Dataset, LongTextSet, Split
from ..formats.folder import read_json, write_text
from ..models import Classifier, from_pretrained
from ..train import RateFinding, RateSweep, Trainer, lr_find, predict_proba, remove_checkpoints, sweep
from ..tune import Report, fold, report
from ..tune.patterns import backbone_of
from .finetuning import ENOUGH, model_folder
from .recipe import LanguageModelStage, Recipe, check_numbers, starting_model, texts_of, tune_language_model

RECIPE = Recipe(language_model=LanguageModelStage())
RECORD, LANGUAGE_MODEL, CLASSIFIER = "ulmfit.json", "language_model", "classifier"         # in the folder of a direction


@dataclass(frozen=True)
class Labels:
    """The third stage's sizes: passes over the labelled texts, the head's rate, texts a step.

    `rate` None: `lr_find` suggests one, and a short training with each of it, a third and three times of it decides on the
    validation texts, where there are at least 100. Texts longer than the model reads are read in up to `chunks` rows, pooled
    together. Raises ValueError for numbers that cannot work.
    """

    rate: float | None = 3e-3
    epochs: int = 10
    batch_size: int = 16
    least_steps: int = 60
    chunks: int = 1

    def __post_init__(self) -> None:
        check_numbers(self, ("rate",), epochs=1, batch_size=1, least_steps=1, chunks=1)


@dataclass
class ULMFiT:
    """What `ulmfit` made: one classifier, or two that read in opposite directions and whose probabilities are averaged."""

    classifiers: list[Classifier]
    chunks: int
    history: list[dict[str, Any]] = field(default_factory=list)
    """What each stage did: its name, direction, steps, what validation said."""
    reports: list[Report] = field(default_factory=list)
    rates: list[tuple[RateFinding, RateSweep | None]] = field(default_factory=list)
    """How the rates were found that this call had to find."""
    notes: list[str] = field(default_factory=list)
    """What a person should be told."""

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
    probabilities of both are averaged. The language model keeps the weights that predict the validation texts best; the
    classifier those that did best on them where they are at least 100, else the last. With `out`, each stage's model and
    history are written there, and ulmfit.json says of which base, data and settings; called again, it goes on, and what has
    ended is read.
    Raises ValueError for a data set without labels, a base without its tokenizer or that is no language model, two bases that
    read in the same direction, and where `out` holds another run.
    """
    if dataset.kind != "classification":
        raise ValueError(f"ulmfit: expected texts with labels, got {dataset.name} of kind {dataset.kind!r}")
    labels, folders = labels or Labels(), [base, *([backward_base] if backward_base else [])]
    models = [general_model(folder, recipe, seed) for folder in folders]
    if len({model.tokenizer.backward for model in models}) < len(models):
        raise ValueError(f"ulmfit: {base} and {backward_base} both read {_direction(models[0])}. One of a pair reads texts "
                         "from their end: pretrain it with Pretraining(backward=True)")
    asked = {"seed": seed, "recipe": repr(recipe), "labels": repr(labels), "fingerprint": dataset.fingerprint}
    records = [Record(Path(out) / _direction(model) if out else None, {"base": _digest(folder)} | asked)
               for folder, model in zip(folders, models)]
    made = ULMFiT([], labels.chunks)
    if 0 < _validation(dataset) < ENOUGH:
        made.notes.append(f"{_validation(dataset):,} validation texts are too few to choose an epoch or a rate by: the "
                          "classifier's last weights are kept")
    for model, record in zip(models, records):
        if recipe.language_model:
            backend.seed(seed)
            model = task_language_model(model, dataset, recipe, made, record, progress)
        made.classifiers.append(task_classifier(model, dataset, recipe, labels, made, record, seed, progress))
    return made


class Record:
    """ulmfit.json in the folder of a direction: what is made there, and of each stage that has ended what it did.

    Without a folder it is kept in memory alone. Raises ValueError where the folder holds what was asked for otherwise.
    """

    def __init__(self, folder: Path | None, asked: dict[str, Any]) -> None:
        self.folder, self.entries = folder, dict[str, Any](asked=asked)
        if not folder:
            return
        if (folder / RECORD).exists():
            self.entries = read_json(folder / RECORD)
            found = self.entries.get("asked", {})
            wrong = [f"{name} was {found.get(name)}, is {value}" for name, value in asked.items() if found.get(name) != value]
        else:
            wrong = [f"{stage} without {RECORD}" for stage in (LANGUAGE_MODEL, CLASSIFIER) if (folder / stage).exists()]
        if wrong:
            raise ValueError(f"ulmfit: {folder} holds another run: {'; '.join(wrong)}. Give another folder, or move it away")
        if not (folder / RECORD).exists():
            self.keep("asked", asked)

    def keep(self, name: str, entry: Any) -> None:
        """Adds an entry, and writes all."""
        self.entries[name] = entry
        if self.folder:
            write_text(self.folder / RECORD, json.dumps(self.entries, indent=2) + "\n")


def general_model(base: str | Path, recipe: Recipe, seed: int = 0) -> Any:
    """The first stage's language model with its tokenizer, or one of its sizes with new weights.

    Raises ValueError for a folder that holds another kind of model, or no tokenizer.
    """
    backend.seed(seed)
    model = starting_model(base, recipe.pretrained)
    if not hasattr(model, "language_loss"):
        raise ValueError(f"ulmfit: expected a language model in {base}, got {type(model).__name__}")
    return model


def task_language_model(model: Any, dataset: Dataset, recipe: Recipe, made: ULMFiT, record: Record,
                        progress: bool = True) -> Any:
    """The second stage: the language model, tuned on the task's texts; what was done is added to `made`.

    It is kept in the record's folder, and read from there where the stage has ended before.
    """
    stage, folder = recipe.language_model, record.folder / LANGUAGE_MODEL if record.folder else None
    assert stage is not None
    if LANGUAGE_MODEL not in record.entries:
        texts = dataset.train.texts if stage.texts == "labelled" else texts_of(dataset)
        valid = dataset.valid.texts if "valid" in dataset.splits else None
        trainer = tune_language_model(model, texts, stage, valid, folder, dropout=recipe.dropout,
                                      progress="language model" if progress else False)
        done = {"stage": "language model", "direction": _direction(model), "texts": len(texts), "steps": trainer.step}
        if folder:
            model.save_pretrained(folder)
        record.keep(LANGUAGE_MODEL, done | _measured(trainer))
    elif folder:
        model = from_pretrained(folder)
    if folder:
        remove_checkpoints(folder)              # last: without them an interrupted training would begin anew
    made.history.append(record.entries[LANGUAGE_MODEL])
    return model


def task_classifier(backbone: Any, dataset: Dataset, recipe: Recipe, labels: Labels, made: ULMFiT, record: Record,
                    seed: int = 0, progress: bool = True) -> Classifier:
    """The third stage: a classifier on a language model; what was done is added to `made`.

    It is kept in the record's folder, and read from there where the stage has ended before. One with adapters, which a model
    folder has no place for, is made anew from its last checkpoint.
    """
    folder = record.folder / CLASSIFIER if record.folder else None
    entry = record.entries.get(CLASSIFIER)
    if entry:
        model: Any = from_pretrained(folder)                    # type: ignore[arg-type]
    else:
        run = _fitted(backbone, dataset, recipe, labels, made, record, seed, progress)
        model = run.model
        done = {"stage": "classifier", "direction": _direction(model), "texts": len(dataset.train), "steps": run.step,
                "rate": run.lr} | _measured(run)
        entry = {"done": done, "report": asdict(report(model, run.optimizer))}
        fold(model)
        if folder:
            try:
                model.save_pretrained(folder)
            except ValueError as error:         # adapters, for one, have no place in a model folder
                made.notes.append(f"the classifier is not kept as a model, only as a checkpoint: {error}")
            else:
                record.keep(CLASSIFIER, entry)
    if folder and CLASSIFIER in record.entries:
        remove_checkpoints(folder)
    made.reports.append(Report([tuple(row) for row in entry["report"]["rows"]], entry["report"]["rates"]))
    made.history.append(entry["done"])
    return model


def as_rows(split: Split, model: Any, chunks: int) -> ClassificationSet:
    """A labelled split as `model` reads it: a row a text, or up to `chunks` rows."""
    size, causal, tokenizer = backbone_of(model).config.block_size, model.causal, model.tokenizer
    if chunks > 1 and not backbone_of(model).recurrent:
        return LongTextSet.from_split(split, tokenizer, size, causal, chunks)
    return ClassificationSet.from_split(split, tokenizer, size * chunks, causal)


def _fitted(backbone: Any, dataset: Dataset, recipe: Recipe, labels: Labels, made: ULMFiT, record: Record, seed: int,
            progress: bool) -> Trainer:
    """The ended training of a classifier, at the rate that is asked for, was found before or is found now."""
    train = as_rows(dataset.train, backbone, labels.chunks)
    valid = as_rows(dataset.valid, backbone, labels.chunks) if _validation(dataset) else None
    choose = _validation(dataset) >= ENOUGH
    steps = max(labels.least_steps, ceil(labels.epochs * len(train) / labels.batch_size))

    def trainer(rate: float, steps: int = steps, **settings: Any) -> Trainer:
        backend.seed(seed)                                      # whatever was made before, in this process or another
        model = recipe.classifier(deepcopy(backbone), dataset.labels)      # each classifier has weights of its own
        return recipe.trainer(model, train, valid, rate=rate, steps=steps, batch_size=labels.batch_size, keep_best=choose,
                              **settings)

    rate = labels.rate or record.entries.get("rate")
    if rate is None:
        found = lr_find(trainer(1.0, progress=progress))
        short = partial(trainer, progress=False, steps=max(labels.least_steps, steps // 4))
        tried = sweep(short, found.around(1)) if choose else None
        made.rates.append((found, tried))
        rate = tried.best if tried else found.suggestion
        record.keep("rate", rate)
    run = trainer(rate, out=record.folder / CLASSIFIER if record.folder else None,
                  progress="classifier" if progress else False)
    run.fit(resume=record.folder is not None)
    return run


def _measured(trainer: Trainer) -> dict[str, float]:
    """The last training loss, and what validation said of the weights that were kept."""
    last = trainer.history.rows[-1]
    valid = trainer.best.measured if trainer.best else {name.removeprefix("valid_"): value for name, value in last.items()
                                                        if name.startswith("valid_")}
    return {"loss": last["loss"]} | {f"valid {name}": value for name, value in valid.items()}


def _validation(dataset: Dataset) -> int:
    """How many validation texts there are."""
    return len(dataset.splits.get("valid", ()))


def _digest(base: str | Path) -> str:
    """Of a model folder's weights, config and tokenizer."""
    folder, digest = model_folder(base), sha256()
    for file in [*sorted(folder.glob("model*.safetensors")), folder / "config.json", folder / "tokenizer.json"]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _direction(model: Any) -> str:
    return "backward" if model.tokenizer.backward else "forward"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
