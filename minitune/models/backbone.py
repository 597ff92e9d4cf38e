"""Backbone: what the models below the heads have in common, and what they check before they read.

Letters: B rows, T positions, C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data import Batch
from ..devices import to_device
from ..nn import Module
from ..tensor import Tensor
from .config import Groups
from .pretrained import Pretrained


class Backbone(Module, Pretrained):
    """A model that makes features of what it reads; what these are used for is the matter of a head on it.

    A backbone sets `config`, whose `n_embd` is the channels of its features, and its parts, names its `family` on disk, and
    defines `features` and `layer_groups`. The rest is here, for models of texts.

    With `model.recompute = True` training keeps each block's input alone and runs the block again in the backward pass: less
    memory, about a third more time, the same gradients (`nn.recompute`).
    """

    config: Any
    recompute: bool = False
    causal = False              # whether a token sees those before it alone: sets are made for that
    recurrent = False           # whether that is so by a state carried from token to token, whatever a batch says
    pooling = "first"           # what a classifier on this model takes unless told otherwise
    head_bias = True            # whether its layer has a bias, as in Hugging Face's folders

    def features(self, batch: Any) -> Tensor:
        """What the model makes of every position, before any head: (B, T, C)."""
        raise NotImplementedError(f"{type(self).__name__} has no features")

    def layer_groups(self) -> Groups:
        """(name, modules) from the input to the output: what is unfrozen step by step."""
        raise NotImplementedError(f"{type(self).__name__} has no layer groups")

    def forward(self, inputs: Any) -> Tensor:
        """Integer ids (B, T), images (B, channels, H, W), or a batch -> features (B, T, C)"""
        return self.features(self.batch_of(inputs))

    def batch_of(self, inputs: Any) -> Any:
        """Integer ids (B, T) as a Batch in which a token sees what this model shows it, or a Batch; on the model's device."""
        return text_batch(inputs, self.causal).to(self.device)

    def without_head(self, pooler: bool = False, output: bool = False) -> Any:
        """A copy with the same Parameters, without the parts that heads alone read: what another head is put on.

        `pooler` and `output` say which of these parts that head does read: BERT's pooler, a language model's output.
        """
        return self.sharing_parameters()

    def check(self, dataset: Any) -> None:
        """Raises ValueError where a set was made for another direction of reading, or holds a token that this model has not."""
        check_direction(self, dataset)
        check_ids(self, dataset)

    def loss(self, batch: Any) -> Any:
        """Raises TypeError: what there is to learn a head says."""
        raise TypeError(f"{type(self).__name__}: a backbone has no loss of its own. Put a head on it, as in "
                        "Classifier(model, labels)")

    counts = measure = loss

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config}, {self.num_parameters():,} parameters)"


def text_batch(ids: Any, causal: bool) -> Batch:
    """Integer ids (B, T) as a Batch, a document a row: a token sees those before it, or all of its row. A Batch as it is."""
    if isinstance(ids, Batch):
        return ids
    batch = Batch.of_ids(to_device(ids, "cpu"))
    if not causal:
        batch.last = np.full_like(batch.ids, batch.ids.shape[1] - 1)
    return batch


def check_direction(model: Any, dataset: Any) -> None:
    """Raises ValueError where the tokens of a set do not see what `model` was made to read: the past alone, or both sides."""
    given = getattr(dataset, "causal", model.causal)
    if given != model.causal:
        raise ValueError(f"{type(model).__name__}: expected a set with causal={model.causal}, got one with causal={given}, a "
                         f"{type(dataset).__name__}. Make it with causal=model.causal; to predict next tokens take "
                         "LanguageModelSet, to predict hidden ones MaskedSet")


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
