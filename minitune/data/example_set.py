"""ExampleSet: examples as token ids with a mask on what is learned, several of them packed into a row."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..ops import IGNORE
from .batch import Batch, fingerprint
from .example import Example
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenView:
    """The tokens of a row as text, and what becomes of each: "supervised", "ignored", "truncated" or "padding"."""

    tokens: list[str]
    states: list[str]


class ExampleSet:
    """Examples in rows of at most `block_size` tokens; only what an example marks is a target, and the end after it.

    A text is cut where its marks begin and end before it becomes tokens, so no token lies on both sides of a mark, and a
    prompt is read in training as it is at generation. With `pack`, examples share rows: each sees itself alone and its
    positions start at 0, so the loss is that of separate rows. With `truncate`, an example that is too long loses tokens
    from its beginning, so that its end is learned; `truncated` lists these.
    Raises ValueError, naming the examples, where one is too long (without `truncate`) or has no supervised token.
    """

    causal = True

    def __init__(self, examples: Sequence[Example], tokenizer: Tokenizer, block_size: int, pack: bool = True,
                 truncate: bool = False) -> None:
        if not examples:
            raise ValueError("ExampleSet: expected at least one example, got none")
        self.examples, self.tokenizer, self.block_size = list(examples), tokenizer, block_size
        self._whole = encode_examples(self.examples, tokenizer)
        self.lengths = lengths = [len(ids) for ids, _ in self._whole]     # before anything is cut
        self.truncated = [self._name(i) for i, length in enumerate(lengths) if length > block_size]
        if self.truncated and not truncate:
            raise ValueError(f"ExampleSet: {_some(self.truncated)} longer than block_size = {block_size} tokens (the longest "
                             f"has {max(lengths)}). Give truncate=True to cut their beginnings, or a larger block_size")
        self.tokens = [ids[-block_size:] for ids, _ in self._whole]
        self._learned = [learned[-block_size:] for _, learned in self._whole]
        unsupervised = [self._name(i) for i, learned in enumerate(self._learned) if not learned[1:].any()]
        if unsupervised:
            raise ValueError(f"ExampleSet: no supervised token in {_some(unsupervised)}. Mark what is to be learned, or leave "
                             "the example out")
        self.rows = pack_rows([len(ids) for ids in self.tokens], block_size) if pack else [[i] for i in range(len(lengths))]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: np.ndarray) -> Batch:
        """The rows of these numbers as a Batch, padded on the right to the longest of them."""
        batch = Batch.causal([[self.tokens[i] for i in self.rows[row]] for row in rows])     # type: ignore[misc]
        for b, row in enumerate(rows):
            learned = np.concatenate([np.append(self._learned[i][1:], False) for i in self.rows[row]])
            batch.targets[b, : len(learned)][~learned] = IGNORE
        return batch

    def view(self, row: int) -> TokenView:
        """A row as a model reads it, padding up to block_size, with the tokens that were cut off; `show.mask` draws it."""
        tokens, states = [], []
        for i in self.rows[row]:
            ids, learned = self._whole[i]
            cut = len(ids) - len(self.tokens[i])
            tokens += self.tokenizer.spell(ids)
            states += ["truncated"] * cut + ["ignored"]         # nothing comes before the first token to predict it from
            states += ["supervised" if it else "ignored" for it in learned[cut + 1 :]]
        padding = self.block_size - sum(len(self.tokens[i]) for i in self.rows[row])
        return TokenView(tokens + [""] * padding, states + ["padding"] * padding)

    @property
    def largest_id(self) -> int:
        """The largest token id."""
        return max(int(document.max()) for document in self.tokens)

    @property
    def fingerprint(self) -> str:
        """A digest of all tokens and marks, and of the rows they are packed into."""
        return fingerprint(*self.tokens, *self._learned, np.array([i for row in self.rows for i in (*row, -1)]))

    def _name(self, i: int) -> str:
        return self.examples[i].name or f"example {i}"


def encode_examples(examples: Sequence[Example], tokenizer: Tokenizer) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, which of them are learned) of each example; all pieces are encoded in one call, which uses all cores."""
    pieces = [_pieces(example) for example in examples]
    if tokenizer.backward and any(sum(text is not None for text, _ in parts) > 1 for parts in pieces):
        raise ValueError("an example's parts follow each other: take a tokenizer with backward=False for prompts and chats")
    encoded = iter(tokenizer.encode_batch([text for parts in pieces for text, _ in parts if text is not None]))
    whole = []
    for parts in pieces:
        ids = [] if tokenizer.start is None else [tokenizer.start]
        learned = [False] * len(ids)
        for text, supervised in parts:
            more = [tokenizer.end] if text is None else next(encoded)
            ids, learned = ids + more, learned + [supervised] * len(more)
        whole.append((np.array(ids, np.int32), np.array(learned, bool)))
    return whole


def _pieces(example: Example) -> list[tuple[str | None, bool]]:
    """(text, is it supervised) between all marks; None stands for an end token, learned where what it ends is."""
    borders = sorted({0, len(example.text), *example.ends, *(border for span in example.supervised for border in span)})
    pieces: list[tuple[str | None, bool]] = [(None, False)] if 0 in example.ends else []
    for start, stop in zip(borders, borders[1:]):
        supervised = any(a <= start and stop <= b for a, b in example.supervised)
        pieces.append((example.text[start:stop], supervised))
        if stop in example.ends:
            pieces.append((None, supervised))
    return pieces


def pack_rows(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The numbers of the items in rows of at most `size`: longest first, each into the fullest row that still holds it.

    Source: Johnson et al. 1974, Worst-case performance bounds for simple one-dimensional packing algorithms (best fit
    decreasing).

    >>> pack_rows([5, 2, 3, 4], 7)
    [[0, 1], [3, 2]]
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []            # (tokens free, row), sorted
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(room, (lengths[i], -1))
        free, row = room.pop(place) if place < len(room) else (size, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        insort(room, (free - lengths[i], row))
    return rows


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
