"""ViT: a transformer encoder that reads an image as a row of patches, as BERT reads a text as a row of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import ops
from ..backend import array_module
from ..data import ImageBatch
from ..formats import vit
from ..nn import Conv2d, Dropout, LayerNorm, TransformerBlock, normal, recompute
from ..tensor import Tensor
from .config import Groups, check_heads, check_sizes
from .image_backbone import ImageBackbone


@dataclass(frozen=True)
class ViTConfig:
    """The sizes of a ViT: square images of `image_size` pixels cut into patches of `patch_size`, layers, heads, C = n_embd.

    `n_inner` channels inside the MLP (None: 4 n_embd).
    """

    image_size: int
    patch_size: int
    n_layer: int
    n_head: int
    n_embd: int
    n_channels: int = 3
    n_inner: int | None = None
    dropout: float = 0.0
    eps: float = 1e-12

    def __post_init__(self) -> None:
        check_sizes(self)
        check_heads(self)
        if self.image_size % self.patch_size:
            raise ValueError(f"ViTConfig: patch_size must divide image_size, got {self.patch_size} and {self.image_size}")

    @property
    def patches(self) -> int:
        """How many patches an image has."""
        return (self.image_size // self.patch_size) ** 2


class ViT(ImageBackbone):
    """Every patch becomes a vector, every vector sees all others; the first, a learned class token, stands for the image.

    Source: Dosovitskiy et al. 2021, An image is worth 16 x 16 words, equations 1 to 4.
    """

    family = vit.FAMILY

    def __init__(self, config: ViTConfig) -> None:
        self.config, C = config, config.n_embd
        self.class_token = normal((1, 1, C), 0.02)
        self.position_embedding = normal((1, 1 + config.patches, C), 0.02)
        self.patch_embedding = Conv2d(config.n_channels, C, config.patch_size, config.patch_size, std=0.02)    # no relu follows
        self.dropout = Dropout(config.dropout)
        self.blocks = [TransformerBlock(C, config.n_head, config.n_layer, config.dropout, config.n_inner, config.eps, "none")
                       for _ in range(config.n_layer)]
        self.norm = LayerNorm(C, config.eps)

    def features(self, batch: ImageBatch) -> Tensor:
        """What the model makes of the class token and of every patch, before any head: (B, 1 + patches, C)."""
        self.check_images(batch.images)
        B, T, C = len(batch), 1 + self.config.patches, self.config.n_embd
        x = self.patch_embedding(Tensor(batch.images))                      # (B, C, h, w)
        x = x.reshape(B, C, -1).transpose(0, 2, 1)                          # (B, patches, C)
        xp = array_module(x.data)
        class_token = ops.cast(self.class_token[xp.zeros(B, int), 0], x.dtype)
        x = ops.concat([class_token[:, None], x], axis=1)                   # (B, T, C)
        x = self.dropout(x + self.position_embedding)
        first, last = xp.zeros((B, T), np.int32), xp.full((B, T), T - 1, np.int32)      # everything sees everything
        for block in self.blocks:                                           # (B, T, C) each
            x = recompute(block, x, first, last) if self.recompute else block(x, first, last)
        return self.norm(x)

    def layer_groups(self) -> Groups:
        """(name, modules) from the input to the output: what is unfrozen step by step."""
        blocks: Groups = [(f"blocks.{i}", [block]) for i, block in enumerate(self.blocks)]
        blocks[-1][1].append(self.norm)
        return [("embeddings", [self.class_token, self.position_embedding, self.patch_embedding]), *blocks]
