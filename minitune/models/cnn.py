"""CNN: a convolutional network for small images. Blocks of two convolutions, each block at half the size of the one before."""

from __future__ import annotations

from dataclasses import dataclass

from .. import ops
from ..data import ImageBatch
from ..formats.own import OwnFamily
from ..nn import Conv2d, Dropout, Module, recompute
from ..tensor import Tensor
from .config import Groups, check_sizes
from .image_backbone import ImageBackbone


@dataclass(frozen=True)
class CNNConfig:
    """The sizes of a CNN: square images of `image_size` pixels, `n_channels` colours, a block for each of `widths` channels.

    `dropout` drops elements after each block.
    """

    image_size: int
    n_channels: int = 1
    widths: tuple[int, ...] = (32, 64, 128)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self)
        if not self.widths or not all(isinstance(width, int) and width > 0 for width in self.widths):
            raise ValueError(f"CNNConfig: widths must be positive integers, one for each block, got {self.widths!r}")
        if self.image_size >> len(self.widths) < 1:
            raise ValueError(f"CNNConfig: {len(self.widths)} blocks halve an image of {self.image_size} x {self.image_size} to "
                             "nothing. Give fewer widths")

    @property
    def n_embd(self) -> int:
        """The channels of the features."""
        return self.widths[-1]


class CNNBlock(Module):
    """pool(relu(conv(relu(conv(x))))): two 3 x 3 convolutions see 5 x 5 pixels, then the largest of each 2 x 2 remains."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        self.first, self.second = Conv2d(inputs, outputs, 3, padding=1), Conv2d(outputs, outputs, 3, padding=1)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, F, H // 2, W // 2)"""
        x = ops.relu(self.first(x))                                         # (B, F, H, W)
        x = ops.relu(self.second(x))                                        # (B, F, H, W)
        return self.dropout(ops.max_pool2d(x, 2))                           # (B, F, H // 2, W // 2)


class CNN(ImageBackbone):
    """Reads an image through ever larger windows: edges first, then parts, then things. For classes put a `Classifier` on it.

    Its largest number over all places says whether a channel's thing is anywhere in the image: the pooling "max".
    Source: Simonyan and Zisserman 2015, Very deep convolutional networks for large-scale image recognition, section 2, without
    their linear layers; Oquab et al. 2015, Is object localization for free?, section 3, on the pooling.
    """

    family = OwnFamily("cnn")
    pooling = "max"

    def __init__(self, config: CNNConfig) -> None:
        self.config = config
        widths = [config.n_channels, *config.widths]
        self.blocks = [CNNBlock(*pair, config.dropout) for pair in zip(widths, widths[1:])]

    def features(self, batch: ImageBatch) -> Tensor:
        """What the model makes of every place of the image, before any head: (B, h w, C)."""
        self.check_images(batch.images)
        x = Tensor(batch.images)                                            # (B, channels, H, W)
        for block in self.blocks:                                           # (B, C, h, w), half as high and wide each
            x = recompute(block, x) if self.recompute else block(x)
        B, C, h, w = x.shape
        return x.reshape(B, C, h * w).transpose(0, 2, 1)                    # (B, h w, C)

    def layer_groups(self) -> Groups:
        """(name, modules) from the input to the output: what is unfrozen step by step."""
        return [(f"blocks.{i}", [block]) for i, block in enumerate(self.blocks)]
