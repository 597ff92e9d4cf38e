"""Shape: an array without its numbers; and the meter that counts its bytes for as long as something refers to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

FLOAT = np.dtype(np.float32)


class Meter:
    """How many bytes of shapes there are now, and were at most; and the work done so far.

    `work` is {(M, N, K) of a matrix product, or the name of a loop: how often, or how many numbers}.
    """

    def __init__(self) -> None:
        self.live = self.peak = 0
        self.work: Counter[Any] = Counter()

    def take(self, nbytes: int) -> None:
        """Counts bytes that are made, or negative ones that are given back."""
        self.live += nbytes
        self.peak = max(self.peak, self.live)

    def beside(self, *nbytes: int) -> None:
        """Counts what an operation takes while it runs, and gives back."""
        self.take(sum(nbytes))
        self.take(-sum(nbytes))


_meters = [Meter()]             # the last one counts


def meter() -> Meter:
    """The meter that counts now."""
    return _meters[-1]


@contextmanager
def counting() -> Iterator[Meter]:
    """A `with` block that has a meter of its own."""
    _meters.append(Meter())
    try:
        yield _meters[-1]
    finally:
        _meters.pop()


class Shape(NDArrayOperatorsMixin):
    """An array of which there is only the shape and the dtype. `base` is the one whose memory a view lies in.

    It takes what the engine and the models ask of an array. `counted` is the meter that counts its bytes; a parameter has none.
    """

    __slots__ = ("shape", "dtype", "base", "counted", "__weakref__")

    def __init__(self, shape: tuple[int, ...], dtype: Any = FLOAT, base: Shape | None = None,
                 counted: Meter | None = None) -> None:
        self.shape, self.dtype, self.base, self.counted = tuple(map(int, shape)), np.dtype(dtype), base, counted
        if counted:
            counted.take(self.nbytes)

    def __del__(self) -> None:
        if self.counted:
            self.counted.take(-self.nbytes)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def view(self, shape: tuple[int, ...]) -> Shape:
        """The same memory in another shape."""
        return Shape(shape, self.dtype, self if self.base is None else self.base)

    def copy(self) -> Shape:
        """A new array of this shape."""
        return made(self.shape, self.dtype)

    def astype(self, dtype: Any, copy: bool = True) -> Shape:
        """A new array of this shape, unless it has the dtype and `copy` is False."""
        return self if not copy and np.dtype(dtype) == self.dtype else made(self.shape, dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **settings: Any) -> Any:
        """An elementwise result, broadcast; what is computed in place is what it was."""
        if method != "__call__":
            return NotImplemented
        meter().work["bytes"] += 3 * self.nbytes
        return out[0] if out else made(np.broadcast_shapes(*(getattr(a, "shape", ()) for a in inputs)), self.dtype)

    def __array_function__(self, function: Callable, types: Any, inputs: Any, settings: Any) -> Any:
        if function in (np.ones_like, np.zeros_like, np.empty_like):
            return made(self.shape, self.dtype)
        if function is np.einsum:
            letters, result = inputs[0].split("->")
            sizes = {letter: n for term, a in zip(letters.split(","), inputs[1:]) for letter, n in zip(term, a.shape)}
            return made(tuple(sizes[letter] for letter in result), settings.get("dtype") or self.dtype)
        return NotImplemented


def made(shape: tuple[int, ...], dtype: Any = FLOAT) -> Shape:
    """A new array's shape, counted."""
    return Shape(shape, dtype, counted=meter())
