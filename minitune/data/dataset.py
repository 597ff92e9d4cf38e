"""A data set in memory, named splits of texts and labels, and label subsets for sample-efficiency experiments."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .example import Example
from .images import ImageSplit


@dataclass(frozen=True, repr=False)
class Split:
    """Texts and, unless the split is unlabelled, one label each: indices (N,) int64 into `Dataset.labels`.

    Prompts with completions, and chats, have `examples` instead of labels: their texts with marks on what a model is to
    learn to write. Raises ValueError when texts and labels differ in number.

    >>> split = Split(["good film", "bad film", "fine film"], np.array([1, 0, 1]))
    >>> len(split), split.subset([2, 0]).texts
    (3, ['fine film', 'good film'])
    """

    texts: list[str]
    labels: np.ndarray | None = None
    groups: list[str] | None = None
    """What each text comes from, where several come from one thing: intervals then count things, not texts."""
    examples: list[Example] | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.texts):
            raise ValueError(
                f"Split: expected one label for each text, got {len(self.texts)} texts and {len(self.labels)} labels. "
                "Were both cut or shuffled by the same indices?"
            )

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"Split({len(self):,} texts{'' if self.labels is None else ', labelled'})"

    def subset(self, indices: Iterable[int]) -> Split:
        """The rows at `indices`, in that order, as a new split."""
        rows = np.fromiter(indices, np.int64)
        groups, examples = ([given[row] for row in rows] if given else None for given in (self.groups, self.examples))
        return Split([self.texts[row] for row in rows], None if self.labels is None else self.labels[rows],
                     groups, examples)          # type: ignore[arg-type]

    def content(self) -> Iterator[bytes]:
        """All that makes this split what it is, as bytes: what `Dataset.fingerprint` is made of."""
        for text in self.texts:
            content = text.encode("utf-8", "surrogatepass")
            yield b"%d " % len(content) + content               # the length keeps "ab", "c" apart from "a", "bc"
        if self.labels is not None:
            yield self.labels.astype("<i8").tobytes()
        if self.examples is not None:
            yield repr([(example.supervised, example.ends) for example in self.examples]).encode()


@dataclass(frozen=True, repr=False)
class Dataset:
    """A data set: named splits, the names of its labels, whom to cite and, where the texts depend on it, a version.

    `kind` says what its rows are: "classification", "text", "completion", "chat" or "images". `notes` are sentences about
    what was found while reading: duplicates, columns chosen, how splits were made.
    `train`, `valid`, `test` and `unlabelled` are shortcuts into `splits`; a missing one raises KeyError.

    >>> split = Split(["up", "down"], np.array([0, 1]))
    >>> tiny = Dataset("tiny", ("north", "south"), {"train": split}, citation="none")
    >>> tiny.train.texts, tiny.fingerprint
    (['up', 'down'], '2f67db0e09a129ae')
    """

    name: str
    labels: tuple[str, ...]
    splits: dict[str, Split] | dict[str, ImageSplit]
    citation: str
    version: str = ""
    kind: str = "classification"
    notes: tuple[str, ...] = ()

    def _split(self, name: str) -> Any:
        if name not in self.splits:
            raise KeyError(f"Dataset {self.name!r}: no split named {name!r}; it has {', '.join(self.splits)}.")
        return self.splits[name]

    @property
    def train(self) -> Any:
        """Labelled texts or images to learn from."""
        return self._split("train")

    @property
    def valid(self) -> Any:
        """Labelled texts or images on which settings are chosen."""
        return self._split("valid")

    @property
    def test(self) -> Any:
        """Labelled texts or images to be touched once, at the end."""
        return self._split("test")

    @property
    def unlabelled(self) -> Split:
        """Texts for pre-training; none of them is in `valid` or `test`."""
        return self._split("unlabelled")

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hex digits of SHA-256 over every split's name, texts and labels: record it with a result."""
        digest = hashlib.sha256()
        for name, split in self.splits.items():
            digest.update(f"{name} {len(split)} ".encode())
            for content in split.content():
                digest.update(content)
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(split):,}" for name, split in self.splits.items())
        return f"Dataset({self.name!r}: {sizes}{'; labels ' * bool(self.labels)}{', '.join(self.labels)})"


def nested_subsets(labels: np.ndarray, sizes: Sequence[int], seed: int) -> dict[int, np.ndarray]:
    """Indices (n,) of a class-balanced random subset for each n in `sizes`, every smaller one inside every larger one.

    Classes differ by at most one row, except that one with too few gives all it has. A subset depends on `labels`, its size
    and `seed`, not on the other sizes. Raises ValueError for a size below the number of classes or above that of rows.

    >>> subsets = nested_subsets(np.array([0, 0, 0, 0, 1, 1, 1, 1]), sizes=[2, 4], seed=0)
    >>> {n: len(rows) for n, rows in subsets.items()}, set(subsets[2]) < set(subsets[4])
    ({2: 2, 4: 4}, True)
    """
    labels = np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    if labels.ndim != 1 or not len(labels) or not len(sizes):
        raise ValueError(f"nested_subsets: expected labels (N,) and some sizes, got {labels.shape} and {list(sizes)}.")
    if min(sizes) < len(classes):
        raise ValueError(
            f"nested_subsets: every size must be at least the number of classes, {len(classes)}, got {min(sizes)}. "
            "Ask for one label a class or more."
        )
    if max(sizes) > len(labels):
        raise ValueError(f"nested_subsets: {max(sizes)} labels were asked for, but there are {len(labels)}. Ask for fewer.")
    random = np.random.Generator(np.random.PCG64(seed))
    rows = [random.permutation(np.flatnonzero(labels == label)) for label in classes]
    # Each round deals a row of every class that has one left, the classes in random order; a subset is the first n rows dealt.
    rounds = [[own[i] for own in rows if i < len(own)] for i in range(counts.max())]
    order = np.concatenate([random.permutation(dealt) for dealt in rounds])
    return {size: order[:size] for size in sizes}
