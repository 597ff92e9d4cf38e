"""ImageBackbone: what the models of images have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data import ImageBatch
from ..devices import to_device
from ..tensor import no_grad
from .backbone import Backbone


class ImageBackbone(Backbone):
    """A model that makes features of images. Its `config` has `n_channels` and `image_size`, square images' side in pixels."""

    def batch_of(self, inputs: Any) -> ImageBatch:
        """Images (B, channels, H, W) as a batch, or a batch; on the model's device."""
        return (inputs if isinstance(inputs, ImageBatch) else ImageBatch.of_images(to_device(inputs, "cpu"))).to(self.device)

    @no_grad()                                  # looking at a set augments nothing
    def check(self, dataset: Any) -> None:
        """Raises ValueError where a set holds no images, or images of another size."""
        batch = dataset.batch(np.arange(1))
        if not isinstance(batch, ImageBatch):
            raise ValueError(f"{type(self).__name__}: expected a set of images, as in data.ImageSet(split), got "
                             f"{type(dataset).__name__}")
        self.check_images(batch.images)

    def check_images(self, images: np.ndarray) -> None:
        """Raises ValueError where images (B, C, H, W) are not of the size that this model reads."""
        expected = self.config.n_channels, self.config.image_size, self.config.image_size
        if images.shape[1:] != expected:
            raise ValueError(f"{type(self).__name__}: expected images (B, channels, H, W) = (B, "
                             f"{', '.join(map(str, expected))}), got {images.shape}. Scale them, or build the model with "
                             "another image_size or n_channels")
