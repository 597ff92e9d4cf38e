"""`load`: a named data set, from the user's disk, with fixed splits."""

from __future__ import annotations

import difflib
import json
import lzma
import os
from pathlib import Path

import numpy as np

from .dataset import Dataset, Split, nested_subsets
from .pydocs import load_pydocs

VALID_ROWS = 1_000
PAGES = {
    "ag_news": "https://github.com/mhjabreel/CharCnn_Keras/tree/master/data/ag_news_csv",
    "imdb": "https://ai.stanford.edu/~amaas/data/sentiment/",
}


def load(name: str, folder: str | os.PathLike[str] | None = None) -> Dataset:
    """The data set `name` with its train, valid, test and unlabelled splits: "pydocs", "ag_news_22k" or "imdb".

    "pydocs" is made from the running Python's own documentation and needs no file. The files of the others are looked
    for in `folder` when it is given, else in `$MINITUNE_DATA/<ag_news or imdb>`, else in the user's cache,
    `$XDG_CACHE_HOME/minitune` or `~/.cache/minitune`. Splits and their order are the same on every machine.

    Raises ValueError for an unknown name and for a damaged file or row, FileNotFoundError when files are missing.

    >>> load("imbd")
    Traceback (most recent call last):
    ValueError: load: no data set named 'imbd'. Did you mean 'imdb'? There are: ag_news_22k, imdb, pydocs.
    """
    if name == "pydocs":
        if folder is not None:
            raise ValueError(f"load('pydocs'): reads the running Python's files, got {folder=}. Leave it out.")
        return load_pydocs()
    if name not in LOADERS:
        names = sorted([*LOADERS, "pydocs"])
        near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"load: no data set named {name!r}.{hint} There are: {', '.join(names)}.")
    return LOADERS[name](folder)


def load_ag_news(folder: str | os.PathLike[str] | None = None) -> Dataset:
    """AG News, 22k-example training subset: never to be reported as the usual setting of 120,000 training examples.

    `valid` is 1,000 rows taken from the training subset; `unlabelled` is `train` and 14,065 further descriptions.
    """
    folder = find_folder("ag_news", ("train_subset", "train_desc_only", "test"), folder)
    labels = read_labels(folder)
    train = read_rows(folder / "train_subset.jsonl.xz", len(labels))
    descriptions = read_rows(folder / "train_desc_only.jsonl.xz", len(labels))
    test = read_rows(folder / "test.jsonl.xz", len(labels))
    train, valid = take_valid(train)
    splits = {"train": train, "valid": valid, "test": shuffled(test)}
    splits["unlabelled"] = shuffled(Split(descriptions.texts + train.texts))
    return Dataset(
        "ag_news_22k",
        labels,
        splits,
        citation="A. Gulli's AG corpus of news articles; task and split by Zhang, Zhao, LeCun 2015, Character-level "
        "Convolutional Networks for Text Classification. A subset of 22,273 of the 120,000 training examples.",
    )


def load_imdb(folder: str | os.PathLike[str] | None = None) -> Dataset:
    """The Large Movie Review Dataset, no text in two splits but `unlabelled`, which may repeat `train`.

    `valid` is 1,000 rows of the official train. Repeated reviews, and those that test holds too, leave train;
    reviews that valid or test holds leave `unlabelled`. Test is the official one, repetitions included.
    """
    folder = find_folder("imdb", ("train", "test", "unsup"), folder)
    labels = read_labels(folder)
    test = read_rows(folder / "test.jsonl.xz", len(labels))
    train, valid = take_valid(without(read_rows(folder / "train.jsonl.xz", len(labels)), test.texts))
    reviews = read_rows(folder / "unsup.jsonl.xz", labels=None)
    splits = {"train": train, "valid": valid, "test": shuffled(test)}
    splits["unlabelled"] = shuffled(without(reviews, test.texts + valid.texts))
    return Dataset(
        "imdb",
        labels,
        splits,
        citation="Maas et al. 2011, Learning Word Vectors for Sentiment Analysis (Large Movie Review Dataset v1.0).",
    )


LOADERS = {"ag_news_22k": load_ag_news, "imdb": load_imdb}


def find_folder(dataset: str, files: tuple[str, ...], folder: str | os.PathLike[str] | None) -> Path:
    """The folder that holds labels.txt and every `<file>.jsonl.xz`, or FileNotFoundError with the layout wanted."""
    wanted = ["labels.txt", *(f"{file}.jsonl.xz" for file in files)]
    if folder is not None:
        places = [Path(folder)]
    else:
        variable = os.environ.get("MINITUNE_DATA")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minitune"
        places = [*([Path(variable) / dataset] if variable else []), cache / dataset]
    for place in places:
        if all((place / file).is_file() for file in wanted):
            return place
    raise FileNotFoundError(
        f"load: the files of {dataset} are missing; looked in {' and '.join(map(str, places))}. "
        f"Set MINITUNE_DATA to a folder with {', '.join(f'{dataset}/{file}' for file in wanted)}: labels.txt names "
        'label 0, 1, ... one a line, the others are xz-compressed JSON lines {"text": str, "label": int or null}. '
        f"The official page: {PAGES[dataset]}"
    )


def read_labels(folder: Path) -> tuple[str, ...]:
    """The label names in labels.txt, one a line."""
    return tuple((folder / "labels.txt").read_text(encoding="utf-8").splitlines())


def read_rows(file: Path, labels: int | None) -> Split:
    """The JSON lines of an .xz file, with labels in 0 .. labels - 1, or without any where `labels` is None."""
    texts, found = [], []
    try:
        with lzma.open(file, "rt", encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                text, label = _parse(line, f"{file}, row {number}", labels)
                texts.append(text)
                found.append(label)
    except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(
            f"load: {file} is damaged after row {len(texts)} ({error}). Expected xz-compressed UTF-8; fetch it again."
        ) from error
    return Split(texts, None if labels is None else np.array(found, np.int64))


def _parse(line: str, where: str, labels: int | None) -> tuple[str, int | None]:
    """(text, label) of one JSON line."""
    try:
        row = json.loads(line)
        text, label = row["text"], row["label"]
    except (ValueError, TypeError, KeyError):
        text = label = None
    right = label is None if labels is None else type(label) is int and 0 <= label < labels
    if not (isinstance(text, str) and right):
        wanted = "null" if labels is None else f"0 .. {labels - 1}"
        raise ValueError(
            f'load: {where}: expected {{"text": str, "label": {wanted}}}, got {line[:80]!r}. '
            "Is the file whole and does labels.txt belong to it?"
        )
    return text, label


def shuffled(split: Split) -> Split:
    """The rows in an order that is random and always the same: the files are sorted by label or source."""
    return split.subset(np.random.Generator(np.random.PCG64(0)).permutation(len(split)))


def without(split: Split, texts: list[str]) -> Split:
    """The rows whose text is neither in `texts` nor earlier in the split."""
    seen = set(texts)
    rows = []
    for row, text in enumerate(split.texts):
        if text not in seen:
            seen.add(text)
            rows.append(row)
    return split.subset(rows)


def take_valid(split: Split) -> tuple[Split, Split]:
    """Shuffle, and take a class-balanced validation split of `VALID_ROWS` out of the rest, train."""
    split = shuffled(split)
    assert split.labels is not None
    rows = nested_subsets(split.labels, [VALID_ROWS], seed=0)[VALID_ROWS]
    return split.subset(np.setdiff1d(np.arange(len(split)), rows)), split.subset(rows)
