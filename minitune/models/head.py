"""Head: what goes on a backbone's features; and the poolings, from the features of all positions to those of a row.

A backbone is any model with `features`. Letters: B rows, T positions, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops
from ..backend import Array, array_module
from ..nn import Linear, Module, Parameter
from ..tensor import Tensor
from .config import Groups
from .pretrained import Pretrained


def pool_first(x: Tensor, valid: Array) -> Tensor:
    """The first token of each row. (B, T, C) -> (B, C)"""
    return x[array_module(valid).arange(len(valid)), valid.argmax(1)]


def pool_last(x: Tensor, valid: Array) -> Tensor:
    """The last token of each row: a causal model has read the whole text there. (B, T, C) -> (B, C)"""
    return x[array_module(valid).arange(len(valid)), valid.shape[1] - 1 - valid[:, ::-1].argmax(1)]


def pool_mean(x: Tensor, valid: Array) -> Tensor:
    """The mean over the tokens of each row. (B, T, C) -> (B, C)"""
    share = valid / array_module(valid).maximum(valid.sum(1, keepdims=True), 1)     # (B, T): 0 in a row without tokens
    return (x * share.astype(np.promote_types(x.dtype, np.float32))[..., None]).sum(1)


def pool_max(x: Tensor, valid: Array) -> Tensor:
    """The largest value of each channel over the tokens of each row. (B, T, C) -> (B, C)"""
    counts = valid | ~valid.any(1, keepdims=True)                           # (B, T): a row without tokens stays finite
    hidden = array_module(valid).where(counts, 0, -3e38).astype(x.dtype)    # (B, T): padding never wins, and stays finite
    return (x + hidden[..., None]).max(1)


def pool_concat(x: Tensor, valid: Array) -> Tensor:
    """Last, mean and max side by side. (B, T, C) -> (B, 3 C). Source: Howard and Ruder 2018, section 3.3."""
    return ops.concat([pool(x, valid) for pool in (pool_last, pool_mean, pool_max)], axis=1)


POOLINGS: dict[str, Callable[[Tensor, Array], Tensor]] = {
    "first": pool_first, "last": pool_last, "mean": pool_mean, "max": pool_max, "concat": pool_concat}


class Head(Module, Pretrained):
    """A model made of a backbone and a layer on its features. Of a model that has a head already, the backbone is taken.

    `head.backbone` is a copy that has the same Parameters as the model it was made of: both train the same weights, and what is
    frozen in one is so in the other. Everything else belongs to one of them alone: which layers there are (LoRA, `set_part`),
    training mode, `recompute`, `config`. Parts that only another head reads are left out; `pooler` and `output` keep them.
    """

    backbone: Any

    def __init__(self, backbone: Any, pooler: bool = False, output: bool = False) -> None:
        backbone = backbone.backbone if isinstance(backbone, Head) else backbone
        if not hasattr(backbone, "features"):
            raise TypeError(f"{type(self).__name__}: the backbone must be a model with features, such as a GPT, got "
                            f"{type(backbone).__name__}")
        self.backbone = backbone.without_head(pooler, output)
        self.dtype = self.backbone.dtype        # layers of the head go where the backbone is
        self.tokenizer = getattr(backbone, "tokenizer", None)

    def features(self, batch: Any) -> Tensor:
        """The backbone's features (B, T, C)."""
        return self.backbone.features(batch)

    def batch_of(self, inputs: Any) -> Any:
        """What the backbone reads, ids or images, as a batch; a batch as it is."""
        return self.backbone.batch_of(inputs)

    @property
    def causal(self) -> bool:
        """Whether a token sees those before it alone: sets are made for that."""
        return self.backbone.causal

    @property
    def recompute(self) -> bool:
        """The backbone's `recompute`: less memory, more time."""
        return self.backbone.recompute

    @recompute.setter
    def recompute(self, on: bool) -> None:
        self.backbone.recompute = on

    def check(self, dataset: Any) -> None:
        """Raises ValueError where a set does not fit the backbone."""
        if hasattr(self.backbone, "check"):
            self.backbone.check(dataset)

    def layer_groups(self) -> Groups:
        """The backbone's groups, then what is on it."""
        own = [part for name, part in vars(self).items() if isinstance(part, (Module, Parameter)) and name != "backbone"]
        return [*self.backbone.layer_groups(), ("head", own)]


