"""GPT: a decoder-only transformer language model with GPT-2's architecture: learned positions, pre-norm, tied head."""

from __future__ import annotations

from dataclasses import dataclass

from ..data import Batch
from ..formats import gpt2
from ..nn import Dropout, Embedding, LayerNorm, Linear, TransformerBlock, recompute
from ..nn.cache import KVCache
from ..tensor import Tensor
from .backbone import check_length
from .config import Groups, check_heads, check_sizes
from .language_model import LanguageModel


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT: V tokens, at most `block_size` positions, layers, heads, C = n_embd channels.

    `n_inner` channels inside the MLP (None: 4 n_embd). `tied` makes the output matrix the token embedding.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float = 0.0
    n_inner: int | None = None
    eps: float = 1e-5
    tied: bool = True

    def __post_init__(self) -> None:
        check_sizes(self)
        check_heads(self)


class GPT(LanguageModel):
    """Predicts each next token from those before it.

    Source: Radford et al. 2019, Language models are unsupervised multitask learners, section 2.3.
    """

    family = gpt2.FAMILY

    def __init__(self, config: GPTConfig) -> None:
        self.config = config
        self.token_embedding = Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = Embedding(config.block_size, config.n_embd, std=0.01)
        self.dropout = Dropout(config.dropout)
        self.blocks = [TransformerBlock(config.n_embd, config.n_head, config.n_layer, config.dropout, config.n_inner,
                                        config.eps) for _ in range(config.n_layer)]
        self.norm = LayerNorm(config.n_embd, config.eps)
        self.lm_head = None if config.tied else Linear(config.n_embd, config.vocab_size, bias=False)

    def features(self, batch: Batch, cache: KVCache | None = None) -> Tensor:
        """What the model makes of every token, before any head: (B, T, C). With a cache, the batch goes on where it ends."""
        check_length(self, batch)
        x = self.token_embedding(batch.ids) + self.position_embedding(batch.positions)  # (B, T, C)
        x = self.dropout(x)
        for block in self.blocks:                                                       # (B, T, C) each
            if self.recompute and cache is None:
                x = recompute(block, x, batch.first, batch.last)
            else:
                x = block(x, batch.first, batch.last, cache)
        return self.norm(x)

    def layer_groups(self) -> Groups:
        """(name, modules) from the input to the output: what is unfrozen step by step."""
        blocks: Groups = [(f"blocks.{i}", [block]) for i, block in enumerate(self.blocks)]
        blocks[-1][1].extend([self.norm, self.lm_head] if self.lm_head else [self.norm])
        return [("embeddings", [self.token_embedding, self.position_embedding]), *blocks]
