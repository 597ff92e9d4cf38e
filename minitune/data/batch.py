"""Batch: token ids and, for every token, the interval of tokens that it sees. And the two sets that make batches.

Letters: B rows, T time. All arrays of a batch are (B, T) integers, except the targets of some heads: (B,) for a classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

from ..devices import array_module, device_of, moved
from ..ops import IGNORE
from .dataset import Split
from .tokenizer import Tokenizer

Document = Sequence[int]


@dataclass(slots=True)
class Batch:
    """What a model reads. Position t of row b sees the positions first[b, t] .. last[b, t]; padding has first > last.

    A text is one row, or `chunks` rows one below the other, some of which may hold no token (`LongTextSet`).
    """

    ids: np.ndarray             # (B, T) token ids
    positions: np.ndarray       # (B, T) place in the document, from 0
    first: np.ndarray           # (B, T) the first position seen
    last: np.ndarray            # (B, T) the last position seen
    targets: np.ndarray         # (B, T) tokens or (B,) labels, or what a head defines; IGNORE where nothing is to be predicted
    segments: np.ndarray | None = None      # (B, T) which of a row's texts a token is of, where a model tells them apart
    related: np.ndarray | None = None       # (B,) whether a row's second text follows its first: 0 yes, 1 no
    chunks = 1                  # how many rows make a text: a LongTextBatch has its own
    host: Batch | None = field(default=None, init=False, repr=False, compare=False)    # on a GPU, what it was made from

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: str, before: int = 0) -> Batch:
        """The batch with its arrays on "cpu" or "cuda", integers as int32 there; `before` tokens stand in a cache.

        Operations on a GPU do not look at numbers, so that is done here: raises ValueError where ids, positions or targets are
        negative or an interval leaves the row, RuntimeError where there is no GPU.
        """
        if device != device_of(self.ids) == "cpu":
            seen = np.where(self.valid, [self.first, self.last], 0)
            least = min(a.min(initial=0) for a in (self.ids, self.positions, seen, self.targets[self.targets != IGNORE]))
            if least < 0 or seen.max(initial=0) >= before + self.ids.shape[1]:
                raise ValueError(f"Batch.to: there are {before + self.ids.shape[1]} tokens to be seen, and no number may be "
                                 f"negative, got last = {seen.max(initial=0)} and numbers from {least}")
        return moved(self, device)

    @property
    def on_host(self) -> Batch:
        """The batch where its numbers can be looked at without waiting for a GPU."""
        return self if self.host is None else self.host

    @property
    def valid(self) -> np.ndarray:
        """(B, T) booleans: which positions hold a token and not padding."""
        return self.first <= self.last

    @property
    def tokens(self) -> int:
        """How many tokens there are, padding left out."""
        return int(self.on_host.valid.sum())

    @property
    def supervised(self) -> int:
        """How many targets count."""
        return int((self.on_host.targets != IGNORE).sum())

    @property
    def next_tokens(self) -> np.ndarray:
        """(B, T) the token that follows in the same document, IGNORE at its end: what a causal model learns from `ids`."""
        follows = self.valid[:, :-1] & self.valid[:, 1:] & (self.positions[:, 1:] == self.positions[:, :-1] + 1)
        xp = array_module(self.ids)
        return xp.pad(xp.where(follows, self.ids[:, 1:], IGNORE), ((0, 0), (0, 1)), constant_values=IGNORE)

    @classmethod
    def causal(cls, rows: Sequence[Sequence[Document]], labels: Sequence[int] | np.ndarray | None = None,
               side: str = "right", pad: int = 0) -> Batch:
        """Rows of one or more documents each; a token sees its own document up to itself, and nothing else.

        Without `labels` the targets are each document's next tokens. `side` is where shorter rows are padded.
        Raises ValueError for an empty document, another side, or labels that are not one a row.

        >>> Batch.causal([[[5, 6, 7], [8, 9]]]).first
        array([[0, 0, 0, 3, 3]])
        """
        if side not in ("left", "right"):
            raise ValueError(f'Batch.causal: side must be "left" or "right", got {side!r}')
        if labels is not None and len(labels) != len(rows):
            raise ValueError(f"Batch.causal: expected a label for each of {len(rows)} rows, got {len(labels)}")
        if not len(rows) or not all(np.iterable(document) for documents in rows for document in documents):
            raise ValueError("Batch.causal: expected rows of documents of ids, as in [[[5, 6, 7], [8, 9]]] for two documents "
                             f"in one row, got {rows!r:.60}")
        shape = len(rows), max(sum(map(len, documents)) for documents in rows)
        ids, targets = np.full(shape, pad), np.full(shape, IGNORE)
        first, last = np.ones(shape, int), np.zeros(shape, int)
        for b, documents in enumerate(rows):
            start = 0 if side == "right" else shape[1] - sum(map(len, documents))
            for document in documents:
                if not len(document):
                    raise ValueError(f"Batch.causal: row {b} holds an empty document. Leave empty texts out")
                end = start + len(document)
                ids[b, start:end], targets[b, start : end - 1] = document, document[1:]
                first[b, start:end], last[b, start:end] = start, np.arange(start, end)
                start = end
        # a token's position is how many of its document stand before it
        return cls(ids, np.maximum(last - first, 0), first, last, targets if labels is None else np.asarray(labels, int))

    @classmethod
    def bidirectional(cls, rows: Sequence[Document], labels: Sequence[int] | np.ndarray | None = None,
                      segments: Sequence[Document] | None = None, targets: Sequence[Document] | None = None,
                      pad: int = 0) -> Batch:
        """Rows of one document each, padded on the right; a token sees all of its row.

        `targets` are what is to be predicted at each token, `labels` one for each row; without either there is nothing to
        predict. `segments` number the texts of a row.
        Raises ValueError for an empty row, and for labels, segments or targets that do not fit the rows.

        >>> Batch.bidirectional([[5, 6, 7], [8]]).last
        array([[2, 2, 2],
               [0, 0, 0]])
        """
        batch = cls.causal([[row] for row in rows], labels, pad=pad)
        batch.last = np.where(batch.valid, batch.last.max(1, keepdims=True), batch.last)
        batch.segments = None if segments is None else batch._placed("segments", segments, 0)
        if labels is None:
            batch.targets = batch._placed("targets", targets or [[IGNORE] * len(row) for row in rows], IGNORE)
        return batch

    def _placed(self, name: str, rows: Sequence[Document], outside: int) -> np.ndarray:
        """(B, T): a number of `rows` for each token, `outside` for padding."""
        placed = np.full(self.ids.shape, outside)
        if [len(row) for row in rows] != self.valid.sum(1).tolist():
            raise ValueError(f"Batch.bidirectional: {name} must hold a number for each token of each row")
        placed[self.valid] = np.concatenate([np.asarray(row, int) for row in rows])
        return placed

    @classmethod
    def of_ids(cls, ids: np.ndarray) -> Batch:
        """A full array (B, T) of ids, every row one document without padding."""
        ids = np.asarray(ids)
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise ValueError(f"Batch.of_ids: expected integer ids (B, T), got {ids.dtype} {ids.shape}. "
                             "For one text write ids[None]")
        time = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        targets = np.concatenate([ids[:, 1:], np.full((len(ids), 1), IGNORE)], 1)
        return cls(ids, time, np.zeros_like(time), time, targets)


def fingerprint(*arrays: np.ndarray) -> str:
    """The first 16 hex digits of SHA-256 over arrays: a checkpoint stores it, so that none goes on with other data."""
    digest = sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()[:16]


class LanguageModelSet:
    """Documents end to end, cut into rows of `block_size` tokens; no token sees another document.

    Every token but the first of its document is predicted once, also across the cut between two rows. The last tokens, too
    few to fill a row, are left out.
    """

    causal = True

    def __init__(self, documents: Sequence[Document], block_size: int) -> None:
        if block_size < 1:
            raise ValueError(f"LanguageModelSet: block_size must be at least 1, got {block_size}")
        stream = np.concatenate([np.asarray(d, np.int32) for d in documents]) if len(documents) else np.zeros(0, np.int32)
        rows = len(stream) // block_size
        if not rows:
            raise ValueError(f"LanguageModelSet: {len(stream)} tokens do not fill a row of {block_size}. "
                             "Give more text or a smaller block_size")
        owner = np.repeat(np.arange(len(documents)), [len(d) for d in documents])
        targets = np.append(np.where(owner[1:] == owner[:-1], stream[1:], IGNORE), IGNORE)
        self.ids, self.targets, self.owner = (a[: rows * block_size].reshape(rows, block_size)
                                              for a in (stream, targets, owner))

    @classmethod
    def from_texts(cls, texts: Sequence[str], tokenizer: Tokenizer, block_size: int) -> LanguageModelSet:
        """The texts as token ids, each between the tokenizer's start token, where it has one, and its end token."""
        return cls([tokenizer.frame(ids) for ids in tokenizer.encode_batch(texts)], block_size)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def largest_id(self) -> int:
        """The largest token id: a model that reads the set needs a larger vocabulary than this."""
        return int(self.ids.max())

    @property
    def fingerprint(self) -> str:
        """A digest of all tokens and targets."""
        return fingerprint(self.ids, self.targets)

    def split(self, held_out: int) -> tuple[LanguageModelSet, LanguageModelSet]:
        """(all rows but the last `held_out`, the last `held_out` rows): the second to measure on."""
        if not 0 < held_out < len(self):
            raise ValueError(f"LanguageModelSet.split: held_out must be from 1 to {len(self) - 1}, got {held_out}")
        parts = copy(self), copy(self)
        for part, rows in zip(parts, (slice(None, -held_out), slice(-held_out, None))):
            part.ids, part.targets, part.owner = self.ids[rows], self.targets[rows], self.owner[rows]
        return parts

    def batch(self, rows: np.ndarray) -> Batch:
        """The rows of these numbers as a Batch."""
        ids, owner = self.ids[rows].astype(int), self.owner[rows]
        time = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        starts = np.diff(owner, axis=1, prepend=owner[:, :1] - 1) != 0      # (B, T): does a document start here?
        first = np.maximum.accumulate(np.where(starts, time, 0), 1)
        return Batch(ids, time - first, first, time, self.targets[rows].astype(int))


