"""Labelled grey images, and the IDX format in which MNIST and its like are published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np


@dataclass(frozen=True, repr=False)
class ImageSplit:
    """Images (N, H, W) uint8, 0 to 255, and one label each: indices (N,) int64 into `Dataset.labels`.

    Raises ValueError for images of another shape or dtype and when images and labels differ in number.

    >>> split = ImageSplit(np.zeros((3, 28, 28), np.uint8), np.array([7, 2, 1]))
    >>> split, split.subset([2, 0]).labels.tolist()
    (ImageSplit(3 images of 28 x 28, labelled), [1, 7])
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.images.ndim != 3 or self.images.dtype != np.uint8:
            raise ValueError(f"ImageSplit: images must be (N, H, W) uint8, got {self.images.shape} {self.images.dtype}. "
                             "Were they scaled or flattened already?")
        if self.labels.shape != (len(self.images),):
            raise ValueError(f"ImageSplit: expected one label for each image, got {len(self.images)} images and labels "
                             f"{self.labels.shape}. Were both cut or shuffled by the same indices?")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        height, width = self.images.shape[1:]
        return f"ImageSplit({len(self):,} images of {height} x {width}, labelled)"

    def subset(self, indices: Iterable[int]) -> ImageSplit:
        """The rows at `indices`, in that order, as a new split."""
        rows = np.fromiter(indices, np.int64)
        return ImageSplit(self.images[rows], self.labels[rows])

    def content(self) -> Iterator[bytes]:
        """All that makes this split what it is, as bytes: what `Dataset.fingerprint` is made of."""
        yield repr(self.images.shape).encode() + self.images.tobytes()
        yield self.labels.astype("<i8").tobytes()


def idx_array(content: bytes, dimensions: int, name: str) -> np.ndarray:
    """The uint8 array that an IDX file holds; `name` is what errors call it.

    The header is two zero bytes, the type (8 is uint8), the number of dimensions, and each dimension as a big-endian
    32-bit integer; the values follow in row-major order. Source: http://yann.lecun.com/exdb/mnist/

    Raises ValueError for another type or number of dimensions, and when the header promises more or fewer values.

    >>> idx_array(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]), 1, "labels").tolist()
    [7, 2, 1]
    """
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < header:
        raise ValueError(f"load: {name}: expected an IDX file of uint8 in {dimensions} dimensions, which begins with "
                         f"{bytes([0, 0, 8, dimensions]).hex(' ')} and {dimensions} sizes, got {content[:header].hex(' ')!r}.")
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
    if len(content) - header != prod(shape):
        raise ValueError(f"load: {name}: the header promises {tuple(shape)}, {prod(shape):,} values, but "
                         f"{len(content) - header:,} follow. Was a copy cut off? Fetch it again.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
