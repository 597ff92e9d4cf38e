"""Prefix tuning: in every layer, keys and values that stand for no token and are learned; the model is frozen."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..backend import Array, array_module
from ..devices import device_of, to_device
from ..nn import Attention, KVCache, Module, normal
from ..tensor import Tensor
from .virtual_tokens import VirtualTokens, begin, check_can_begin


class PrefixAttention(Attention):
    """Attention whose every position sees P learned keys and values before the row's own: `prefix_key`, `prefix_value`
    (P, kv_heads * head_size). They are not rotated.

    It takes the parts of the attention it is made of, under the same names.
    """

    def __init__(self, attention: Attention, length: int, std: float) -> None:
        vars(self).update(vars(attention))
        shape, weight = (length, attention.kv_heads * attention.head_size), next(attention.key.parameters())
        self.prefix_key, self.prefix_value = (normal(shape, std) for _ in range(2))
        for p in self.prefix_key, self.prefix_value:
            p.data = to_device(p.data.astype(np.promote_types(p.dtype, weight.dtype)), device_of(weight.data))

    def forward(self, x: Tensor, first: Array, last: Array, residual: Tensor | None = None, cache: KVCache | None = None,
                rotate: Any = None) -> Tensor:
        """As `Attention.forward`; the intervals count the prefix: position t's last key is last[b, t] of P + T, or P + S."""
        return super().forward(x, first, last, residual, _Prefix(self, cache), rotate)

    @property
    def base(self) -> Attention:
        """The attention without the prefix, of the same parts."""
        plain = Attention.__new__(Attention)
        vars(plain).update({name: part for name, part in vars(self).items() if not name.startswith("prefix_")})
        return plain

    def merged(self) -> Module:
        """Raises ValueError: no weights without the prefix compute this."""
        raise ValueError("merge: a prefix is keys and values of no token, which no weights hold. Keep it in the model; LoRA "
                         "and IA3 can be merged")


class _Prefix(KVCache):
    """The learned keys and values of one layer, and then those of its tokens, from a cache where there is one."""

    def __init__(self, attention: PrefixAttention, cache: KVCache | None) -> None:
        self.attention, self.cache = attention, cache

    def append(self, layer: Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.cache is not None:
            k, v = self.cache.append(layer, k, v)
        return self._before(self.attention.prefix_key, k), self._before(self.attention.prefix_value, v)

    def _before(self, prefix: Tensor, a: Tensor) -> Tensor:
        B, _, H, D = a.shape                                                # (B, S, H, D) -> (B, P + S, H, D)
        rows = array_module(a.data).zeros((B, 1, 1, 1), a.dtype)
        return ops.concat([ops.cast(prefix, a.dtype).reshape(1, -1, H, D) + rows, a], axis=1)


class Prefixed(VirtualTokens):
    """A backbone with a prefix: intervals begin at its first key, and positions count from its end."""

    def features(self, batch: Any, *cache: Any) -> Tensor:
        """What the model makes of every token, before any head: (B, T, C).

        Raises ValueError for rows that are padded on the left, or hold several documents, or are too long.
        """
        host, P = batch.on_host, self.virtual_tokens
        if (host.first[host.valid] != 0).any():
            raise ValueError("PrefixConfig: a prefix stands at the beginning of a row, and tokens of this batch do not see "
                             "from there. Give one document a row, padded on the right, as ExampleSet(..., pack=False) does, "
                             "and generate from prompts of one length, or one by one")
        self.check_room(batch)
        longer = copy(batch)
        longer.positions = batch.positions + P
        longer.last = array_module(batch.last).where(batch.valid, batch.last + P, batch.last)
        return self.read(longer, *cache)


@dataclass(frozen=True)
class PrefixConfig:
    """Freezes the backbone and gives every layer `length` learned keys and values, which each token sees before its row's.

    2 L P C numbers for P = `length` (with grouped heads 2 L P kv_heads D). They start normal with deviation `std` and are
    trained as they are, as in PEFT without projection; the paper trains them through an MLP, which it then drops. Positions
    count from P on, so `config.block_size` becomes P less. A batch has one document a row, padded on the right; else it raises
    ValueError. Generation works with a KV cache, for prompts of one length. New heads train in full.
    Raises ValueError for a model that is no transformer of texts or has a prefix, soft prompt or adapted layers.
    Source: Li and Liang 2021, Prefix-tuning: optimizing continuous prompts for generation, section 4.2.

    >>> from minitune import models, tune
    >>> gpt = models.GPT(models.GPTConfig(vocab_size=10, block_size=8, n_layer=3, n_head=2, n_embd=16))
    >>> tune.apply(gpt, PrefixConfig(length=5)).trainable == 2 * 3 * 5 * 16, gpt.config.block_size
    (True, 3)
    """

    length: int = 10
    std: float = 0.02

    def install(self, model: Module) -> None:
        backbone = check_can_begin(model, self.length, "PrefixConfig")
        layers = [PrefixAttention(block.attention, self.length, self.std) for block in backbone.blocks]
        begin(backbone, Prefixed, self.length)
        for block, layer in zip(backbone.blocks, layers, strict=True):
            block.attention = layer
