"""GPT: a decoder-only transformer language model with GPT-2's architecture: learned positions, pre-norm, tied head."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .. import ops
from ..backend import Array
from ..data import Batch
from ..formats import gpt2
from ..nn import Dropout, Embedding, LayerNorm, Module, TransformerBlock, recompute
from ..nn.cache import KVCache
from ..tensor import Tensor
from .generation import Generative
from .pretrained import Pretrained


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT: V tokens, at most `block_size` positions, layers, heads, C = n_embd channels."""

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "dropout" and (not isinstance(value, int) or value < 1):
                raise ValueError(f"GPTConfig: {name} must be a positive integer, got {value!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"GPTConfig: dropout must be in [0, 1), got {self.dropout}")


class GPT(Module, Pretrained, Generative):
    """Predicts each next token from those before it.

    With `model.recompute = True` training keeps each block's input alone
    and runs the block again in the backward pass: less memory, about a third more time, the same gradients (`nn.recompute`).
    Source: Radford et al. 2019, Language models are unsupervised multitask learners, section 2.3.
    """

    recompute: bool = False

    def __init__(self, config: GPTConfig) -> None:
        self.config = config
        self.token_embedding = Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = Embedding(config.block_size, config.n_embd, std=0.01)
        self.dropout = Dropout(config.dropout)
        self.blocks = [TransformerBlock(config.n_embd, config.n_head, config.n_layer, config.dropout)
                       for _ in range(config.n_layer)]
        self.norm = LayerNorm(config.n_embd)

    def forward(self, ids: Array) -> Tensor:
        """Integer ids (B, T), or a Batch -> logits (B, T, V)"""
        return self.head(self.features(ids if isinstance(ids, Batch) else Batch.of_ids(ids)))

    def head(self, x: Tensor) -> Tensor:
        """Features (..., C) -> logits (..., V): the embedding once more."""
        return ops.linear(x, self.token_embedding.effective_weight())

    def features(self, batch: Batch, cache: KVCache | None = None) -> Tensor:
        """What the model makes of every token, before any head: (B, T, C). With a cache, the batch goes on where it ends."""
        if batch.ids.shape[1] > self.config.block_size:
            raise ValueError(f"GPT: this model reads at most block_size = {self.config.block_size} tokens a row, "
                             f"got {batch.ids.shape[1]}. Cut the texts, or build the model with a larger block_size")
        x = self.token_embedding(batch.ids) + self.position_embedding(batch.positions)  # (B, T, C)
        x = self.dropout(x)
        for block in self.blocks:
            if self.recompute and cache is None:
                x = recompute(block, x, batch.first, batch.last)
            else:
                x = block(x, batch.first, batch.last, cache)
        return self.norm(x)

    def check(self, dataset: Any) -> None:
        """Raises ValueError where a set holds a token that this model has not."""
        largest = getattr(dataset, "largest_id", 0)
        if largest >= self.config.vocab_size:
            raise ValueError(f"GPT: token ids must be 0 .. {self.config.vocab_size - 1}, the set holds {largest}. Was it made "
                             "with another tokenizer?")

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, int, float]]:
        """{term: (sum of losses, count, weight)}: the cross-entropy of each next token, in nats."""
        x = self.features(batch)
        loss = ops.linear_cross_entropy(x, self.token_embedding.effective_weight(), batch.targets)
        return {"language_model": (loss, batch.supervised, 1.0)}

    def counts(self, batch: Batch) -> dict[str, int]:
        """{term: count} of `loss`, known before any forward pass."""
        return {"language_model": batch.supervised}

    def measure(self, batch: Batch) -> dict[str, tuple[float, int]]:
        """{name: (sum, count)} of what evaluation reports."""
        loss, count, _ = self.loss(batch)["language_model"]
        return {"loss": (loss.item(), count)}

    def layer_groups(self) -> list[tuple[str, list[Module]]]:
        """(name, modules) from the input to the output: what is unfrozen step by step."""
        blocks: list[tuple[str, list[Module]]] = [(f"blocks.{i}", [block]) for i, block in enumerate(self.blocks)]
        blocks[-1][1].append(self.norm)
        return [("embeddings", [self.token_embedding, self.position_embedding]), *blocks]

    def to_hugging_face(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """(config, tensors) in GPT-2's names."""
        return gpt2.config_to_hugging_face(self.config), gpt2.to_hugging_face(self.state_dict(), self.config.n_layer)

    def __repr__(self) -> str:
        return f"GPT({self.config}, {self.num_parameters():,} parameters)"
