"""The transformer block of GPT-2 and ViT: attention and a two-layer perceptron, each after a norm and beside a residual path.

Letters: B batch, T time, C channels, H heads, D = C / H.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

from .. import ops
from ..backend import Array, mode, twins_for
from ..ops.checks import check_int
from ..tensor import Tensor
from .cache import KVCache
from .layers import Dropout, LayerNorm, Linear
from .module import Module


class Attention(Module):
    """Self-attention with H heads; query, key, value and output are Linear layers of their own.

    With fewer `kv_heads` than heads, each key and value is shared by H / kv_heads queries (Ainslie et al. 2023, GQA:
    Training generalized multi-query transformer models from multi-head checkpoints, section 2.2). A head has `head_size`
    channels, channels / heads unless given. Raises ValueError for numbers of heads that do not divide what they share.
    """

    def __init__(self, channels: int, heads: int, kv_heads: int | None = None, bias: bool = True,
                 head_size: int | None = None, output_std: float = 0.02) -> None:
        kv_heads = heads if kv_heads is None else kv_heads
        for name, n in ("channels", channels), ("heads", heads), ("kv_heads", kv_heads):
            check_int("Attention", name, n)
        if head_size is None and channels % heads:
            raise ValueError(f"Attention: heads must divide channels, got {channels} channels and {heads} heads. Give numbers "
                             "with a whole quotient, or head_size")
        if heads % kv_heads:
            raise ValueError(f"Attention: kv_heads must divide heads, as heads / kv_heads of them share each, got {heads} "
                             f"heads and {kv_heads} kv_heads")
        D = channels // heads if head_size is None else head_size
        check_int("Attention", "head_size", D)
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, D
        self.query = Linear(channels, heads * D, bias)
        self.key, self.value = (Linear(channels, kv_heads * D, bias) for _ in range(2))
        self.output = Linear(heads * D, channels, bias, output_std)

    def forward(self, x: Tensor, first: Array, last: Array, residual: Tensor | None = None, cache: KVCache | None = None,
                rotate: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """x (B, T, C); position t of row b sees first[b, t] .. last[b, t] -> (B, T, C)

        With a cache, x follows the tokens it holds, and the intervals count from the first of these. `rotate` puts the
        positions into queries and keys, (B, T, heads, D) each, where the model has no position embedding.
        """
        (B, T, _), H, D = x.shape, self.heads, self.head_size               # written out: -1 says nothing where B or T is 0
        q = self.query(x).reshape(B, T, H, D)
        k, v = (layer(x).reshape(B, T, self.kv_heads, D) for layer in (self.key, self.value))
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        if cache is not None:
            k, v = cache.append(self, k, v)                                 # (B, S, kv_heads, D)
        mixed = ops.attention(q, k, v, first, last)                         # (B, T, H, D)
        return self.output(mixed.reshape(B, T, H * D), residual)            # (B, T, C)


class MLP(Module):
    """down(gelu(up(x))), with `hidden` channels between, four times as many as outside unless told otherwise.

    `approximate` says which gelu: "tanh" (GPT-2) or "none", the exact one (BERT, ViT).
    """

    def __init__(self, channels: int, hidden: int | None = None, approximate: str = "tanh", output_std: float = 0.02) -> None:
        hidden = hidden or 4 * channels
        self.up, self.down = Linear(channels, hidden), Linear(hidden, channels, std=output_std)
        self.approximate = approximate

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., C) -> (..., C)"""
        return self.down(ops.gelu(self.up(x), self.approximate), residual)


class TransformerBlock(Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): a pre-norm block.

    The layers that write to the residual path start smaller by sqrt(2 n_layer), since as many of them add up there.
    Source: Radford et al. 2019, Language models are unsupervised multitask learners, section 2.3.
    """

    def __init__(self, channels: int, heads: int, n_layer: int, dropout: float = 0.0, hidden: int | None = None,
                 eps: float = 1e-5, approximate: str = "tanh") -> None:
        output_std = 0.02 / sqrt(2 * n_layer)
        self.attention_norm = LayerNorm(channels, eps)
        self.attention = Attention(channels, heads, output_std=output_std)
        self.mlp_norm = LayerNorm(channels, eps)
        self.mlp = MLP(channels, hidden, approximate, output_std)
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
        plain = plain and self.mlp.approximate == "tanh"
        if not plain or not mode.kernels or mode.recording or mode.checking or self.dropout.p and self.training:
            return None
        twin = twins_for(x.data, "transformer")
        weights = [(layer.weight.data, layer.bias.data) for layer in layers if layer.bias is not None]
        if twin is None or len(weights) < len(layers) or not twin.next_token_fits(x.data, weights):
            return None
        at, keys, values = cache.room(part, (1, 1, part.heads, part.head_size), x.data)
        if not 0 <= first[0, 0] <= last[0, 0] <= at:            # nothing is seen, or what is not there: the layers tell
            return None
        y = twin.next_token(x.data, weights, [norm.eps for norm in norms], keys, values, at, first, last)
        cache.grow(part, 1)
        return Tensor(y)
