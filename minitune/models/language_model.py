"""LanguageModel: what the models that predict each next token have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..backend import Array
from ..data import Batch
from ..nn import Embedding, Linear
from ..tensor import Tensor
from .backbone import Backbone
from .generation import Generative


class LanguageModel(Backbone, Generative):
    """Predicts each next token from those before it. A model adds `features(batch, cache=None)`, its parts and their groups.

    The output matrix is the token embedding once more (Press and Wolf 2017, Using the output embedding to improve language
    models), or that of a layer `lm_head`.
    """

    token_embedding: Embedding
    lm_head: Linear | None = None
    causal = True
    pooling = "last"
    head_bias = False

    def forward(self, inputs: Any) -> Tensor:
        """Integer ids (B, T), or a Batch -> logits (B, T, V)"""
        return self.head(self.features(self.batch_of(inputs)))

    def head(self, x: Tensor) -> Tensor:
        """Features (..., C) -> logits (..., V)"""
        return ops.linear(x, self.output_weight(), self.output_bias())

    def output_weight(self) -> Tensor:
        """The (V, C) matrix that gives the logits. Raises ValueError for a copy that `without_head` made without it."""
        self.require_head()
        return (self.lm_head or self.token_embedding).effective_weight()

    def output_bias(self) -> Tensor | None:
        """What is added to the logits: (V,), or None."""
        return None

    def language_loss(self, x: Tensor, targets: Array) -> Tensor:
        """The summed cross-entropy in nats of `targets` (B, T), predicted from the features x (B, T, C)."""
        return ops.linear_cross_entropy(x, self.output_weight(), targets, self.output_bias())

    def without_head(self, pooler: bool = False, output: bool = False) -> Any:
        """A copy with the same Parameters; without an output matrix of its own where a head does not read it."""
        bare = self.sharing_parameters()
        if self.lm_head and not output:
            bare.lm_head, bare.headless = None, True
        return bare

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, int, float]]:
        """{term: (sum of losses, count, weight)}: the cross-entropy of each next token, in nats."""
        return {"language_model": (self.language_loss(self.features(batch), batch.targets), batch.supervised, 1.0)}

    def counts(self, batch: Batch) -> dict[str, int]:
        """{term: count} of `loss`, known before any forward pass."""
        return {"language_model": batch.supervised}

    def measure(self, batch: Batch) -> dict[str, tuple[Array, int]]:
        """{name: (sum, count)} of what evaluation reports."""
        return {"loss": (self.language_loss(self.features(batch), batch.targets).data, batch.supervised)}

    def to_hugging_face(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(config, tensors) in Hugging Face's names, or in minitune's where Hugging Face has no such model.

        Raises ValueError for a model with adapters in it, and for a copy without its output.
        """
        self.require_head()
        return super().to_hugging_face()
