"""Classifier: any backbone with `features`, a pooling over time and a linear head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import ops
from ..backend import Array, array_module
from ..data import Batch
from ..formats import gpt2
from ..nn import Linear, Module
from ..tensor import Tensor
from .pretrained import Pretrained


def pool_last(x: Tensor, valid: Array) -> Tensor:
    """The last token of each row: a causal model has read the whole text there. (B, T, C) -> (B, C)"""
    last = valid.shape[1] - 1 - np.argmax(valid[:, ::-1], 1)
    return x[np.arange(len(valid)), last]


def pool_mean(x: Tensor, valid: Array) -> Tensor:
    """The mean over the tokens of each row. (B, T, C) -> (B, C)"""
    share = (valid / valid.sum(1, keepdims=True)).astype(x.dtype)           # (B, T)
    return (x * array_module(x.data).asarray(share)[..., None]).sum(1)


def pool_max(x: Tensor, valid: Array) -> Tensor:
    """The largest value of each channel over the tokens of each row. (B, T, C) -> (B, C)"""
    hidden = np.where(valid, 0, np.finfo(x.dtype).min).astype(x.dtype)     # (B, T): padding never wins
    return (x + array_module(x.data).asarray(hidden)[..., None]).max(1)


def pool_concat(x: Tensor, valid: Array) -> Tensor:
    """Last, mean and max side by side. (B, T, C) -> (B, 3 C). Source: Howard and Ruder 2018, section 3.3."""
    return ops.concat([pool(x, valid) for pool in (pool_last, pool_mean, pool_max)], axis=1)


POOLINGS: dict[str, Callable[[Tensor, Array], Tensor]] = {"last": pool_last, "mean": pool_mean, "max": pool_max,
                                                          "concat": pool_concat}


class Classifier(Module, Pretrained):
    """Puts each row of a batch, one text, into one of the classes `labels`.

    The backbone's features (B, T, C) are pooled to (B, C), or (B, 3 C) for "concat", and a linear head gives the logits.
    Raises ValueError for fewer than two labels, repeated ones, or an unknown pooling.
    """

    def __init__(self, backbone: Module, labels: Sequence[str], pooling: str = "last") -> None:
        labels = tuple(map(str, labels))
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise ValueError(f"Classifier: expected at least two different labels, got {list(labels)}")
        if pooling not in POOLINGS:
            raise ValueError(f"Classifier: pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.backbone, self.labels, self.pooling = backbone, labels, pooling
        channels = backbone.config.n_embd * (3 if pooling == "concat" else 1)   # type: ignore[attr-defined]
        self.head = Linear(channels, len(labels), bias=False)      # as in Hugging Face's folders, which hold none
        self.tokenizer = getattr(backbone, "tokenizer", None)

    def forward(self, ids: Array) -> Tensor:
        """Integer ids (B, T), or a Batch -> logits (B, classes)"""
        batch = ids if isinstance(ids, Batch) else Batch.of_ids(ids)
        return self.head(POOLINGS[self.pooling](self.features(batch), batch.valid))

    def check(self, dataset: Any) -> None:
        """Raises ValueError where a set has a label that is none of this model's, or a token that its backbone has not."""
        labels = np.asarray(getattr(dataset, "labels", ()), int)
        wrong = np.flatnonzero(((labels < 0) | (labels >= len(self.labels))) & (labels != ops.IGNORE))
        if len(wrong):
            raise ValueError(f"Classifier: labels must be 0 .. {len(self.labels) - 1} for {', '.join(self.labels[:6])}, got "
                             f"{labels[wrong[0]]} at row {wrong[0]} ({len(wrong)} such rows). Was the set made with other "
                             "label names?")
        if hasattr(self.backbone, "check"):
            self.backbone.check(dataset)

    @property
    def recompute(self) -> bool:
        """The backbone's `recompute`: less memory, more time."""
        return self.backbone.recompute          # type: ignore[attr-defined]

    @recompute.setter
    def recompute(self, on: bool) -> None:
        self.backbone.recompute = on            # type: ignore[attr-defined]

    def features(self, batch: Batch) -> Tensor:
        """The backbone's features (B, T, C)."""
        return self.backbone.features(batch)            # type: ignore[attr-defined]

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, int, float]]:
        """{term: (sum of losses, count, weight)}: the cross-entropy of each text's label, in nats."""
        return {"classification": (ops.cross_entropy(self(batch), batch.targets), batch.supervised, 1.0)}

    def counts(self, batch: Batch) -> dict[str, int]:
        """{term: count} of `loss`, known before any forward pass."""
        return {"classification": batch.supervised}

    def measure(self, batch: Batch) -> dict[str, tuple[float, int]]:
        """{name: (sum, count)} of what evaluation reports: the loss, and the texts put into a wrong class."""
        logits = self(batch)
        labelled = batch.targets != ops.IGNORE
        wrong = int(((logits.numpy().argmax(-1) != batch.targets) & labelled).sum())
        return {"loss": (ops.cross_entropy(logits, batch.targets).item(), batch.supervised), "error": (wrong, batch.supervised)}

    def layer_groups(self) -> list[tuple[str, list[Module]]]:
        """The backbone's groups, then the head."""
        return [*self.backbone.layer_groups(), ("head", [self.head])]       # type: ignore[attr-defined]

    def to_hugging_face(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """(config, tensors) of the backbone, with the head as `score` and the names of the labels."""
        config, tensors = self.backbone.to_hugging_face()   # type: ignore[attr-defined]
        head = {f"score.{name}": array for name, array in self.head.state_dict().items()}
        return config | gpt2.classifier_to_hugging_face(self.labels, self.pooling), tensors | head

    def __repr__(self) -> str:
        return f"Classifier({self.backbone!r}, labels={self.labels}, pooling={self.pooling!r})"
