"""Overlap: which texts of a test set occur in the texts that a model learns from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

CHUNK = 1 << 21                 # words of `texts` looked up together
LARGEST = np.uint64(2**64 - 1)


@dataclass(frozen=True, eq=False)
class Overlap:
    """Which of N texts occur in others: `equal` (N,) as a whole, and of each the share (N,) of word sequences found there.

    `short` counts the texts that have no sequence of `words` words, and were compared as wholes alone.
    """

    equal: np.ndarray           # (N,) booleans
    shares: np.ndarray          # (N,) from 0 to 1, 0 for a text that is too short
    share: float                # from which share on a text counts as found
    words: int
    read: int                   # how many texts were searched
    short: int

    @property
    def found(self) -> np.ndarray:
        """(N,) booleans: which texts are equal to another, or share so many of their sequences."""
        return self.equal | (self.shares >= self.share)

    @property
    def rows(self) -> list[int]:
        """The numbers of the texts that were found."""
        return np.flatnonzero(self.found).tolist()

    @property
    def others(self) -> list[int]:
        """The numbers of the texts that were not: `split.subset(overlap.others)` leaves the found ones out."""
        return np.flatnonzero(~self.found).tolist()

    def __str__(self) -> str:
        count, equal = len(self.rows), int(self.equal.sum())
        short = f"; {self.short:,} are too short for that and were compared as wholes" if self.short else ""
        return (f"{count:,} of {len(self.equal):,} texts ({count / max(len(self.equal), 1):.2%}) occur in the {self.read:,} "
                f"searched: {equal:,} as a whole, {count - equal:,} more by at least {self.share:.0%} of their sequences of "
                f"{self.words} words{short}.")


def overlap(texts: Iterable[str], others: Sequence[str], share: float = 0.5, words: int = 13) -> Overlap:
    """Which of `others`, such as a test set, occur in `texts`, such as what a model is pre-trained on.

    One does if a text is equal to it but for case and white space, or if at least `share` of its sequences of `words` words
    stand in the texts. Words are runs of letters and digits, whatever their case. `texts` are read once, one after another.
    Sequences are compared by hashes of 64 bits: among a hundred million a false match has a chance of about one in a thousand.
    Raises TypeError for one string in the place of several texts, ValueError for `share` outside (0, 1] and `words` below 1.
    Source: Brown et al. 2020, Language models are few-shot learners, appendix C: sequences of 13 words.

    >>> train, test = ["a film  to see", "dull"], ["A film to see", "a fine film", "not dull"]
    >>> found = overlap(train, test)
    >>> found.rows, found.others
    ([0], [1, 2])
    """
    for given in (texts, others):
        if isinstance(given, str) or not np.iterable(given):
            raise TypeError(f"overlap: expected a list of texts, got one {type(given).__name__}. Write [text], or split.texts")
    if not 0 < share <= 1 or words < 1:
        raise ValueError(f"overlap: share must be above 0 and at most 1, words at least 1, got {share} and {words}")
    numbers: dict[str, int] = {}                # of the words of `others`, from 1
    wholes = [normalized(text) for text in others]
    hashes = [_hashes([numbers.setdefault(word, len(numbers) + 1) for word in _words(text)], words) for text in others]
    distinct, places = np.unique(np.concatenate([*hashes, [LARGEST]]), return_inverse=True)     # so that no hash is above all
    found, equal, read = np.zeros(len(distinct), bool), set[str](), 0
    for count, known, row in _chunks(texts, numbers, set(wholes)):
        searched = np.unique(_hashes(row, words))
        nearest = np.searchsorted(distinct, searched)
        found[nearest[distinct[nearest] == searched]] = True
        read, equal = read + count, equal | known
    counts = np.array([len(row) for row in hashes], int)
    owner = np.repeat(np.arange(len(counts)), counts)
    shares = np.bincount(owner, found[places[:-1]], len(counts)) / np.maximum(counts, 1)
    return Overlap(np.array([whole in equal for whole in wholes], bool), shares, share, words, read, int((counts == 0).sum()))


def _chunks(texts: Iterable[str], numbers: dict[str, int], wholes: set[str]) -> Iterator[tuple[int, set[str], list[int]]]:
    """(how many texts, which of `wholes` they are, the numbers of their words, 0 for others and after each text), in parts."""
    count, known, row = 0, set[str](), list[int]()
    for text in texts:
        count += 1
        known |= {normalized(text)} & wholes
        row += [numbers.get(word, 0) for word in _words(text)] + [0]
        if len(row) >= CHUNK:
            yield count, known, row
            count, known, row = 0, set(), []
    yield count, known, row


def normalized(text: str) -> str:
    """What of a text counts where two are compared as wholes: neither its case nor how much white space it has."""
    return " ".join(text.casefold().split())


def without(texts: Iterable[str], others: Iterable[str]) -> list[str]:
    """The texts, each once, but for those that are equal to one of `others`; case and white space make no difference.

    >>> without(["A film", "dull", "dull"], ["a  FILM"])
    ['dull']
    """
    known = set(map(normalized, others))
    return [text for text in dict.fromkeys(texts) if normalized(text) not in known]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _hashes(row: list[int], words: int) -> np.ndarray:
    """(n,) uint64: a hash of every `words` numbers that follow each other in a row."""
    if len(row) < words:
        return np.zeros(0, np.uint64)
    mixed, count = _mixed(np.array(row, np.uint64)), len(row) - words + 1
    hashes = np.zeros(count, np.uint64)
    for i in range(words):                      # a polynomial in an odd number, modulo 2^64
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + mixed[i : i + count]
    return _mixed(hashes)


def _mixed(x: np.ndarray) -> np.ndarray:
    """64 bits that each depend on all bits of x: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
