"""minitune evaluate: how well a model does on data that it has not seen."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..data import Dataset
from ..experiments.finetuning import as_set, cut_note, model_folder
from ..experiments.runner import read_lines
from ..formats.folder import write_text
from ..models import Classifier, from_pretrained
from ..models.language_model import LanguageModel
from ..show import training_curves
from ..train import classification_metrics, evaluate, predict_proba
from .arguments import add_data, add_device, read_data, show_data
from .run_folder import read_record


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser("evaluate", help="how well a model does", description=(
        "Measures a model on a split of DATA, by default the data of its own run: accuracy, F1, confusion and calibration of a "
        "classifier, perplexity of a model that writes. Writes evaluation.json and a plot."))
    parser.add_argument("model", type=Path, metavar="RUN", help="a run's folder, or a model's")
    add_data(parser, optional=True)
    parser.add_argument("--split", metavar="NAME", help="train, valid or test (default: test; of a single file every row)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go (default: RUN/evaluation-SPLIT)")
    add_device(parser)
    parser.set_defaults(run=run)


def run(options: Any) -> None:
    """Reads, measures, prints, writes."""
    model = from_pretrained(model_folder(options.model)).to(options.device, options.dtype)
    if options.out and options.out.is_file():
        raise ValueError(f"--out {options.out} is a file; give a folder")
    dataset, split = _own_data(options) if options.data is None else _other_data(options, model)
    _, text = measure(model, dataset, split, options.out or _place(options.model) / f"evaluation-{dataset.name}-{split}")
    print(f"\n{text}")


def _place(model: Path) -> Path:
    """The run's folder, or one in runs/ for a model that comes with the package: a folder of its name would be taken for it."""
    return model if model.is_dir() else Path("runs") / model


def _own_data(options: Any) -> tuple[Dataset, str]:
    """The data that the run was made with; what has changed since would be split anew, train rows into test."""
    own = read_record(options.model)
    if own is None or "data" not in own:
        raise ValueError(f"{options.model} is no run's folder, or its run has not ended, so DATA must be given")
    dataset = read_data(argparse.Namespace(**own["arguments"]))
    show_data(dataset)
    if dataset.fingerprint != own["data"]["fingerprint"]:
        raise ValueError(f"{own['arguments']['data']} has changed since the run: its splits are others, and rows that were "
                         "trained on would be measured. Give DATA: the new rows in a file of their own")
    return dataset, options.split or "test"


def _other_data(options: Any, model: LanguageModel | Classifier) -> tuple[Dataset, str]:
    """The data that DATA names; of a file that holds no splits every row is measured unless a split is asked for."""
    file = Path(options.data).is_file()
    if file and isinstance(model, Classifier) and options.labels is None:
        options.labels = model.labels
    whole = file and options.split is None
    if whole:
        options.valid = options.test = 0
    dataset = read_data(options)
    show_data(dataset)
    return (replace(dataset, splits={"all": dataset.train}), "all") if whole else (dataset, options.split or "test")


def measure(model: LanguageModel | Classifier, dataset: Dataset, split: str, out: Path) -> tuple[dict[str, Any], str]:
    """(figures, the same as text) of a model on a split; writes evaluation.json and, for a classifier, evaluation.png.

    Raises ValueError where the data are not of the model's kind, or their labels not the model's.
    """
    if split not in dataset.splits:
        raise ValueError(f"{dataset.name} has no split {split!r}; it has {', '.join(dataset.splits)}")
    if isinstance(model, Classifier) and dataset.kind != "classification":
        raise ValueError(f"a classifier cannot be measured on data of kind {dataset.kind!r}: they have no labels")
    if not isinstance(model, (LanguageModel, Classifier)) or model.tokenizer is None:
        raise ValueError(f"evaluate: expected a classifier of texts or a model that writes, with its tokenizer, got a "
                         f"{type(model).__name__}. In Python: train.evaluate(model, dataset)")
    backbone = model.backbone if isinstance(model, Classifier) else model
    kind = "text" if model is backbone and dataset.kind == "classification" else dataset.kind  # it reads the texts alone
    size = backbone.config.block_size
    rows = as_set(dataset.splits[split], kind, model.tokenizer, size, backbone.causal)         # type: ignore[arg-type]
    if isinstance(model, Classifier):
        if tuple(dataset.labels) != model.labels:
            raise ValueError(f"the model's labels are {', '.join(model.labels)}; those of {dataset.name} are "
                             f"{', '.join(dataset.labels)}")
        metrics = classification_metrics(rows.labels, predict_proba(model, rows), model.labels)   # type: ignore[union-attr]
        results, text = metrics.to_dict(), f"{len(rows):,} rows ({split})\n{metrics.table()}"
        if find_spec("matplotlib"):
            metrics.plot(out / "evaluation.png")
    else:
        results = evaluate(model, rows)
        text = f"perplexity {results['perplexity']:.2f} on the texts ({split}; loss {results['loss']:.3f} nats a token)"
    note = cut_note(rows, len(dataset.splits[split]), size)
    text += f"\n{note}" if note else ""
    results = {"data": dataset.name, "fingerprint": dataset.fingerprint, "split": split, **results}
    write_text(out / "evaluation.json", json.dumps(results, indent=1) + "\n")
    return results, text


def draw_history(folder: Path, title: str) -> None:
    """history.png from history.jsonl, where matplotlib is there."""
    file = folder / "history.jsonl"
    if find_spec("matplotlib") and file.exists():
        training_curves(read_lines(file), folder / "history.png", title)
