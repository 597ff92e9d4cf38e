"""The sets of three more tasks: a label for every token, choices between texts, and a label for texts of many rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .batch import Batch, ClassificationSet, Document, fingerprint
from .dataset import Split
from .tokenizer import Tokenizer


class TokenClassificationSet:
    """Documents with a label for each token, IGNORE where there is none (as at all but the first piece of a word).

    A batch pads them on the right to its longest; what is longer than `block_size` is cut. With `causal` a token sees its
    document up to itself, else all of it. Raises ValueError where labels do not fit their documents, or one is empty.
    """

    def __init__(self, documents: Sequence[Document], labels: Sequence[Document], block_size: int,
                 causal: bool = True) -> None:
        lengths = [len(document) for document in documents]
        if lengths != [len(row) for row in labels] or 0 in lengths:
            raise ValueError("TokenClassificationSet: expected a label for each token of documents that are not empty, got "
                             f"documents of {lengths[:6]} tokens and labels of {[len(row) for row in labels][:6]}")
        self.documents = [np.asarray(document[:block_size], np.int32) for document in documents]
        self.labels, self.causal = [np.asarray(row[:block_size], int) for row in labels], causal
        self.truncated = [i for i, length in enumerate(lengths) if length > block_size]

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def largest_id(self) -> int:
        """The largest token id."""
        return max(int(document.max()) for document in self.documents)

    @property
    def fingerprint(self) -> str:
        """A digest of all tokens and labels, and of what a token sees."""
        return fingerprint(*self.documents, *self.labels, np.array(self.causal))

    def batch(self, rows: np.ndarray) -> Batch:
        """The rows of these numbers as a Batch with targets (B, T)."""
        labels = [self.labels[i] for i in rows]
        batch = Batch.bidirectional([self.documents[i] for i in rows], targets=labels)
        return made_causal(batch) if self.causal else batch


class MultipleChoiceSet:
    """Questions with as many documents to choose from each, of which one is right: what `models.MultipleChoice` reads.

    A document is a whole text, the question and one answer. `segments`, where a model tells texts apart, number its tokens
    alike. Raises ValueError for questions with different numbers of choices, answers that are none of them, segments that do
    not fit, and documents longer than `block_size`: what of a question can go, only its author knows.

    >>> dataset = MultipleChoiceSet([[[1, 2], [1, 3]], [[4, 5, 6], [4]]], [1, 0], 8)
    >>> dataset.batch(np.array([1])).ids.tolist()
    [[4, 5, 6], [4, 0, 0]]
    """

    def __init__(self, questions: Sequence[Sequence[Document]], answers: Sequence[int] | np.ndarray, block_size: int,
                 causal: bool = True, segments: Sequence[Sequence[Document]] | None = None) -> None:
        choices = {len(question) for question in questions}
        self.labels = np.asarray(answers, int)
        if len(choices) != 1 or self.labels.shape != (len(questions),) or not all(len(d) for q in questions for d in q):
            raise ValueError("MultipleChoiceSet: expected the same number of choices, none of them empty, and one answer for "
                             f"each question, got {len(questions)} questions of {sorted(choices)} choices and answers "
                             f"{self.labels.shape}")
        (self.choices,) = choices
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= self.choices))
        if len(wrong):
            raise ValueError(f"MultipleChoiceSet: answers must be 0 .. {self.choices - 1}, got {self.labels[wrong[0]]} at "
                             f"question {wrong[0]}")
        lengths = [[len(choice) for choice in question] for question in questions]
        if segments is not None and lengths != [[len(choice) for choice in question] for question in segments]:
            raise ValueError("MultipleChoiceSet: segments must hold a number for each token of each choice")
        longest = max(map(max, lengths))
        if longest > block_size:
            raise ValueError(f"MultipleChoiceSet: the longest choice has {longest} tokens, block_size is {block_size}. Shorten "
                             "the questions, not their answers")
        self.questions = [[np.asarray(choice, np.int32) for choice in question] for question in questions]
        self.segments, self.causal = segments, causal

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def largest_id(self) -> int:
        """The largest token id."""
        return max(int(choice.max()) for question in self.questions for choice in question)

    @property
    def fingerprint(self) -> str:
        """A digest of all tokens, segments and answers, and of what a token sees."""
        rows = [np.asarray(row) for rows in (self.questions, self.segments or ()) for choices in rows for row in choices]
        return fingerprint(*rows, self.labels, np.array(self.causal))

    def batch(self, rows: np.ndarray) -> Batch:
        """The choices of these questions, one a row, question after question, as a Batch with targets (questions,)."""
        documents = [choice for i in rows for choice in self.questions[i]]
        segments = None if self.segments is None else [choice for i in rows for choice in self.segments[i]]
        batch = Batch.bidirectional(documents, segments=segments)
        batch.targets = self.labels[rows]
        return made_causal(batch) if self.causal else batch


@dataclass(slots=True)
class LongTextBatch(Batch):
    """A Batch in which every `chunks` rows, one below the other, are one text; targets (B / chunks,)."""

    chunks: int = 1


class LongTextSet(ClassificationSet):
    """Texts with a label each that are longer than a model reads at once: cut into chunks, which a head pools together.

    Each chunk is a row of `block_size` tokens, the last of a text shorter; no token sees another chunk. At most `chunks` are
    read, what is left is cut. A batch has as many rows a text as its longest text needs, so texts of one chunk are what they
    are in a ClassificationSet; a chunk that a text has not is a row without tokens, which changes nothing.
    Recurrent models, as AWD-LSTM, need none of this: they read rows of any length.
    Raises ValueError as ClassificationSet, and where block_size or chunks is below 1.
    Source: Howard and Ruder 2018, section 3.3, BPTT for text classification; here without a state between chunks.

    >>> dataset = LongTextSet([[1, 2, 3, 4, 5], [6]], [0, 1], block_size=2, chunks=4)
    >>> batch = dataset.batch(np.array([0, 1]))
    >>> batch.chunks, batch.ids.tolist()
    (3, [[1, 2], [3, 4], [5, 0], [6, 0], [0, 0], [0, 0]])
    """

    def __init__(self, documents: Sequence[Document], labels: Sequence[int] | np.ndarray, block_size: int,
                 causal: bool = True, chunks: int = 4) -> None:
        if block_size < 1 or chunks < 1:
            raise ValueError(f"LongTextSet: block_size and chunks must be at least 1, got {block_size} and {chunks}")
        super().__init__(documents, labels, block_size * chunks, causal)
        self.block_size, self.chunks = block_size, chunks

    @classmethod
    def from_split(cls, split: Split, tokenizer: Tokenizer, block_size: int, causal: bool = True,
                   chunks: int = 4) -> LongTextSet:
        """The labelled texts of a split as token ids, each chunk between the tokenizer's start and end tokens; `truncated`
        lists the texts that are longer than all their chunks. Raises ValueError as ClassificationSet's."""
        first = ClassificationSet.from_split(split, tokenizer, block_size, causal)
        documents: list[Any] = list(first.documents)                        # whole, but for those that need more than a row
        room = block_size - len(tokenizer.frame([]))
        longer = tokenizer.encode_batch([split.texts[i] for i in first.truncated])
        for i, ids in zip(first.truncated, longer):
            pieces = [tokenizer.frame(ids[start : start + room]) for start in range(0, len(ids), room)]
            documents[i] = np.concatenate(pieces[:chunks])
        whole = cls(documents, first.labels, block_size, causal, chunks)
        whole.truncated = [i for i, ids in zip(first.truncated, longer) if len(ids) > chunks * room]
        return whole

    @property
    def fingerprint(self) -> str:
        """A digest of all tokens and labels, of where texts are cut, and of what a token sees."""
        return fingerprint(*self.documents, self.labels, np.array([self.causal, self.block_size]))

    def batch(self, rows: np.ndarray) -> LongTextBatch:
        """The texts of these numbers as a Batch: the chunks of the first, one a row, then those of the second, and so on."""
        size, documents = self.block_size, [self.documents[i] for i in rows]
        count = max(-(-len(document) // size) for document in documents)
        pieces = [document[start : start + size] for document in documents for start in range(0, count * size, size)]
        batch: Any = LongTextBatch.causal([[piece] if len(piece) else [] for piece in pieces])
        if not self.causal:
            batch.last = np.where(batch.valid, batch.last.max(1, keepdims=True), batch.last)
        batch.targets, batch.chunks = self.labels[rows], count
        return batch


def made_causal(batch: Batch) -> Batch:
    """The batch, whose rows are one document each, with every token seeing its document only up to itself."""
    batch.last = np.where(batch.valid, np.arange(batch.ids.shape[1]), batch.last)
    return batch
