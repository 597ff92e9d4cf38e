"""Arguments that several commands share, and the data set that they name."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Dataset, load, read
from ..devices import float_dtype, to_device

READING = ("text", "label", "kind", "labels", "valid", "test", "split_seed", "encoding")


def natural(text: str) -> int:
    """A whole number from 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers from 1 with commas between them."""
    return tuple(positive(part.strip()) for part in text.split(","))


def words(text: str) -> tuple[str, ...]:
    """Words with commas between them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def add_data(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """DATA and how it is read."""
    parser.add_argument("data", metavar="DATA", nargs="?" if optional else None, help="a file (.csv, .tsv, .jsonl, .txt), a "
                        "folder of such files, or the name of a data set (pydocs, imdb, trec, ...)")
    group = parser.add_argument_group("how DATA is read", "found by the usual names of columns unless told")
    group.add_argument("--text", metavar="COLUMN", help="the column of the texts (or prompts, or messages)")
    group.add_argument("--label", metavar="COLUMN", help="the column of the labels (or completions)")
    group.add_argument("--kind", choices=("classification", "text", "completion", "chat"), help="what the rows are")
    group.add_argument("--labels", type=words, metavar="A,B,...", help="the labels in their order, or names for 0, 1, ...")
    group.add_argument("--valid", type=float, default=0.1, metavar="SHARE", help="for validation if it has none (default: 0.1)")
    group.add_argument("--test", type=float, default=0.1, metavar="SHARE", help="for the test if it has none (default: 0.1)")
    group.add_argument("--split-seed", type=natural, default=0, metavar="N", help="chooses these rows (default: 0)")
    group.add_argument("--encoding", default="utf-8", metavar="NAME", help="of the files (default: utf-8)")


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device and --dtype: where the model computes, and in what."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: an NVIDIA GPU (default: cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of activations; bfloat16 is for GPUs, weights stay "
                        "float32 (default: float32)")


def check_device(options: Any) -> None:
    """Raises where there is no such device, or no bfloat16: before minutes of work, and before anything is written."""
    to_device(np.zeros(1), options.device)
    float_dtype(options.dtype or "float32")


def read_data(options: Any) -> Dataset:
    """The data set that DATA names: what is on disk, else a set of that name."""
    name = options.data
    if os.path.exists(name) or Path(name).suffix or os.sep in name:
        return read(name, text=options.text, label=options.label, kind=options.kind, labels=options.labels, valid=options.valid,
                    test=options.test, seed=options.split_seed, encoding=options.encoding)
    try:
        return load(name)
    except ValueError as unknown:
        raise ValueError(f"there is no file or folder {name}; {unknown}") from unknown


def show_data(dataset: Dataset) -> None:
    """Prints what was read and how."""
    print(f"Data: {dataset}, {dataset.kind}")
    for note in dataset.notes:
        print(f"  - {note}")