class PooledHead(Head):
    """A linear layer on the pooled features of each row: (B, T, C) -> (B, C), or (B, 3 C) for "concat" -> (B, outputs).

    Where K rows make a text, as in a `LongTextSet`, they are pooled as one: (B, T, C) -> (B / K, K T, C) first.
    `pooling` "first", "last", "mean", "max" and "concat" take what they say over the tokens of a row, "cls" the first token
    through BERT's pooler; None is what fits the backbone. Raises ValueError for an unknown one.
    """

    def __init__(self, backbone: Any, outputs: int, pooling: str | None = None, bias: bool | None = None,
                 output: bool = False) -> None:
        own = backbone.backbone if isinstance(backbone, Head) else backbone
        pooling = pooling or getattr(own, "pooling", "last")
        names = [*POOLINGS, *["cls"] * (getattr(own, "pooler", None) is not None)]
        if pooling not in names:
            raise ValueError(f"{type(self).__name__}: pooling must be one of {', '.join(names)}, got {pooling!r}" + (
                '. "cls" reads a pooler, and this model has none or was made without it: take "first", or the BERT itself, '
                "built with BERTConfig(..., pooler=True)" if pooling == "cls" else ""))
        super().__init__(backbone, pooling == "cls", output)
        self.pooling = pooling
        self.head = Linear(own.config.n_embd * (3 if pooling == "concat" else 1), outputs,
                           own.head_bias if bias is None else bias).to(self.backbone.device, self.dtype)

    def forward(self, inputs: Any) -> Tensor:
        """Integer ids (B, T), images (B, channels, H, W), or a batch -> logits (B, outputs)"""
        batch = self.batch_of(inputs)
        return self.logits(self.features(batch), batch)

    def logits(self, x: Tensor, batch: Any) -> Tensor:
        """The features x (B, T, C) of a batch -> logits (B, outputs), or (B / K, outputs) where K chunks make a text"""
        # an image has no padding, and no chunks
        valid = array_module(x.data).ones(x.shape[:2], bool) if batch.valid is None else batch.valid
        if (K := getattr(batch, "chunks", 1)) > 1:
            x, valid = x.reshape(-1, K * x.shape[1], x.shape[2]), valid.reshape(-1, K * x.shape[1])
        return self.head((self.backbone.pool if self.pooling == "cls" else POOLINGS[self.pooling])(x, valid))


def checked_labels(caller: str, labels: Any) -> tuple[str, ...]:
    """The names of labels; raises TypeError for what is no list, ValueError for fewer than two, or the same twice."""
    if isinstance(labels, str) or not np.iterable(labels):
        raise TypeError(f"{caller}: labels must be a list of names, such as ['no', 'yes'], or range(3) for numbers, got "
                        f"{labels!r}")
    labels = tuple(map(str, labels))
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise ValueError(f"{caller}: expected at least two different labels, got {str(list(labels)):.200}")
    return labels


def check_targets(caller: str, dataset: Any, labels: tuple[str, ...]) -> None:
    """Raises ValueError where a set has a label that is none of these."""
    rows = [np.ravel(row) for row in getattr(dataset, "labels", ())]
    given = np.concatenate(rows or [np.zeros(0, int)])
    wrong = np.flatnonzero(((given < 0) | (given >= len(labels))) & (given != ops.IGNORE))
    if len(wrong):
        at = np.unique(np.repeat(np.arange(len(rows)), [len(row) for row in rows])[wrong])      # the rows that hold them
        raise ValueError(f"{caller}: labels must be 0 .. {len(labels) - 1} for {', '.join(labels[:6])}, got "
                         f"{given[wrong[0]]} at row {at[0]} ({len(at)} such rows). Was the set made with other "
                         "label names?")
