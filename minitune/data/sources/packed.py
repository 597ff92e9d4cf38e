"""The files of the named data sets, plain or packed: what is wrong with one is said with its name and row."""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..dataset import Split
from ..images import ImageSplit, idx_array

OPENERS: dict[str, Callable[..., Any]] = {"": open, ".xz": lzma.open, ".gz": gzip.open}


def find_file(folder: Path, name: str) -> Path | None:
    """`name` in `folder`, plain or packed as .xz or .gz, or None."""
    return next((file for ending in OPENERS if (file := folder / (name + ending)).is_file()), None)


@contextmanager
def unpacked(folder: Path, name: str) -> Iterator[tuple[Path, BinaryIO]]:
    """The file `name` of `folder`, as found, and its bytes; damage met while reading becomes a ValueError."""
    file = find_file(folder, name)
    assert file is not None     # `load` has looked
    with OPENERS.get(file.suffix, open)(file, "rb") as content:
        try:
            yield file, content
        except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
            raise ValueError(f"load: {file} is damaged ({error}). Was a copy cut off? Fetch it again.") from error


def read_text(folder: Path, name: str) -> str:
    """A whole UTF-8 file, its line ends as they are."""
    with unpacked(folder, name) as (_, content):
        return content.read().decode()


def read_names(folder: Path) -> tuple[str, ...]:
    """The label names in labels.txt, one a line."""
    return tuple(read_text(folder, "labels.txt").splitlines())


def read_rows(folder: Path, name: str, form: str, fits: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """The JSON lines of a file: objects that `fits` accepts; any other raises ValueError with its row and the `form`."""
    rows = []
    with unpacked(folder, name) as (file, content):
        for number, line in enumerate(map(bytes.decode, content), 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not (isinstance(row, dict) and fits(row)):
                raise ValueError(f"load: {file}, row {number}: expected {form}, got {line[:80]!r}. Is the file whole?")
            rows.append(row)
    return rows


def read_labelled(folder: Path, name: str, labels: int) -> Split:
    """Rows {"text", "label"} with labels in 0 .. labels - 1."""
    rows = read_rows(folder, name, f'{{"text": str, "label": 0 .. {labels - 1}}}, a label for each line of labels.txt',
                     lambda row: isinstance(row.get("text"), str) and type(row.get("label")) is int
                     and 0 <= row["label"] < labels)
    return Split([row["text"] for row in rows], np.array([row["label"] for row in rows], np.int64))


def read_unlabelled(folder: Path, name: str) -> Split:
    """Rows {"text", "label": null}."""
    rows = read_rows(folder, name, '{"text": str, "label": null}',
                     lambda row: isinstance(row.get("text"), str) and row.get("label", 0) is None)
    return Split([row["text"] for row in rows])


def read_books(folder: Path, name: str) -> Split:
    """Rows {"title", "text"}, the titles as groups."""
    rows = read_rows(folder, name, '{"title": str, "text": str}',
                     lambda row: isinstance(row.get("title"), str) and isinstance(row.get("text"), str))
    return Split([row["text"] for row in rows], groups=[row["title"] for row in rows])


def read_images(folder: Path, name: str, labels: int) -> ImageSplit:
    """The IDX files <name>-images-idx3-ubyte and <name>-labels-idx1-ubyte, with labels in 0 .. labels - 1."""
    with unpacked(folder, f"{name}-images-idx3-ubyte") as (file, content):
        images = idx_array(content.read(), 3, str(file))
    with unpacked(folder, f"{name}-labels-idx1-ubyte") as (file, content):
        classes = idx_array(content.read(), 1, str(file))
    if len(classes) != len(images) or classes.max(initial=0) >= labels:
        raise ValueError(f"load: {file}: expected {len(images):,} labels in 0 .. {labels - 1}, got {len(classes):,} up to "
                         f"{classes.max(initial=0)}. Is it another set's file?")
    return ImageSplit(images, classes.astype(np.int64))
