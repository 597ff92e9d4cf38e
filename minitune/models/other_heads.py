"""More heads that classify: several labels at once, a label for each token, and choices between texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import ops
from ..backend import Array
from ..data import Batch
from ..devices import widened
from ..nn import Linear
from ..tensor import Tensor
from .classifier import Losses, measured, softmax
from .head import Head, PooledHead, check_targets, checked_labels


class MultiLabelClassifier(PooledHead):
    """Says of each label whether a row has it: a sigmoid for each. Targets (B, K) of 0 and 1, IGNORE where nobody knows."""

    kind = "multi_label_classifier"
    independent = True          # the labels do not exclude each other

    def __init__(self, backbone: Any, labels: Sequence[str], pooling: str | None = None) -> None:
        self.labels = checked_labels("MultiLabelClassifier", labels)
        super().__init__(backbone, len(self.labels), pooling)

    def check(self, dataset: Any) -> None:
        """Raises ValueError where targets are not (N, K) of 0, 1 and IGNORE, or a token is one that the backbone has not."""
        given = np.asarray(getattr(dataset, "labels", ()))
        if given.shape[1:] != (len(self.labels),) or not np.isin(given, (0, 1, ops.IGNORE)).all():
            raise ValueError(f"MultiLabelClassifier: labels must be (N, K) of 0 and 1 with K = {len(self.labels)}, got "
                             f"{given.dtype} {given.shape}. For one class a row take Classifier")
        super().check(dataset)

    def loss(self, batch: Any) -> Losses:
        """{term: (sum of losses, count, weight)}: the binary cross-entropy of every label of every row, in nats."""
        return {"classification": (ops.binary_cross_entropy(self(batch), batch.targets), batch.supervised, 1.0)}

    def counts(self, batch: Any) -> dict[str, int]:
        """{term: count} of `loss`, known before any forward pass."""
        return {"classification": batch.supervised}

    def measure(self, batch: Any) -> dict[str, tuple[Array, int]]:
        """{name: (sum, count)} of what evaluation reports: the loss, and the wrong decisions, each label by itself."""
        logits, targets = self(batch), batch.targets
        wrong = (((widened(logits.data) > 0) != targets) & (targets != ops.IGNORE)).sum()
        return {"loss": (ops.binary_cross_entropy(logits, targets).data, batch.supervised), "error": (wrong, batch.supervised)}

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Of every label, (B, K) float64, each by itself: 1 / (1 + e^-logits)."""
        return 0.5 + 0.5 * np.tanh(0.5 * logits.astype(np.float64))

    def settings(self) -> dict[str, Any]:
        """The arguments that make this head, beside the backbone."""
        return {"labels": self.labels, "pooling": self.pooling}

    def __repr__(self) -> str:
        return f"MultiLabelClassifier({self.backbone!r}, labels={self.labels}, pooling={self.pooling!r})"


class TokenClassifier(Head):
    """Puts each token into one of the classes `labels`: names in a text, parts of speech. Targets (B, T)."""

    kind = "token_classifier"

    def __init__(self, backbone: Any, labels: Sequence[str]) -> None:
        super().__init__(backbone)
        self.labels = checked_labels("TokenClassifier", labels)
        self.head = Linear(self.backbone.config.n_embd, len(self.labels)).to(self.backbone.device, self.dtype)

    def forward(self, ids: Any) -> Tensor:
        """Integer ids (B, T), or a Batch -> logits (B, T, K)"""
        return self.head(self.features(self.batch_of(ids)))

    def check(self, dataset: Any) -> None:
        """Raises ValueError where a set has a label that is none of this model's, or a token that its backbone has not."""
        check_targets("TokenClassifier", dataset, self.labels)
        super().check(dataset)

    def loss(self, batch: Batch) -> Losses:
        """{term: (sum of losses, count, weight)}: the cross-entropy of each token's label, in nats."""
        return {"classification": (ops.cross_entropy(self(batch), batch.targets), batch.supervised, 1.0)}

    def counts(self, batch: Batch) -> dict[str, int]:
        """{term: count} of `loss`, known before any forward pass."""
        return {"classification": batch.supervised}

    def measure(self, batch: Batch) -> dict[str, tuple[Array, int]]:
        """{name: (sum, count)} of what evaluation reports: the loss, and the tokens put into a wrong class."""
        return measured(self(batch), batch)

    def settings(self) -> dict[str, Any]:
        """The arguments that make this head, beside the backbone."""
        return {"labels": self.labels}

    def __repr__(self) -> str:
        return f"TokenClassifier({self.backbone!r}, labels={self.labels})"


class MultipleChoice(PooledHead):
    """Chooses between `choices` texts for each question: each gets a score, the largest wins.

    The rows of a batch are all choices of the first question, then those of the second, and so on; targets (questions,).
    Source: Radford et al. 2018, Improving language understanding by generative pre-training, section 3.3.
    """

    kind = "multiple_choice"

    def __init__(self, backbone: Any, choices: int, pooling: str | None = None) -> None:
        if not isinstance(choices, (int, np.integer)) or choices < 2:
            raise ValueError(f"MultipleChoice: choices must be a whole number from 2, got {choices}")
        super().__init__(backbone, 1, pooling, bias=True)
        self.choices = choices

    def forward(self, inputs: Any) -> Tensor:
        """Integer ids (questions * choices, T), or a Batch of as many rows -> logits (questions, choices)"""
        batch = self.batch_of(inputs)
        if len(batch) % self.choices:
            raise ValueError(f"MultipleChoice: expected {self.choices} rows for each question, got {len(batch)} rows")
        return super().forward(batch).reshape(-1, self.choices)

    def check(self, dataset: Any) -> None:
        """Raises ValueError where a set has another number of choices, or a token that the backbone has not."""
        given = getattr(dataset, "choices", self.choices)
        if given != self.choices:
            raise ValueError(f"MultipleChoice: expected {self.choices} choices for each question, got a set with {given}. "
                             f"Build the model with choices={given}")
        super().check(dataset)

    def loss(self, batch: Batch) -> Losses:
        """{term: (sum of losses, count, weight)}: the cross-entropy of each question's right choice, in nats."""
        return {"choice": (ops.cross_entropy(self(batch), batch.targets), batch.supervised, 1.0)}

    def counts(self, batch: Batch) -> dict[str, int]:
        """{term: count} of `loss`, known before any forward pass."""
        return {"choice": batch.supervised}

    def measure(self, batch: Batch) -> dict[str, tuple[Array, int]]:
        """{name: (sum, count)} of what evaluation reports: the loss, and the questions answered wrongly."""
        return measured(self(batch), batch)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Of every choice, (questions, choices) float64."""
        return softmax(logits)

    def settings(self) -> dict[str, Any]:
        """The arguments that make this head, beside the backbone."""
        return {"choices": self.choices, "pooling": self.pooling}

    def __repr__(self) -> str:
        return f"MultipleChoice({self.backbone!r}, choices={self.choices}, pooling={self.pooling!r})"
