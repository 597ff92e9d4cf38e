"""Masked language modelling: hidden tokens are predicted from both sides; and pairs of texts: does one follow the other?"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import fields
from typing import Any

import numpy as np

from .. import backend
from ..ops import IGNORE
from .batch import Batch, Document, fingerprint
from .example_set import pack_rows
from .tokenizer import Tokenizer


def mask_tokens(ids: np.ndarray, tokenizer: Tokenizer, probability: float = 0.15,
                random: backend.Random | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(ids with some tokens hidden, targets: what stood there, IGNORE elsewhere), both of the shape of `ids`, (..., T).

    Each token is chosen with `probability`, and at least one in a row that has any. Of the chosen 80 % become the mask token,
    10 % a random ordinary token, and 10 % stay. Special tokens (start, end, padding, mask, unknown) are never
    chosen. The numbers come from `random`, the library's own unless given.
    Raises ValueError for a tokenizer without a mask token and a probability outside (0, 1].
    Source: Devlin et al. 2019, BERT: pre-training of deep bidirectional transformers, section 3.1 and appendix A.1.
    """
    _check("mask_tokens", tokenizer, probability)
    special = tokenizer.special
    ordinary = np.delete(np.arange(tokenizer.vocab_size), special)
    choice, fate, other = (random or backend.random).uniform("mask", 3 * ids.size).reshape(3, *ids.shape)   # (..., T) each
    choice[np.isin(ids, special)] = 1
    chosen = (choice <= np.maximum(choice.min(-1, keepdims=True), probability)) & (choice < 1)
    masked, swapped = ids.copy(), chosen & (0.8 <= fate) & (fate < 0.9)
    masked[chosen & (fate < 0.8)] = tokenizer.mask
    masked[swapped] = ordinary[(other[swapped] * len(ordinary)).astype(int)]
    return masked, np.where(chosen, ids, IGNORE)


def _check(caller: str, tokenizer: Tokenizer, probability: float) -> None:
    if tokenizer.mask is None:
        raise ValueError(f"{caller}: the tokenizer has no mask token. Make one that has by Tokenizer.train(..., masked=True), "
                         "or load that of a masked language model such as BERT")
    if not 0 < probability <= 1:
        raise ValueError(f"{caller}: probability must be above 0 and at most 1, got {probability}")


class MaskedSet:
    """Documents in rows of at most `block_size` tokens, some of them hidden by `mask_tokens`.

    A document that is too long is cut into pieces; each piece stands between the tokenizer's start and end tokens. Short
    ones share rows: a token sees the whole of its own piece, and nothing else.
    A row's masks are drawn anew each time it is trained on (Liu et al. 2019, RoBERTa, section 4.1). Batches made inside
    `no_grad()`, as evaluation makes them, have those of `seed`, whatever the order and size of the batches.
    Raises ValueError for a tokenizer without a mask token, a block_size that holds no text, and documents without tokens.
    """

    causal = False
    _between, _shortest = 0, 1      # special tokens inside a row's text, and the least tokens of that

    def __init__(self, documents: Sequence[Document], tokenizer: Tokenizer, block_size: int, probability: float = 0.15,
                 seed: int = 0) -> None:
        name = type(self).__name__
        _check(name, tokenizer, probability)
        self.tokenizer, self.probability, self.seed = tokenizer, probability, seed
        self._measured: Batch | None = None             # all rows with the masks of `seed`, once they are asked for
        room = block_size - len(tokenizer.frame([])) - self._between
        if room < self._shortest:
            around = block_size - room
            raise ValueError(f"{name}: block_size must be at least {around + self._shortest}, as {around} special tokens stand "
                             f"around the text, got {block_size}")
        self.rows = self._cut(documents, room, block_size)
        if not self.rows:
            raise ValueError(f"{name}: too few tokens in {len(documents)} documents for a row. Give more text")

    @classmethod
    def from_texts(cls, texts: Sequence[str], tokenizer: Tokenizer, block_size: int, probability: float = 0.15,
                   seed: int = 0) -> MaskedSet:
        """The texts as token ids, each a document."""
        return cls(tokenizer.encode_batch(texts), tokenizer, block_size, probability, seed)

    def _cut(self, documents: Sequence[Document], room: int, block_size: int) -> list[list[np.ndarray]]:
        """The framed pieces that share each row, rows in the order of their first pieces."""
        pieces = [np.array(self.tokenizer.frame(document[start : start + room]), np.int32)
                  for document in documents for start in range(0, len(document), room)]
        return [[pieces[i] for i in row] for row in sorted(pack_rows([len(piece) for piece in pieces], block_size))]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def largest_id(self) -> int:
        """The largest token id there can be, as hidden tokens may become any other."""
        return self.tokenizer.vocab_size - 1

    @property
    def fingerprint(self) -> str:
        """A digest of all tokens, the rows they stand in, and how masks are drawn."""
        return fingerprint(*(piece for row in self.rows for piece in row), np.array([len(row) for row in self.rows]),
                           np.array(repr((self.probability, self.seed))))

    def split(self, held_out: int) -> tuple[MaskedSet, MaskedSet]:
        """(all rows but the last `held_out`, the last `held_out` rows): the second to measure on."""
        if not 0 < held_out < len(self):
            raise ValueError(f"{type(self).__name__}.split: held_out must be from 1 to {len(self) - 1}, got {held_out}")
        return self._part(slice(None, -held_out)), self._part(slice(-held_out, None))

    def _part(self, rows: slice) -> MaskedSet:
        part = copy(self)
        part.rows, part._measured = self.rows[rows], None
        return part

    def batch(self, rows: np.ndarray) -> Batch:
        """The rows of these numbers as a Batch; `targets` are the tokens that were chosen."""
        if backend.mode.recording:
            return self._draw(rows, backend.random)
        if self._measured is None:
            self._measured = self._draw(np.arange(len(self)), backend.Random(self.seed))
        arrays = [getattr(self._measured, field.name) for field in fields(Batch) if field.init]
        return Batch(*(None if array is None else array[rows] for array in arrays))     # type: ignore[arg-type]

    def _draw(self, rows: np.ndarray, random: backend.Random) -> Batch:
        batch = self._unmasked(rows, random)
        batch.ids, batch.targets = mask_tokens(batch.ids, self.tokenizer, self.probability, random)
        return batch

    def _padding(self) -> int:
        return self.tokenizer.end if self.tokenizer.pad is None else self.tokenizer.pad

    def _unmasked(self, rows: np.ndarray, random: backend.Random) -> Batch:
        batch = Batch.causal([self.rows[row] for row in rows], pad=self._padding())     # type: ignore[misc]
        for b, row in enumerate(rows):
            lengths = [len(piece) for piece in self.rows[row]]
            batch.last[b, : sum(lengths)] = np.repeat(np.cumsum(lengths) - 1, lengths)
        return batch