class ClassificationSet:
    """Documents with a label each; a batch pads them on the right to its longest.

    With `causal` a token sees its document up to itself, else all of it, as BERT's do.
    """

    def __init__(self, documents: Sequence[Document], labels: Sequence[int] | np.ndarray, block_size: int,
                 causal: bool = True) -> None:
        if len(documents) != len(labels):
            raise ValueError(f"{type(self).__name__}: expected as many labels as documents, got {len(labels)} labels and "
                             f"{len(documents)} documents")
        empty = [i for i, document in enumerate(documents) if not len(document)]
        if empty:
            raise ValueError(f"{type(self).__name__}: document {empty[0]} is empty. Leave empty texts out")
        self.documents = [np.asarray(document[:block_size], np.int32) for document in documents]
        self.labels, self.causal = np.asarray(labels, int), causal
        self.truncated = [i for i, document in enumerate(documents) if len(document) > block_size]

    def __len__(self) -> int:
        return len(self.documents)

    @classmethod
    def from_split(cls, split: Split, tokenizer: Tokenizer, block_size: int, causal: bool = True) -> ClassificationSet:
        """The labelled texts of a split as token ids between the tokenizer's start and end tokens, cut to `block_size`;
        `truncated` lists the rows that were cut."""
        if split.labels is None:
            raise ValueError("ClassificationSet.from_split: the split has no labels. Is it the unlabelled one?")
        encoded, room = tokenizer.encode_batch(split.texts), block_size - len(tokenizer.frame([]))
        if room < 1:
            raise ValueError(f"ClassificationSet.from_split: block_size must be at least {len(tokenizer.frame([0]))}, special "
                             f"tokens and one of the text, got {block_size}")
        whole = cls([tokenizer.frame(ids[:room]) for ids in encoded], split.labels, block_size, causal)
        whole.truncated = [i for i, ids in enumerate(encoded) if len(ids) > room]
        return whole

    @property
    def largest_id(self) -> int:
        """The largest token id."""
        return max(int(document.max()) for document in self.documents)

    @property
    def fingerprint(self) -> str:
        """A digest of all tokens and labels, and of what a token sees."""
        return fingerprint(*self.documents, self.labels, np.array(self.causal))

    def subset(self, rows: np.ndarray) -> ClassificationSet:
        """The set of these rows only, numbered anew."""
        chosen = copy(self)
        chosen.documents, chosen.labels = [self.documents[i] for i in rows], self.labels[rows]
        chosen.truncated = np.flatnonzero(np.isin(rows, self.truncated)).tolist()
        return chosen

    def batch(self, rows: np.ndarray) -> Batch:
        """The rows of these numbers as a Batch, padded to the longest of them."""
        documents, labels = [self.documents[i] for i in rows], self.labels[rows]
        return Batch.causal([[row] for row in documents], labels) if self.causal else Batch.bidirectional(documents, labels)
