"""The transformer block of GPT-2: attention and a two-layer perceptron, each after a norm and beside a residual path.

Letters: B batch, T time, C channels, H heads, D = C / H.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from .. import ops
from ..backend import Array, device_of, mode, twins_in
from ..tensor import Tensor
from .cache import KVCache
from .layers import Dropout, LayerNorm, Linear
from .module import Module


class Attention(Module):
    """Self-attention with H heads; query, key, value and output are Linear layers of their own."""

    def __init__(self, channels: int, heads: int, output_std: float = 0.02) -> None:
        if channels % heads:
            raise ValueError(f"Attention: heads must divide channels, got {channels} channels and {heads} heads")
        self.heads = heads
        self.query, self.key, self.value = (Linear(channels, channels) for _ in range(3))
        self.output = Linear(channels, channels, std=output_std)

    def forward(self, x: Tensor, first: Array, last: Array, residual: Tensor | None = None,
                cache: KVCache | None = None) -> Tensor:
        """x (B, T, C); position t of row b sees first[b, t] .. last[b, t] -> (B, T, C)

        With a cache, x follows the tokens it holds, and the intervals count from the first of these.
        """
        B, T, C = x.shape
        q, k, v = (layer(x).reshape(B, T, self.heads, -1) for layer in (self.query, self.key, self.value))  # (B, T, H, D)
        if cache is not None:
            k, v = cache.append(self, k, v)                                 # (B, S, H, D)
        mixed = ops.attention(q, k, v, first, last)                         # (B, T, H, D)
        return self.output(mixed.reshape(B, T, C), residual)                # (B, T, C)


class MLP(Module):
    """down(gelu(up(x))), with four times as many channels between."""

    def __init__(self, channels: int, output_std: float = 0.02) -> None:
        self.up = Linear(channels, 4 * channels)
        self.down = Linear(4 * channels, channels, std=output_std)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., C) -> (..., C)"""
        return self.down(ops.gelu(self.up(x)), residual)


class TransformerBlock(Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): a pre-norm block.

    The layers that write to the residual path start smaller by sqrt(2 n_layer), since as many of them add up there.
    Source: Radford et al. 2019, Language models are unsupervised multitask learners, section 2.3.
    """

    def __init__(self, channels: int, heads: int, n_layer: int, dropout: float = 0.0) -> None:
        output_std = 0.02 / sqrt(2 * n_layer)
        self.attention_norm = LayerNorm(channels)
        self.attention = Attention(channels, heads, output_std)
        self.mlp_norm = LayerNorm(channels)
        self.mlp = MLP(channels, output_std)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, first: Array, last: Array, cache: KVCache | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C)"""
        if cache is not None and x.shape[:2] == (1, 1):
            y = self._next_token(x, first, last, cache)
            if y is not None:
                return y
        if self.dropout.p and self.training:            # a dropped branch is not yet added to the residual path
            x = x + self.dropout(self.attention(self.attention_norm(x), first, last, cache=cache))
            return x + self.dropout(self.mlp(self.mlp_norm(x)))
        x = self.attention(self.attention_norm(x), first, last, x, cache)
        return self.mlp(self.mlp_norm(x), residual=x)

    def _next_token(self, x: Tensor, first: Array, last: Array, cache: KVCache) -> Tensor | None:
        """One token of one row by the compiled twin; None where there is none for layers or settings like these."""
        part, norms = self.attention, [self.attention_norm, self.mlp_norm]
        layers: list[Any] = [*norms, part.query, part.key, part.value, part.output, self.mlp.up, self.mlp.down]
        kinds = [Attention, MLP, *2 * [LayerNorm], *6 * [Linear]]
        plain = all(type(layer) is kind and "forward" not in vars(layer)
                    for layer, kind in zip([part, self.mlp, *layers], kinds, strict=True))
        if not plain or not mode.kernels or mode.recording or mode.checking or self.dropout.p and self.training:
            return None
        twin = twins_in(device_of(x.data), "transformer")
        weights = [(layer.weight.data, layer.bias.data) for layer in layers if layer.bias is not None]
        if twin is None or len(weights) < len(layers) or not twin.next_token_fits(x.data, weights):
            return None
        at, keys, values = cache.room(part, (1, 1, part.heads, x.shape[2] // part.heads), x.data)
        if not 0 <= first[0, 0] <= last[0, 0] <= at:            # nothing is seen, or what is not there: the layers tell
            return None
        y = twin.next_token(x.data, weights, [norm.eps for norm in norms], keys, values, at, first, last)
        cache.grow(part, 1)
        return Tensor(y)
