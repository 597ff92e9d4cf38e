"""Classifier: one of several classes for each text or image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import ops
from ..backend import Array
from ..devices import widened
from ..tensor import Tensor
from .head import PooledHead, check_targets, checked_labels

Losses = dict[str, tuple[Tensor, int, float]]


class Classifier(PooledHead):
    """Puts each row of a batch, a text or an image, into one of the classes `labels`.

    The backbone's features are pooled, and a linear head gives the logits. `auxiliary` is the weight of the backbone's own
    loss beside that of the labels, lambda in Radford et al. 2018, Improving language understanding by generative
    pre-training, equation 5. Raises ValueError for fewer than two labels, repeated ones, or an unknown pooling, and for an
    auxiliary loss on what cannot predict next tokens.
    """

    kind = "classifier"

    def __init__(self, backbone: Any, labels: Sequence[str], pooling: str | None = None, auxiliary: float = 0.0) -> None:
        self.labels, self.auxiliary = checked_labels("Classifier", labels), auxiliary
        super().__init__(backbone, len(self.labels), pooling, output=bool(auxiliary))
        if auxiliary:
            if not 0 < auxiliary < np.inf or not hasattr(self.backbone, "language_loss"):
                raise ValueError(f"Classifier: auxiliary must be 0, or more on a backbone that predicts next tokens, got "
                                 f"{auxiliary} on {type(self.backbone).__name__}")
            self.backbone.require_head()

    def check(self, dataset: Any) -> None:
        """Raises ValueError where a set has a label that is none of this model's, or a token that its backbone has not."""
        check_targets("Classifier", dataset, self.labels)
        super().check(dataset)

    def loss(self, batch: Any) -> Losses:
        """{term: (sum of losses, count, weight)}: the cross-entropy of each row's label, in nats."""
        x, counts = self.features(batch), self.counts(batch)
        terms = {"classification": (ops.cross_entropy(self.logits(x, batch), batch.targets), counts["classification"], 1.0)}
        if self.auxiliary:
            loss = self.backbone.language_loss(x, batch.next_tokens)
            terms["language_model"] = loss, counts["language_model"], self.auxiliary
        return terms

    def counts(self, batch: Any) -> dict[str, int]:
        """{term: count} of `loss`, known before any forward pass."""
        extra = {"language_model": int((batch.on_host.next_tokens != ops.IGNORE).sum())} if self.auxiliary else {}
        return {"classification": batch.supervised} | extra

    def measure(self, batch: Any) -> dict[str, tuple[Array, int]]:
        """{name: (sum, count)} of what evaluation reports: the loss, and the rows put into a wrong class."""
        return measured(self(batch), batch)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Of every class, (B, K) float64: e^logits / sum(e^logits)."""
        return softmax(logits)

    def settings(self) -> dict[str, Any]:
        """The arguments that make this head, beside the backbone."""
        return {"labels": self.labels, "pooling": self.pooling, "auxiliary": self.auxiliary}

    def __repr__(self) -> str:
        return f"Classifier({self.backbone!r}, labels={self.labels}, pooling={self.pooling!r})"


def measured(logits: Tensor, batch: Any) -> dict[str, tuple[Array, int]]:
    """The summed loss of logits (..., K) and how many are wrong, of the targets (...) that count."""
    targets, count = batch.targets, batch.supervised
    wrong = ((widened(logits.data).argmax(-1) != targets) & (targets != ops.IGNORE)).sum()
    return {"loss": (ops.cross_entropy(logits, targets).data, count), "error": (wrong, count)}


def softmax(logits: np.ndarray) -> np.ndarray:
    """e^logits / sum(e^logits) over the last axis, float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)
