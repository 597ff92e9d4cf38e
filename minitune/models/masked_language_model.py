"""MaskedLanguageModel: the head with which BERT is pre-trained: hidden tokens, and whether two texts belong together."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..backend import Array, array_module
from ..data import Batch, MaskedSet, NextSentenceSet
from ..nn import LayerNorm, Linear, Parameter, filled
from ..tensor import Tensor
from .backbone import check_direction, check_ids, text_batch
from .head import Head

NO_PAIRS = ("MaskedLanguageModel: next_sentence=True learns from pairs of texts, and there are none here. Take "
            "NextSentenceSet, or build the model without next_sentence")


class MaskedLanguageModel(Head):
    """Predicts the hidden tokens of a text from all the others: norm(gelu(transform x)) times the token embedding, + bias.

    On a causal backbone, as GPT, too, ids are read in both directions here, and sets must be made so.
    With `next_sentence` the first token says besides whether the second text of a row follows the first (class 0) or not.
    Raises ValueError for a backbone without token embedding or one that cannot read backwards, as AWDLSTM, and for
    `next_sentence` on one without pooler.
    Source: Devlin et al. 2019, BERT, section 3.1; the head is that of its published code.
    """

    kind = "masked_language_model"

    def __init__(self, backbone: Any, next_sentence: bool = False) -> None:
        super().__init__(backbone, pooler=next_sentence)
        if not hasattr(self.backbone, "token_embedding"):
            raise ValueError(f"MaskedLanguageModel: the backbone must read tokens, got {type(self.backbone).__name__}")
        if getattr(self.backbone, "recurrent", False):
            raise ValueError(f"MaskedLanguageModel: the backbone must see both sides of a hidden token, "
                             f"{type(self.backbone).__name__} reads from left to right alone. Take a BERT, GPT or Llama")
        if next_sentence and getattr(self.backbone, "pooler", None) is None:
            raise ValueError("MaskedLanguageModel: next_sentence reads the backbone's pooler, and this one has none. Build it "
                             "with BERTConfig(..., pooler=True)")
        config = self.backbone.config
        self.transform = Linear(config.n_embd, config.n_embd)
        self.norm = LayerNorm(config.n_embd, getattr(config, "eps", 1e-12))
        self.bias: Parameter = filled((config.vocab_size,), 0.0)
        self.relation = Linear(config.n_embd, 2) if next_sentence else None
        self.to(self.backbone.device, self.dtype)

    @property
    def causal(self) -> bool:
        """Whether a token sees those before it alone: a hidden token is read from both sides, whatever the backbone."""
        return False

    def batch_of(self, inputs: Any) -> Batch:
        """Integer ids (B, T) as a Batch in which every token sees all of its row, or a Batch; on the model's device."""
        return text_batch(inputs, causal=False).to(self.device)

    def check(self, dataset: Any) -> None:
        """Raises ValueError where a set's tokens see their past alone, or are none of the backbone's, or where it has no pairs
        of texts for `next_sentence`."""
        check_direction(self, dataset)
        check_ids(self.backbone, dataset)
        if self.relation and isinstance(dataset, MaskedSet) and not isinstance(dataset, NextSentenceSet):
            raise ValueError(NO_PAIRS)

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
        host, xp = batch.on_host.targets, array_module(x.data)
        rows = np.nonzero(host != ops.IGNORE)                   # the few that are hidden: the others need no head
        weight, hidden = self.backbone.token_embedding.effective_weight(), x[tuple(map(xp.asarray, rows))]
        loss = ops.linear_cross_entropy(self._transformed(hidden), weight, xp.asarray(host[rows]), self.bias)
        terms = {"masked_language_model": (loss, counts["masked_language_model"], 1.0)}
        if self.relation:
            relation = ops.cross_entropy(self.relation(self.backbone.pool(x, batch.valid)), batch.related)
            terms["next_sentence"] = relation, counts["next_sentence"], 1.0
        return terms

    def counts(self, batch: Batch) -> dict[str, int]:
        """{term: count} of `loss`, known before any forward pass. Raises ValueError for `next_sentence` without pairs."""
        if self.relation and batch.related is None:
            raise ValueError(NO_PAIRS)
        related = {"next_sentence": len(batch)} if self.relation else {}
        return {"masked_language_model": batch.supervised} | related

    def measure(self, batch: Batch) -> dict[str, tuple[Array, int]]:
        """{name: (sum, count)} of what evaluation reports: the loss of the hidden tokens."""
        return {"loss": (self.loss(batch)["masked_language_model"][0].data, batch.supervised)}

    def settings(self) -> dict[str, Any]:
        """The arguments that make this head, beside the backbone."""
        return {"next_sentence": self.relation is not None}

    def __repr__(self) -> str:
        return f"MaskedLanguageModel({self.backbone!r}, next_sentence={self.relation is not None})"
