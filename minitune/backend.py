"""Arrays and devices, the table of twins, the one matrix product, counter-based random numbers. Knows no Tensor.

Everything that differs between NumPy and CuPy, and between a plain and a compiled operation, is decided here, so that
the mathematics in `ops/` is written once.
"""

from __future__ import annotations

import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from .cores import multiply
from .devices import Array as Array
from .devices import array_module as array_module
from .devices import device_of, in_float32, is_bfloat16

# ---- Arrays ------------------------------------------------------------------------------------------------------

def as_array(data: Any) -> Array:
    """An array: arrays keep their dtype; Python numbers and lists become float32, int64 or bool.

    Raises TypeError for what is not numeric.
    """
    if type(data) is np.ndarray:
        array = data
    elif hasattr(data, "dtype") and hasattr(data, "shape"):
        array = data if hasattr(data, "ndim") and not isinstance(data, np.generic) else np.asarray(data)
    else:
        array = np.asarray(data)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
    if array.dtype.kind not in "fiub" and not is_bfloat16(array.dtype):
        raise TypeError(f"Tensor: expected numbers, got dtype {array.dtype}. Is the list ragged, or made of text?")
    return array


def matmul(a: Array, b: Array) -> Array:
    """a @ b: the one entry for matrix products, on a CPU shared out between cores. a (..., M, K), b (..., K, N) -> (..., M, N)

    A stack of matrices times one matrix becomes a single large product, which BLAS runs several times faster.
    """
    if b.ndim == 2 and a.ndim > 2:
        return matmul(a.reshape(-1, a.shape[-1]), b).reshape(*a.shape[:-1], b.shape[1])
    alike = a.shape[:-2] == b.shape[:-2] and a.dtype == b.dtype and a.dtype.kind == "f"
    if device_of(a) == "cuda" or a.ndim < 2 or b.ndim < 2 or not alike:
        return a @ b
    return multiply(a, b)


# ---- Twins: faster versions of operations, found by name ---------------------------------------------------------

class KernelFallback(UserWarning):
    """A compiled twin exists for an operation but cannot take these inputs; the reference ran instead."""


class Twin(NamedTuple):
    """What computes an operation: its reference, or the twin of one device."""

    forward: Callable
    backward: Callable
    unsupported: Callable | None = None         # the reason why a twin cannot take these inputs, "" by rule, or None


class _Mode(threading.local):
    recording = True                            # False inside no_grad
    kernels = True                              # False inside kernels(False)
    checking = False                            # True inside detect_anomaly
    emulated = False                            # True inside emulated_gpu


mode = _Mode()
_told: set[tuple[str, str]] = set()             # the fallbacks warned about, so that each is told once


@contextmanager
def kernels(on: bool) -> Iterator[None]:
    """Switches compiled twins on or off inside a `with` block: `with mt.kernels(False): ...` runs the references."""
    before, mode.kernels = mode.kernels, on
    try:
        yield
    finally:
        mode.kernels = before


@contextmanager
def emulated_gpu() -> Iterator[None]:
    """Inside a `with` block NumPy arrays take the CUDA twins, whose kernels then run on the CPU, thread by thread.

    It shows what a GPU would compute, thousands of times slower; g++ compiles the kernels at their first use.
    """
    before, mode.emulated = mode.emulated, True
    try:
        yield
    finally:
        mode.emulated = before


def twins_for(array: Array, stem: str) -> ModuleType | None:
    """The file of twins that computes with this array; None where there is none."""
    return twins_in("cuda" if mode.emulated else device_of(array), stem)


@cache
def twins_in(device: str, stem: str) -> ModuleType | None:
    """The file twins/<device>/<stem>.py; None where it or its compiler is not there."""
    place = f"{__package__}.twins.{device}.{stem}"
    try:
        return import_module(place)
    except ImportError as missing:
        absent = missing.name and (place.startswith(missing.name) or missing.name in ("numba", "llvmlite"))
        if isinstance(missing, ModuleNotFoundError) and not absent:
            raise                               # a mistake in the twin's own file
        if not absent:                          # numba is there and refuses, most often the version of NumPy
            if ("twins", str(missing)) not in _told:
                _told.add(("twins", str(missing)))
                warnings.warn(f"{stem}: its compiled twin cannot be loaded ({missing}); the slower reference runs instead, and "
                              "so do all others that this is true of", KernelFallback, stacklevel=6)
        return None


@cache
def twin(device: str, stem: str, name: str) -> Twin | None:
    """The twin of operation `name` in twins/<device>/<stem>.py; None where there is none."""
    module = twins_in(device, stem)
    if not hasattr(module, f"{name}_forward"):
        return None
    return Twin(*(getattr(module, f"{name}_{part}") for part in ("forward", "backward", "unsupported")))


