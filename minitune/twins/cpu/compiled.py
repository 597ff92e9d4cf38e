"""How the CPU twins are compiled and shared out between cores, and what several of them compute."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numba.core import event

from ...backend import Array
from ...cores import share

# a division by zero gives infinity as in NumPy: the check that raises would keep a loop from being vectorised;
# and every freedom that keeps NaN and infinity as they are: a loss that went wrong must show it
FREEDOM: dict[str, Any] = {"fastmath": {"nsz", "arcp", "contract", "afn", "reassoc"}, "error_model": "numpy"}
LEAST = 1 << 14         # elements that take a core longer than waking it


def compiled(function: Callable) -> Callable:
    """The function as machine code, which numba makes at the first call and keeps in a file for the next process.

    It runs without the interpreter's lock, so that each core can run it on a part. What it calls in this folder is compiled
    into it, so kept files older than any file here are dropped.
    """
    try:
        machine = njit(nogil=True, cache=True, **FREEDOM)(function)
    except RuntimeError:                        # no folder that can be written to: compiled in every process anew
        return njit(nogil=True, **FREEDOM)(function)
    if hasattr(machine, "stats"):               # else the user switched numba off
        _drop_older(Path(machine.stats.cache_path))
    return machine


@cache
def _drop_older(folder: Path) -> None:
    """numba looks at the changes of the one file that holds a function."""
    newest = max(file.stat().st_mtime for file in Path(__file__).parent.glob("*.py"))
    for kept in folder.glob("*.nbi"):
        with suppress(OSError):                 # another process drops it too, or it is not ours
            if kept.stat().st_mtime < newest:
                kept.unlink()


class _Tell(event.Listener):
    """Says once a process that it compiles. What is kept is loaded without a word."""

    told = False

    def on_start(self, compiling: event.Event) -> None:
        if not self.told and (compiling.data["dispatcher"].py_func.__module__ or "").startswith(f"{__package__}."):
            self.told = True
            print("minitune: compiles its loops for this processor, which takes about half a minute, once", file=sys.stderr)

    def on_end(self, compiling: event.Event) -> None:
        pass


event.register("numba:compile", _Tell())
inlined = njit(inline="always", **FREEDOM)


def by_rows(loop: Callable, arrays: tuple[Array, ...], *rest: Any) -> None:
    """Calls loop(*parts, *rest) on every core, each with its own rows of all `arrays`."""
    rows, elements = len(arrays[0]), arrays[0].size
    if elements < 2 * LEAST:
        loop(*arrays, *rest)
        return
    share(lambda start, stop: loop(*(a[start:stop] for a in arrays), *rest), rows, LEAST * rows // elements)


def rows_of(x: Array) -> Array:
    """x (..., C) as (N, C), contiguous: compiled loops are made for one layout."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


def not_float32(*arrays: Array | None) -> str | None:
    """The reason why these are not for a CPU twin, if one is not float32."""
    for a in arrays:
        if a is not None and (a.dtype.char != "f" or not a.dtype.isnative):
            return f"the CPU twin takes float32, got {a.dtype}"
    return None


@inlined
def exponential(x):
    """e^x for x up to 88, relative error below 4e-7: 2^n e^r with n = round(x / ln 2), |r| <= ln(2) / 2, e^r by its series.

    Below -87.7 it is 0: the bits of 2^-127 are those of 0. The comparison lets NaN through.
    """
    x = np.float32(-88) if x < np.float32(-88) else x
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)     # ln 2 in two parts: n times the first is exact
    series = np.float32(1 / 720) + r * np.float32(1 / 5040)
    series = np.float32(1 / 120) + r * series
    series = np.float32(1 / 24) + r * series
    series = np.float32(1 / 6) + r * series
    series = np.float32(0.5) + r * series
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)     # the bits of 2^n
    return (np.float32(1) + r + r * r * series) * power


@inlined
def sigmoid(x):
    """1 / (1 + e^-x), from the exponential of a number that is not positive, which cannot overflow. NaN goes through."""
    e = exponential(-abs(x))
    return (e if x < 0 else np.float32(1)) / (np.float32(1) + e)


@inlined
def one_over_root(x):
    """1 / sqrt(x), 0 of infinity and infinity of 0: float32's fast estimate would make NaN of both, float64 has none."""
    return np.float32(1 / np.sqrt(np.float64(x)))


@njit(fastmath={"nnan", "nsz"}, error_model="numpy")
def largest(row):
    """The largest number of a row. NaN may be left out: the freedom to do so is what lets the loop use vectors, and whoever
    subtracts the largest from a row meets its NaN there."""
    top = np.float32(-np.inf)
    for j in range(row.size):
        top = max(top, row[j])
    return top
