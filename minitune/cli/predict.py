"""minitune predict: the class of new texts."""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path
from typing import Any

from ..data import read
from ..data.sources.tables import decode
from ..experiments.finetuning import cut_note, model_folder
from ..experiments.text_classifier import texts_as_set
from ..formats.folder import write_text
from ..models import Classifier, from_pretrained
from ..train import predict_proba
from .arguments import add_device


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser("predict", help="the class of new texts", description=(
        "Says into which class a fine-tuned classifier puts each text, and how probable it finds that."))
    parser.add_argument("model", type=Path, metavar="RUN", help="a run's folder, or a model's")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts, each in quotes")
    parser.add_argument("--file", type=Path, metavar="FILE", help="a .csv, .tsv or .jsonl with a column of texts, or a .txt "
                        "with a text a line")
    parser.add_argument("--text", metavar="COLUMN", help="the column of the texts")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a .csv for the predictions (default with --file: "
                        "predictions-FILE.csv in RUN)")
    add_device(parser)
    parser.set_defaults(run=run)


def run(options: Any) -> None:
    """Reads, predicts, prints or writes."""
    texts = [*map(_valid, options.texts), *(_texts_of(options.file, options.text) if options.file else [])]
    if not texts:
        raise ValueError('expected texts: minitune predict RUN "a text", or --file FILE')
    model = from_pretrained(model_folder(options.model)).to(options.device, options.dtype)
    if not isinstance(model, Classifier) or model.tokenizer is None:
        raise ValueError(f"{options.model} holds a {type(model).__name__}, which predicts no classes of texts. Use minitune "
                         "generate")
    out = options.out or (options.model / f"predictions-{options.file.stem}.csv" if options.file else None)
    if out and out.exists() and not options.out:
        raise ValueError(f"{out} is there already. Move it away, or give --out")
    rows = texts_as_set(model, texts)
    probabilities = predict_proba(model, rows)
    note = cut_note(rows, len(texts), model.backbone.config.block_size)        # type: ignore[attr-defined]
    if out:
        write_text(out, _table(texts, probabilities, model.labels))
        print(f"{len(texts):,} predictions are in {out}")
    else:
        for text, row in zip(texts, probabilities):
            best = int(row.argmax())
            print(f"{model.labels[best]}  {row[best]:.0%}  {' '.join(text.split())[:80]}")
    if note:
        print(f"Note: {note}")


def _valid(text: str) -> str:
    """The text, or an error where the terminal's bytes were no text."""
    if text != text.encode("utf-8", "ignore").decode():
        raise ValueError(f"{text!r:.60} is not valid text. Is the terminal set to UTF-8?")
    return text


def _texts_of(file: Path, column: str | None) -> list[str]:
    """The texts in a file, in their order."""
    if file.suffix.casefold() != ".txt":
        return read(file, text=column, kind="text", valid=0, test=0).train.texts
    texts = [line for line in decode(file, "utf-8").split("\n") if line.strip()]
    if not texts:
        raise ValueError(f"{file} holds no text")
    return texts


def _table(texts: list[str], probabilities: Any, labels: tuple[str, ...]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["text", "label", "probability", *(f"p({label})" for label in labels)])
    for text, row in zip(texts, probabilities):
        writer.writerow([text, labels[int(row.argmax())], f"{row.max():.4f}", *(f"{p:.4f}" for p in row)])
    return out.getvalue()
