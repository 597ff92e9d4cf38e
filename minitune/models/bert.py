"""BERT: a transformer encoder; every token sees its whole text. Post-norm blocks, segments, and a pooled [CLS]."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .. import ops
from ..backend import Array, array_module
from ..data import Batch
from ..formats import bert
from ..nn import MLP, Attention, Dropout, Embedding, LayerNorm, Linear, Module, recompute
from ..tensor import Tensor
from .backbone import Backbone, check_length
from .config import Groups, check_heads, check_sizes
from .head import pool_first


@dataclass(frozen=True)
class BERTConfig:
    """The sizes of a BERT: V tokens, at most `block_size` positions, layers, heads, C = n_embd channels.

    `n_inner` channels inside the MLP (None: 4 n_embd); `n_segments` kinds of text in a row; `pooler` says whether the first
    token's features go through a layer of their own before a head reads them.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    n_inner: int | None = None
    n_segments: int = 2
    dropout: float = 0.0
    eps: float = 1e-12
    pooler: bool = True

    def __post_init__(self) -> None:
        check_sizes(self)
        check_heads(self)


class BERTBlock(Module):
    """norm(x + attention(x)), then norm(x + mlp(x)): a post-norm block."""

    def __init__(self, config: BERTConfig) -> None:
        self.attention = Attention(config.n_embd, config.n_head)
        self.attention_norm = LayerNorm(config.n_embd, config.eps)
        self.mlp = MLP(config.n_embd, config.n_inner, approximate="none")
        self.mlp_norm = LayerNorm(config.n_embd, config.eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, first: Array, last: Array) -> Tensor:
        """x (B, T, C) -> (B, T, C)"""
        if self.dropout.p and self.training:            # a dropped branch is not yet added to the residual path
            x = self.attention_norm(x + self.dropout(self.attention(x, first, last)))
            return self.mlp_norm(x + self.dropout(self.mlp(x)))
        x = self.attention_norm(self.attention(x, first, last, residual=x))
        return self.mlp_norm(self.mlp(x, residual=x))


class BERT(Backbone):
    """Reads a text, or two as segments 0 and 1, in both directions. What it is used for is a head's matter.

    Its rows begin with the start token, [CLS], which heads read for the whole text. Pre-training: `MaskedLanguageModel`.
    Source: Devlin et al. 2019, BERT: pre-training of deep bidirectional transformers, sections 3 and A.
    """

    family = bert.FAMILY

    def __init__(self, config: BERTConfig) -> None:
        self.config = config
        self.token_embedding = Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = Embedding(config.block_size, config.n_embd)
        self.segment_embedding = Embedding(config.n_segments, config.n_embd)
        self.embedding_norm = LayerNorm(config.n_embd, config.eps)
        self.dropout = Dropout(config.dropout)
        self.blocks = [BERTBlock(config) for _ in range(config.n_layer)]
        self.pooler = Linear(config.n_embd, config.n_embd) if config.pooler else None

    @property
    def pooling(self) -> str:                   # type: ignore[override]
        """What a classifier on this model takes unless told otherwise."""
        return "cls" if self.pooler else "first"

    def features(self, batch: Batch) -> Tensor:
        """What the model makes of every token, before any head: (B, T, C)."""
        check_length(self, batch)
        segments = self._segments(batch)
        x = self.token_embedding(batch.ids) + self.position_embedding(batch.positions)  # (B, T, C)
        x = self.embedding_norm(x + self.segment_embedding(segments))
        x = self.dropout(x)
        for block in self.blocks:                                                       # (B, T, C) each
            x = recompute(block, x, batch.first, batch.last) if self.recompute else block(x, batch.first, batch.last)
        return x

    def _segments(self, batch: Batch) -> Array:
        """(B, T), 0 where a batch has none."""
        if batch.segments is None:
            return array_module(batch.ids).zeros_like(batch.ids)
        segments, count = batch.on_host.segments, self.config.n_segments
        if segments is not None and segments.size and not 0 <= segments.min() <= segments.max() < count:
            raise ValueError(f"BERT: segments must be 0 .. {count - 1}, as n_segments is {count}, got {segments.min()} .. "
                             f"{segments.max()}")
        return batch.segments

    def pool(self, x: Tensor, valid: Array | None = None) -> Tensor:
        """tanh of a linear layer on the features of each row's first token that is valid: (B, T, C) -> (B, C)"""
        if self.pooler is None:
            raise ValueError("BERT: this model has no pooler. Take another pooling: \"first\", \"mean\" or \"max\"")
        return ops.tanh(self.pooler(x[:, 0] if valid is None else pool_first(x, valid)))

    def without_head(self, pooler: bool = False, output: bool = False) -> BERT:
        """A copy with the same Parameters; without the pooler where a head does not read it."""
        bare = self.sharing_parameters()
        if not pooler:
            bare.config, bare.pooler = replace(self.config, pooler=False), None
        return bare

    def layer_groups(self) -> Groups:
        """(name, modules) from the input to the output: what is unfrozen step by step."""
        blocks: Groups = [(f"blocks.{i}", [block]) for i, block in enumerate(self.blocks)]
        if self.pooler:
            blocks[-1][1].append(self.pooler)
        embeddings = [self.token_embedding, self.position_embedding, self.segment_embedding, self.embedding_norm]
        return [("embeddings", embeddings), *blocks]