class NextSentenceSet(MaskedSet):
    """Pairs of texts, one a row: start, A, end (segment 0), B, end (segment 1), masked as in MaskedSet.

    A and B are the halves of a piece of a document. Each time a row is read, B is with probability 1/2 replaced by that of
    another document; a batch's `related` is 0 where B follows A and 1 where it does not.
    Raises ValueError as MaskedSet does, and where there are fewer than two documents of two tokens.
    Source: Devlin et al. 2019, section 3.1 and appendix A.2.
    """

    _between, _shortest = 1, 2

    def _cut(self, documents: Sequence[Document], room: int, block_size: int) -> list[list[np.ndarray]]:
        pieces = [(d, np.array(document[start : start + room], np.int32))
                  for d, document in enumerate(documents) for start in range(0, len(document) - 1, room)]
        self.document = np.array([d for d, _ in pieces])        # (rows,), ascending
        self._check_documents("Give more documents")
        return [np.array_split(piece, 2) for _, piece in pieces]

    def _part(self, rows: slice) -> MaskedSet:
        part: Any = super()._part(rows)
        part.document = self.document[rows]
        part._check_documents("Hold out other rows, or give more documents")
        return part

    def _check_documents(self, repair: str) -> None:
        if len(np.unique(self.document)) == 1:
            raise ValueError("NextSentenceSet: expected two documents of at least two tokens, as a text that does not follow "
                             f"comes from another. {repair}")

    @property
    def fingerprint(self) -> str:
        """A digest of all tokens, the documents they are of, and how masks and second texts are drawn."""
        return fingerprint(self.document, np.array(super().fingerprint))

    def _unmasked(self, rows: np.ndarray, random: backend.Random) -> Batch:
        replaced, place = random.uniform("mask", 2 * len(rows)).reshape(2, -1)
        related = (replaced < 0.5).astype(int)
        first, after = (np.searchsorted(self.document, self.document[rows], side) for side in ("left", "right"))
        others = (place * (len(self) - (after - first))).astype(int)        # a row of another document,
        others += (others >= first) * (after - first)                       # counted past this one's own
        seconds = np.where(related, others, rows)
        pairs = [(self.tokenizer.frame(self.rows[a][0]), [*self.rows[b][1], self.tokenizer.end]) for a, b in zip(rows, seconds)]
        batch = Batch.bidirectional([[*a, *b] for a, b in pairs], segments=[[0] * len(a) + [1] * len(b) for a, b in pairs],
                                    pad=self._padding())
        batch.related = related
        return batch
