"""Llama: a decoder-only transformer with rotary positions, RMSNorm, SwiGLU and keys shared by groups of heads; no biases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, pi, sqrt
from typing import Any

import numpy as np

from .. import ops
from ..backend import Array
from ..data import Batch
from ..formats import llama
from ..nn import Attention, Embedding, Linear, Module, RMSNorm, recompute
from ..nn.cache import KVCache
from ..tensor import Tensor
from .backbone import check_length
from .config import Groups, check_heads, check_sizes
from .language_model import LanguageModel

Rotate = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a Llama: V tokens, at most `block_size` positions, layers, heads, C = n_embd channels.

    `n_kv_head` key and value heads (None: as many as heads), `n_inner` channels inside the MLP (None: 8/3 n_embd, rounded up to
    a multiple of 8, so that its three matrices are as large as the usual two), `head_size` channels a head (None: C / H).
    `rope_scaling` is None, or as in a config.json: {"rope_type": "linear", "factor": ...}, or "llama3" with its four numbers.
    `tied` makes the output matrix the token embedding.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    n_kv_head: int | None = None
    n_inner: int | None = None
    head_size: int | None = None
    rope_base: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    eps: float = 1e-6
    tied: bool = False

    def __post_init__(self) -> None:
        check_sizes(self)
        check_heads(self)
        D = self.head_size or self.n_embd // self.n_head
        if D % 2:
            raise ValueError(f"LlamaConfig: a head's channels are rotated in pairs, got {D} a head. Give n_embd and n_head "
                             "with an even quotient, or an even head_size")
        rope_frequencies(self)                  # raises for a scaling that is not known


def rope_frequencies(config: LlamaConfig) -> np.ndarray:
    """(D/2,) radians by which a position turns each pair of channels: base^(-2 i / D), scaled for longer texts where asked.

    "linear" divides all by a factor (Chen et al. 2023, Extending context window of large language models via positional
    interpolation, equation 4); "llama3" only those that turn less than `low_freq_factor` times in the original length, and with
    a straight line between that and `high_freq_factor` turns (Llama 3.1's configuration).
    """
    D = config.head_size or config.n_embd // config.n_head
    frequencies = config.rope_base ** (-np.arange(0, D, 2) / D)             # (D/2,)
    scaling = config.rope_scaling or {"rope_type": "default"}
    numbers = [value for key, value in scaling.items() if "type" not in key] if isinstance(scaling, dict) else [None]
    if not all(isinstance(value, (int, float)) and 0 < value < inf for value in numbers):
        raise ValueError("LlamaConfig: rope_scaling must be None or as in a config.json, {'rope_type': 'linear', 'factor': "
                         f"2.0}}, all numbers above 0, got {scaling!r}")
    kind = scaling.get("rope_type", scaling.get("type"))
    try:
        if kind == "linear":
            return frequencies / scaling["factor"]
        if kind == "llama3":
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            if not low < high:
                raise ValueError("LlamaConfig: rope_scaling needs low_freq_factor below high_freq_factor, got "
                                 f"{low} and {high}")
            turns = scaling["original_max_position_embeddings"] * frequencies / (2 * pi)
            kept = np.clip((turns - low) / (high - low), 0, 1)              # 1: as it is, 0: divided
            return frequencies * (kept + (1 - kept) / scaling["factor"])
    except KeyError as missing:
        raise ValueError(f"LlamaConfig: rope_scaling of type {kind!r} needs {missing}, got {sorted(scaling)}") from None
    if kind != "default":
        raise ValueError(f"LlamaConfig: rope_scaling must be None or of type 'linear' or 'llama3', got {kind!r}")
    return frequencies


class SwiGLU(Module):
    """down(swiglu(gate(x), up(x))), the MLP of Llama. Source: Shazeer 2020, GLU variants improve transformer, equation 6."""

    def __init__(self, channels: int, hidden: int, output_std: float = 0.02) -> None:
        self.gate, self.up = (Linear(channels, hidden, bias=False) for _ in range(2))
        self.down = Linear(hidden, channels, bias=False, std=output_std)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., C) -> (..., C)"""
        return self.down(ops.swiglu(self.gate(x), self.up(x)), residual)


class LlamaBlock(Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LlamaConfig) -> None:
        C, output_std = config.n_embd, 0.02 / sqrt(2 * config.n_layer)
        self.attention_norm = RMSNorm(C, config.eps)
        self.attention = Attention(C, config.n_head, config.n_kv_head, bias=False, head_size=config.head_size,
                                   output_std=output_std)
        self.mlp_norm = RMSNorm(C, config.eps)
        self.mlp = SwiGLU(C, config.n_inner or -(-C // 3) * 8, output_std)

    def forward(self, x: Tensor, first: Array, last: Array, rotate: Rotate, cache: KVCache | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C)"""
        x = self.attention(self.attention_norm(x), first, last, x, cache, rotate)
        return self.mlp(self.mlp_norm(x), residual=x)


class Llama(LanguageModel):
    """Predicts each next token from those before it.

    Source: Touvron et al. 2023, LLaMA: open and efficient foundation language models, section 2.2; grouped keys as in Llama 2.
    """

    family = llama.FAMILY

    def __init__(self, config: LlamaConfig) -> None:
        self.config, self.frequencies = config, rope_frequencies(config)
        self.token_embedding = Embedding(config.vocab_size, config.n_embd)
        self.blocks = [LlamaBlock(config) for _ in range(config.n_layer)]
        self.norm = RMSNorm(config.n_embd, config.eps)
        self.lm_head = None if config.tied else Linear(config.n_embd, config.vocab_size, bias=False)

    def features(self, batch: Batch, cache: KVCache | None = None) -> Tensor:
        """What the model makes of every token, before any head: (B, T, C). With a cache, the batch goes on where it ends."""
        check_length(self, batch)

        def rotate(a: Tensor) -> Tensor:                                                # (B, T, heads, D)
            return ops.rope(a, batch.positions, self.frequencies)

        x = self.token_embedding(batch.ids)                                             # (B, T, C)
        for block in self.blocks:                                                       # (B, T, C) each
            if self.recompute and cache is None:
                x = recompute(block, x, batch.first, batch.last, rotate)
            else:
                x = block(x, batch.first, batch.last, rotate, cache)
        return self.norm(x)

    def layer_groups(self) -> Groups:
        """(name, modules) from the input to the output: what is unfrozen step by step."""
        blocks: Groups = [(f"blocks.{i}", [block]) for i, block in enumerate(self.blocks)]
        blocks[-1][1].extend([self.norm, self.lm_head] if self.lm_head else [self.norm])
        return [("embeddings", [self.token_embedding]), *blocks]
