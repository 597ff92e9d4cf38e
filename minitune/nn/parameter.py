"""Parameter, and how its first numbers are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

from ..backend import random
from ..tensor import Tensor

_shapes_only = False


class Parameter(Tensor):
    """A Tensor that a Module owns and an optimizer may move; `requires_grad` says whether it is trained.

    `decays` says whether weight decay applies unless the optimizer is asked otherwise: to weights of linear layers it
    does, to biases, norms and embeddings it does not.
    """

    __slots__ = ("decays",)

    def __init__(self, data: Any, decays: bool = False) -> None:
        super().__init__(data, requires_grad=True)
        self.decays = decays

    def parameters(self) -> Iterator[Parameter]:
        """Itself: a layer group may hold a parameter beside modules."""
        yield self


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside this block new parameters have a shape but no memory: to count and plan models of any size.

    >>> with shapes_only():
    ...     big = normal((50257, 12288), 0.02)
    >>> big.size, big.data.base.nbytes
    (617558016, 4)
    """
    global _shapes_only
    before, _shapes_only = _shapes_only, True
    try:
        yield
    finally:
        _shapes_only = before


def filled(shape: tuple[int, ...], value: float, decays: bool = False) -> Parameter:
    """A Parameter of one number throughout."""
    return _parameter(shape, decays, lambda count: np.full(count, value))


def normal(shape: tuple[int, ...], std: float, decays: bool = False) -> Parameter:
    """A Parameter drawn from a normal distribution with mean 0, from the stream "init"."""
    return _parameter(shape, decays, lambda count: std * random.normal("init", count))


def uniform(shape: tuple[int, ...], bound: float, decays: bool = False) -> Parameter:
    """A Parameter drawn uniformly from -bound .. bound, from the stream "init"."""
    return _parameter(shape, decays, lambda count: bound * (2 * random.uniform("init", count) - 1))


def _parameter(shape: tuple[int, ...], decays: bool, numbers: Callable[[int], np.ndarray]) -> Parameter:
    if _shapes_only:                            # one zero, seen as an array of any shape
        return Parameter(np.broadcast_to(np.float32(0), shape), decays)
    return Parameter(numbers(prod(shape)).astype(np.float32).reshape(shape), decays)
