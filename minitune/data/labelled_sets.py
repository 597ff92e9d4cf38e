"""The sets of two more tasks: a label for every token, and choices between texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .batch import Batch, Document, fingerprint


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


def made_causal(batch: Batch) -> Batch:
    """The batch, whose rows are one document each, with every token seeing its document only up to itself."""
    batch.last = np.where(batch.valid, np.arange(batch.ids.shape[1]), batch.last)
    return batch