def choose(forward: Callable, backward: Callable, arrays: list[Array], settings: dict[str, Any]) -> Twin:
    """The device's twin if it takes these inputs, else the reference; float64 always takes the reference.

    bfloat16 has twins on a GPU alone; a reference computes it in float32, unless it only moves numbers.
    """
    given = [a for a in arrays if hasattr(a, "dtype")]
    chars = [a.dtype.char for a in given]
    device = "cuda" if mode.emulated else device_of(given[0])
    half = "E" in chars
    plain = not half or hasattr(forward, "moves") and "f" not in chars
    reference = Twin(*(forward, backward) if plain else in_float32(forward, backward))
    if not mode.kernels or "d" in chars or half and device == "cpu":
        return reference
    fast = twin(device, *_place_of(forward))
    if fast is None or fast.unsupported is None:
        return reference
    reason = fast.unsupported(*arrays, **settings)
    if reason is None:
        return fast
    name = _place_of(forward)[1]
    if reason and (name, reason) not in _told:                  # "" says that the reference is the better one here
        _told.add((name, reason))
        warnings.warn(f"{name}: {reason}; the slower reference runs instead", KernelFallback, stacklevel=4)
    return reference


@cache
def _place_of(forward: Callable) -> tuple[str, str]:
    """(file, operation): ("elementwise", "gelu") of gelu_forward."""
    return forward.__module__.rpartition(".")[2], forward.__name__.removesuffix("_forward")


# ---- Random numbers: Philox4x32-10, so that NumPy, numba and CUDA give the same bits -------------------------------

STREAMS = {"init": 0, "dropout": 1, "order": 2, "sample": 3, "mask": 4, "augment": 5}


def philox(seed: int, stream: int, counter: int, count: int) -> np.ndarray:
    """`count` random uint32, a function of its arguments alone: ten rounds of Philox4x32.

    Block i of four numbers encrypts the 128-bit counter (counter + i, stream) with the 64-bit key `seed`.
    Source: Salmon, Moraes, Dror and Shaw 2011, Parallel random numbers: as easy as 1, 2, 3, section 3.3.

    >>> [hex(int(word)) for word in philox(0, 0, 0, 4)]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    blocks = -(-count // 4)
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    position = np.uint64(counter) + np.arange(blocks, dtype=np.uint64)
    x0, x1 = position & low, position >> shift
    x2, x3 = (np.full(blocks, word, np.uint64) for word in (stream & 0xFFFFFFFF, stream >> 32))
    key0, key1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        product0, product1 = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1, x2, x3 = ((product1 >> shift) ^ x1 ^ np.uint64(key0), product1 & low,
                          (product0 >> shift) ^ x3 ^ np.uint64(key1), product0 & low)
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([x0, x1, x2, x3], -1).astype(np.uint32).reshape(-1)[:count]


class Random:
    """Where every stream of random numbers stands: a seed and a counter for each. A checkpoint stores just these."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.counters: defaultdict[str, int] = defaultdict(int)

    def reserve(self, stream: str, count: int) -> tuple[int, int, int]:
        """Takes `count` numbers from a stream and returns the (seed, stream, counter) that makes them, any time."""
        start = self.counters[stream]
        self.counters[stream] += -(-count // 4)
        return self.seed, STREAMS[stream], start

    def uniform(self, stream: str, count: int) -> np.ndarray:
        """`count` float64 numbers in [0, 1), multiples of 2^-24, so that float32 holds them exactly."""
        return unit_interval(philox(*self.reserve(stream, count), count))

    def normal(self, stream: str, count: int) -> np.ndarray:
        """`count` float64 numbers from the standard normal distribution.

        Source: Box and Muller 1958, A note on the generation of random normal deviates.
        """
        u = self.uniform(stream, 2 * count)
        radius = np.sqrt(-2 * np.log(1 - u[:count]))                        # 1 - u lies in (0, 1]: its logarithm is finite
        return radius * np.cos(2 * np.pi * u[count:])

    def permutation(self, stream: str, count: int) -> np.ndarray:
        """The numbers 0 .. count - 1 in random order."""
        return np.argsort(philox(*self.reserve(stream, 2 * count), 2 * count).view(np.uint64), kind="stable")


def unit_interval(bits: np.ndarray) -> np.ndarray:
    """uint32 -> float64 in [0, 1) with 24 bits."""
    return (bits >> np.uint32(8)) * 2.0**-24


random = Random()


def seed(number: int) -> None:
    """Sets every random stream of minitune: weights, dropout, the order of batches, sampling.

    Raises ValueError where `number` is not an integer from 0 to 2^64 - 1.
    """
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or not 0 <= number < 2**64:
        raise ValueError(f"seed: expected an integer from 0 to 2**64 - 1, got {number!r}")
    random.seed = int(number)
    random.counters.clear()
