"""Images as batches: scaled, and in training changed at random in ways that keep their labels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..backend import mode, random
from ..devices import moved
from ..ops import IGNORE
from .batch import fingerprint
from .images import ImageSplit


@dataclass(slots=True)
class ImageBatch:
    """What an image model reads: images (B, C, H, W) float32, about -1 to 1, and targets (B,), IGNORE where there is none."""

    images: np.ndarray
    targets: np.ndarray
    host: ImageBatch | None = field(default=None, init=False, repr=False, compare=False)    # on a GPU, what it was made from

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: str) -> ImageBatch:
        """The batch with its arrays on "cpu" or "cuda". Raises RuntimeError where there is no GPU."""
        return moved(self, device)

    @property
    def valid(self) -> None:
        """None: every position of an image counts, there is no padding."""
        return None

    @property
    def tokens(self) -> int:
        """How many images there are: what the trainer's speed counts."""
        return len(self.images)

    @property
    def supervised(self) -> int:
        """How many targets count."""
        return int((self.on_host.targets != IGNORE).sum())

    @property
    def on_host(self) -> ImageBatch:
        """The batch where its numbers can be looked at without waiting for a GPU."""
        return self if self.host is None else self.host

    @classmethod
    def of_images(cls, images: np.ndarray) -> ImageBatch:
        """Images (B, H, W) or (B, C, H, W), uint8 from 0 to 255, or floats that are scaled already, without targets.

        Raises ValueError where they are of another shape or kind.
        """
        images = np.asarray(images)
        if images.ndim not in (3, 4) or images.dtype.kind != "f" and images.dtype != np.uint8:
            raise ValueError(f"ImageBatch: images must be (B, H, W) or (B, C, H, W), uint8 or floats, got {images.shape} "
                             f"{images.dtype}. For one image write image[None]")
        images = images[:, None] if images.ndim == 3 else images
        images = scaled(images) if images.dtype == np.uint8 else images.astype(np.float32, copy=False)
        return cls(images, np.full(len(images), IGNORE))


def scaled(images: np.ndarray) -> np.ndarray:
    """Pixels from 0 to 255 as float32 from -1 to 1, as Hugging Face's ViT expects them."""
    return images.astype(np.float32) / np.float32(127.5) - 1


@dataclass(frozen=True)
class Augmentation:
    """Random changes that leave an image's label as it is, new for each image of each batch.

    `shift`: by up to so many pixels in each direction, 0 where nothing comes in. `flip`: half of the images are mirrored left
    to right; not for digits or letters. Raises ValueError for a negative shift.
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"Augmentation: shift is a number of pixels, at least 0, got {self.shift}")

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """images (B, H, W) uint8 -> (B, H, W) uint8, by random numbers of the stream "augment"."""
        (B, H, W), n = images.shape, self.shift
        # four numbers an image, all that one step of the generator makes: the same ones however batches are cut
        numbers = random.uniform("augment", 4 * B).reshape(B, 4)
        if n:
            row, column = (numbers[:, :2].T * (2 * n + 1)).astype(int)      # (B,) each: where a window begins
            padded = np.pad(images, [(0, 0), (n, n), (n, n)])
            images = np.lib.stride_tricks.sliding_window_view(padded, (H, W), (1, 2))[np.arange(B), row, column]
        if self.flip:
            images = np.where((numbers[:, 2] < 0.5)[:, None, None], images[:, :, ::-1], images)
        return images


class ImageSet:
    """The images of a split as batches, pixels from -1 to 1; with `augment`, changed anew each time they are trained on.

    Batches made inside `no_grad()`, as evaluation and prediction make them, are never augmented. The random numbers are
    counted: seed and checkpoint bring the same images back.

    >>> split = ImageSplit(np.full((2, 28, 28), 255, np.uint8), np.array([7, 2]))
    >>> batch = ImageSet(split, Augmentation(shift=2)).batch(np.array([1, 0]))
    >>> batch.images.shape, batch.images.dtype.name, batch.targets.tolist()
    ((2, 1, 28, 28), 'float32', [2, 7])
    """

    def __init__(self, split: ImageSplit, augment: Augmentation | None = None) -> None:
        self.images, self.labels, self.augment = split.images, split.labels, augment

    def __len__(self) -> int:
        return len(self.images)

    @property
    def fingerprint(self) -> str:
        """A digest of all pixels and labels, and of the augmentation."""
        return fingerprint(self.images, self.labels, np.array(repr(self.augment)))

    def batch(self, rows: np.ndarray) -> ImageBatch:
        """The images of these numbers as a batch."""
        images = self.images[rows]
        if self.augment and mode.recording:
            images = self.augment(images)
        return ImageBatch(scaled(images)[:, None], self.labels[rows])
