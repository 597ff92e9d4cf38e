"""Prompt tuning: a few embeddings that stand for no word are learned and read before every text; the model is frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..backend import Array, array_module, random
from ..data import Batch
from ..nn import Embedding, Module, Parameter
from ..ops import IGNORE
from ..tensor import Tensor
from .virtual_tokens import VirtualTokens, begin, check_can_begin


class PromptEmbedding(Module):
    """The rows of `base` (V, C) for ids below V, and those of `prompt` (P, C) for V .. V + P - 1, which only this file uses."""

    def __init__(self, base: Embedding, ids: np.ndarray) -> None:
        self.base, self.prompt = base, Parameter(base.weight.data[array_module(base.weight.data).asarray(ids)])

    def forward(self, ids: Array) -> Tensor:
        """ids (...) integers -> (..., C)"""
        rows = ids - len(self.base.weight)
        virtual = rows >= 0
        words = self.base(ids * ~virtual)                                   # (..., C)
        prompt = ops.cast(ops.embedding(self.prompt, rows * virtual), self.dtype)
        return words * _mask(~virtual, words) + prompt * _mask(virtual, prompt)

    def effective_weight(self) -> Tensor:
        """The (V, C) table of words, which a tied head multiplies with."""
        return self.base.effective_weight()

    def merged(self) -> Module:
        """Raises ValueError: no table of words holds the prompt."""
        raise ValueError("merge: a soft prompt stands for no token, so no weights hold it. Keep it in the model; LoRA and IA3 "
                         "can be merged")


def _mask(where: Array, like: Tensor) -> Array:
    return where[..., None].astype(like.dtype)


class Prompted(VirtualTokens):
    """A backbone with a soft prompt: it reads P placeholders before every document and leaves their features out."""

    def features(self, batch: Any, *cache: Any) -> Tensor:
        """What the model makes of every token, before any head: (B, T, C). Raises ValueError for rows that are too long."""
        host, P = batch.on_host, self.virtual_tokens
        self.check_room(batch)
        starts = host.valid & (host.positions == 0)
        if cache and cache[0] is not None and not starts.any():             # the prompt is in the cache, before these tokens
            longer = Batch(host.ids, host.positions + P, host.first, np.where(host.valid, host.last + P, host.last), host.ids)
            return self.read(longer.to(self.device, int(longer.last.max(initial=0))), *cache)
        longer, places = with_placeholders(host, P, self.config.vocab_size, self.causal)
        x = self.read(longer.to(self.device), *cache)
        if starts.sum(1).max(initial=0) <= 1:                               # what stands at padding does not matter
            return x[:, x.shape[1] - places.shape[1]:]
        xp = array_module(x.data)
        return x[xp.arange(len(places))[:, None], xp.asarray(places)]

    def new_cache(self, length: int) -> Any:
        """As that of the model, with room for the prompt."""
        return super().new_cache(length + self.virtual_tokens)              # type: ignore[misc]


def with_placeholders(batch: Batch, P: int, V: int, causal: bool) -> tuple[Batch, np.ndarray]:
    """(a batch with ids V .. V + P - 1 before every document, where each token stands in it (B, T)).

    Positions count from the first placeholder, and tokens see the placeholders of their document. Raises ValueError where a
    token does not see its document from the beginning.
    """
    valid, starts = batch.valid, batch.valid & (batch.positions == 0)
    places = np.arange(valid.shape[1]) + P * starts.cumsum(1)               # (B, T)
    rows = np.arange(len(valid))[:, None]
    begins = np.where(valid, batch.first, 0)
    if (valid & (batch.positions[rows, begins] != 0)).any():
        raise ValueError("PromptConfig: a prompt stands before a document's first token, which tokens of this batch do not "
                         "see, or which is missing. Give whole documents, as LanguageModelSet and ExampleSet do")
    shape = len(valid), valid.shape[1] + P * int(starts.sum(1).max(initial=0))
    ids, positions, first, last = np.zeros(shape, int), np.zeros(shape, int), np.ones(shape, int), np.zeros(shape, int)
    ends = places[rows, np.where(valid, batch.last, 0)]
    for array, values in ((ids, batch.ids), (positions, batch.positions + P * valid),
                          (first, np.where(valid, places[rows, begins] - P, 1)), (last, np.where(valid, ends, 0))):
        array[rows, places] = values
    b, t = np.nonzero(starts)
    b, t, at = b[:, None], t[:, None], places[b, t][:, None] - P + np.arange(P)                 # (documents, P)
    ids[b, at], positions[b, at], first[b, at] = V + np.arange(P), np.arange(P), at[:, :1]
    last[b, at] = at if causal else ends[b, t]
    segments = None
    if batch.segments is not None:
        segments = np.zeros(shape, int)
        segments[rows, places] = batch.segments
    return Batch(ids, positions, first, last, np.full(shape, IGNORE), segments), places


@dataclass(frozen=True)
class PromptConfig:
    """Freezes the backbone and learns a soft prompt of P = `length` rows, P C numbers, that it reads before every document.

    The prompt starts as embeddings of the text `init_text`, again and again where it is short, or of random tokens. Its
    positions have no features and no targets; the text's positions count from P on, so `config.block_size` becomes P less.
    Packed rows, padding on either side and generation with a KV cache work: a prompt stands before each document of a row. New
    heads train in full.
    Raises ValueError for a model that is no transformer of texts or has a prefix, soft prompt or adapted layers, and for
    `init_text` without a tokenizer.
    Source: Lester, Al-Rfou and Constant 2021, The power of scale for parameter-efficient prompt tuning, sections 2 and 2.1.

    >>> from minitune import models, tune
    >>> gpt = models.GPT(models.GPTConfig(vocab_size=10, block_size=8, n_layer=3, n_head=2, n_embd=16))
    >>> tune.apply(gpt, PromptConfig(length=5)).trainable == 5 * 16, gpt.config.block_size
    (True, 3)
    """

    length: int = 20
    init_text: str | None = None

    def install(self, model: Module) -> None:
        backbone = check_can_begin(model, self.length, "PromptConfig")
        embedding = PromptEmbedding(backbone.token_embedding, self._first_ids(model, backbone))
        begin(backbone, Prompted, self.length)
        backbone.token_embedding = embedding.train(embedding.base.training)

    def _first_ids(self, model: Any, backbone: Any) -> np.ndarray:
        """The tokens (P,) whose embeddings the prompt starts as."""
        if self.init_text is None:
            return (random.uniform("init", self.length) * backbone.config.vocab_size).astype(int)
        tokenizer = getattr(model, "tokenizer", None)
        ids = [] if tokenizer is None else tokenizer.encode(self.init_text)
        if not ids:
            raise ValueError("PromptConfig: init_text needs a model with a tokenizer, and at least one token, got "
                             f"{self.init_text!r:.60}. Set model.tokenizer, or leave init_text out")
        return np.resize(ids, self.length)
