"""MaskedLanguageModel: the head with which BERT is pre-trained: hidden tokens, and whether two texts belong together."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..data import Batch
from ..nn import LayerNorm, Linear, Parameter, filled
from ..tensor import Tensor
from .head import Head


class MaskedLanguageModel(Head):
    """Predicts the hidden tokens of a text from all the others: norm(gelu(transform x)) times the token embedding, + bias.

    With `next_sentence` the first token says besides whether the second text of a row follows the first (class 0) or not.
    Raises ValueError for a backbone without token embedding, or for `next_sentence` on one without pooler.
    Source: Devlin et al. 2019, BERT, section 3.1; the head is that of its published code.
    """

    kind = "masked_language_model"

    def __init__(self, backbone: Any, next_sentence: bool = False) -> None:
        super().__init__(backbone, pooler=next_sentence)
        if not hasattr(self.backbone, "token_embedding"):
            raise ValueError(f"MaskedLanguageModel: the backbone must read tokens, got {type(self.backbone).__name__}")
        if next_sentence and getattr(self.backbone, "pooler", None) is None:
            raise ValueError("MaskedLanguageModel: next_sentence reads the backbone's pooler, and this one has none. Build it "
                             "with BERTConfig(..., pooler=True)")
        config = self.backbone.config
        self.transform = Linear(config.n_embd, config.n_embd)
        self.norm = LayerNorm(config.n_embd, getattr(config, "eps", 1e-12))
        self.bias: Parameter = filled((config.vocab_size,), 0.0)
        self.relation = Linear(config.n_embd, 2) if next_sentence else None

    def forward(self, ids: Any) -> Tensor:
        """Integer ids (B, T), or a Batch -> logits (B, T, V)"""
        return self.logits(self.features(self.batch_of(ids)))

    def logits(self, x: Tensor) -> Tensor:
        """Features (..., C) -> logits (..., V)"""
        return ops.linear(self._transformed(x), self.backbone.token_embedding.effective_weight(), self.bias)

    def _transformed(self, x: Tensor) -> Tensor:
        return self.norm(ops.gelu(self.transform(x), "none"))

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, int, float]]:
        """{term: (sum of losses, count, weight)}: the cross-entropy of hidden tokens, and of pairs of texts, in nats."""
        x, counts = self.features(batch), self.counts(batch)
        rows = np.nonzero(batch.targets != ops.IGNORE)          # the few that are hidden: the others need no head
        weight = self.backbone.token_embedding.effective_weight()
        loss = ops.linear_cross_entropy(self._transformed(x[rows]), weight, batch.targets[rows], self.bias)
        terms = {"masked_language_model": (loss, counts["masked_language_model"], 1.0)}
        if "next_sentence" in counts:
            assert self.relation is not None
            relation = ops.cross_entropy(self.relation(self.backbone.pool(x)), batch.related)
            terms["next_sentence"] = relation, counts["next_sentence"], 1.0
        return terms

    def counts(self, batch: Batch) -> dict[str, int]:
        """{term: count} of `loss`, known before any forward pass."""
        related = {"next_sentence": len(batch)} if self.relation and batch.related is not None else {}
        return {"masked_language_model": batch.supervised} | related

    def measure(self, batch: Batch) -> dict[str, tuple[float, int]]:
        """{name: (sum, count)} of what evaluation reports: the loss of the hidden tokens."""
        return {"loss": (self.loss(batch)["masked_language_model"][0].item(), batch.supervised)}

    def settings(self) -> dict[str, Any]:
        """The arguments that make this head, beside the backbone."""
        return {"next_sentence": self.relation is not None}

    def __repr__(self) -> str:
        return f"MaskedLanguageModel({self.backbone!r}, next_sentence={self.relation is not None})"
