"""LanguageModel: what the models that predict each next token have in common."""

from __future__ import annotations

from copy import copy
from typing import Any

from .. import ops
from ..backend import Array
from ..data import Batch
from ..nn import Embedding, Module
from ..nn.cache import KVCache
from ..tensor import Tensor
from .config import Groups
from .generation import Generative
from .pretrained import Pretrained


class LanguageModel(Module, Pretrained, Generative):
    """Predicts each next token from those before it. A model adds `features`, its parts, and their layer groups.

    The output matrix is the token embedding once more (Press and Wolf 2017, Using the output embedding to improve language
    models) unless `output_weight` says otherwise.

    With `model.recompute = True` training keeps each block's input alone and runs the block again in the backward pass: less
    memory, about a third more time, the same gradients (`nn.recompute`).
    """

    config: Any
    token_embedding: Embedding
    recompute: bool = False
    causal = True               # a token sees those before it: sets are made for that
    pooling = "last"            # what a classifier on this model takes unless told otherwise
    head_bias = False           # whether its head has a bias, as in Hugging Face's folders

    def forward(self, ids: Array) -> Tensor:
        """Integer ids (B, T), or a Batch -> logits (B, T, V)"""
        return self.head(self.features(self.batch_of(ids)))

    def batch_of(self, ids: Array) -> Batch:
        """Integer ids (B, T) as a Batch; a Batch as it is."""
        return ids if isinstance(ids, Batch) else Batch.of_ids(ids)

    def features(self, batch: Batch, cache: KVCache | None = None) -> Tensor:
        """What the model makes of every token, before any head: (B, T, C). With a cache, the batch goes on where it ends."""
        raise NotImplementedError(f"{type(self).__name__} has no features")

    def output_weight(self) -> Tensor:
        """The (V, C) matrix that gives the logits."""
        return self.token_embedding.effective_weight()

    def output_bias(self) -> Tensor | None:
        """What is added to the logits: (V,), or None."""
        return None

    def head(self, x: Tensor) -> Tensor:
        """Features (..., C) -> logits (..., V)"""
        return ops.linear(x, self.output_weight(), self.output_bias())

    def without_head(self, pooler: bool = False) -> Any:
        """This model, with the same parts, without those that only give logits: what another head is put on.

        `pooler` says whether that head reads a pooler, which these models have not.
        """
        return copy(self)

    def check(self, dataset: Any) -> None:
        """Raises ValueError where a set holds a token that this model has not."""
        check_ids(self, dataset)

    def language_loss(self, x: Tensor, targets: Array) -> Tensor:
        """The summed cross-entropy in nats of `targets` (B, T), predicted from the features x (B, T, C)."""
        return ops.linear_cross_entropy(x, self.output_weight(), targets, self.output_bias())

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, int, float]]:
        """{term: (sum of losses, count, weight)}: the cross-entropy of each next token, in nats."""
        return {"language_model": (self.language_loss(self.features(batch), batch.targets), batch.supervised, 1.0)}

    def counts(self, batch: Batch) -> dict[str, int]:
        """{term: count} of `loss`, known before any forward pass."""
        return {"language_model": batch.supervised}

    def measure(self, batch: Batch) -> dict[str, tuple[float, int]]:
        """{name: (sum, count)} of what evaluation reports."""
        return {"loss": (self.language_loss(self.features(batch), batch.targets).item(), batch.supervised)}

    def layer_groups(self) -> Groups:
        """(name, modules) from the input to the output: what is unfrozen step by step."""
        raise NotImplementedError(f"{type(self).__name__} has no layer groups")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config}, {self.num_parameters():,} parameters)"


def check_ids(model: Any, dataset: Any) -> None:
    """Raises ValueError where a set holds a token that `model` has not."""
    largest = getattr(dataset, "largest_id", 0)
    if largest >= model.config.vocab_size:
        raise ValueError(f"{type(model).__name__}: token ids must be 0 .. {model.config.vocab_size - 1}, the set holds "
                         f"{largest}. Was it made with another tokenizer?")


def check_length(model: Any, batch: Batch) -> None:
    """Raises ValueError where a row is longer than `model` reads."""
    if batch.ids.shape[1] > model.config.block_size:
        name = type(model).__name__
        raise ValueError(f"{name}: this model reads at most block_size = {model.config.block_size} tokens a row, got "
                         f"{batch.ids.shape[1]}. Cut the texts, or build the model with a larger block_size")
