"""What a GPU adds to the arrays: devices, and bfloat16 beside float32. Knows no Tensor.

With `model.to("cuda", "bfloat16")` activations are bfloat16, half as large and on tensor cores many times as fast, while
parameters, their gradients, sums and losses stay float32. On a CPU in float32 nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache, wraps
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

Array = Any     # numpy.ndarray or cupy.ndarray: one text of mathematics serves both, which a type checker cannot say


# ---- Devices -----------------------------------------------------------------------------------------------------

def device_of(array: Array) -> str:
    """The device an array lives on: "cpu" or "cuda"."""
    kind: Any = type(array)
    return _device_of(kind)


def array_module(array: Array) -> ModuleType:
    """The module whose functions take this array: numpy, or cupy for an array on a GPU."""
    if device_of(array) == "cpu":
        return np
    import cupy  # the statement takes a tenth of import_module's time where it is loaded already
    return cupy


@cache                                          # a step on a GPU asks thousands of times
def _device_of(kind: Any) -> str:
    return "cuda" if kind.__module__.partition(".")[0] == "cupy" else "cpu"


def to_device(array: Array, device: str) -> Array:
    """The array on "cpu" or "cuda"; it is copied only where it lies on the other.

    Raises ValueError for another name, RuntimeError where there is no GPU that can be used, with the reason.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f'device: expected "cpu" or "cuda", got {device!r}')
    if device_of(array) == device:
        return array
    if device == "cpu":
        return array.get()
    try:
        cupy = import_module("cupy")
    except ImportError as missing:
        raise RuntimeError('device: "cuda" needs CuPy, which is not installed. Install minitune[cuda13] or, for CUDA 12, '
                           'minitune[cuda12]; or use device="cpu"') from missing
    if not cupy.cuda.is_available():
        raise RuntimeError('device: "cuda" was asked for, and CuPy finds no GPU with a driver here. Use device="cpu"')
    return cupy.asarray(array)


def moved(batch: Any, device: str) -> Any:
    """A batch with its arrays on "cpu" or "cuda", integers as int32 there, and what it was made from as its `host`."""
    if device_of(batch.targets) == device:
        return batch
    if batch.host is not None:
        return batch.host
    arrays = {f.name: a for f in fields(batch) if hasattr(a := getattr(batch, f.name), "dtype")}
    arrays = {name: array_module(a).ascontiguousarray(a, np.int32) if a.dtype.kind in "iu" else a for name, a in arrays.items()}
    arrays = {name: to_device(a, device) for name, a in arrays.items()}
    made = replace(batch, **arrays)
    made.host = batch if device == "cuda" else None
    return made


# ---- bfloat16 ----------------------------------------------------------------------------------------------------

def is_bfloat16(dtype: np.dtype) -> bool:
    """Whether a dtype is bfloat16, which NumPy has from ml_dtypes: the upper half of a float32."""
    return dtype.char == "E"


def is_float(dtype: np.dtype) -> bool:
    """Whether numbers of a dtype have gradients: NumPy's floats and bfloat16."""
    return dtype.kind == "f" or is_bfloat16(dtype)


def float_dtype(name: Any) -> np.dtype:
    """The dtype called "float32", "float64" or "bfloat16"; a dtype of these as it is.

    Raises ValueError for another one, ImportError where bfloat16 is asked for and its package is not installed.
    """
    called = getattr(name, "name", None) or getattr(name, "__name__", name)         # np.dtype has the one, np.float32 the other
    if called == "bfloat16":
        try:
            return np.dtype(import_module("ml_dtypes").bfloat16)
        except ImportError as missing:
            raise ImportError("dtype: bfloat16 needs the package ml_dtypes. Install it: pip install ml_dtypes") from missing
    if called not in ("float32", "float64"):
        raise ValueError(f'dtype: expected "float32", "bfloat16" or "float64", got {name!r}')
    return np.dtype(called)


def widened(array: Any) -> Any:
    """A bfloat16 array as float32; anything else as it is."""
    return array.astype(np.float32) if hasattr(array, "dtype") and is_bfloat16(array.dtype) else array


def moves(forward: Callable) -> Callable:
    """Marks the forward function of an operation that only moves numbers, so that bfloat16 stays what it is."""
    forward.moves = True                        # type: ignore[attr-defined]
    return forward


@cache
def in_float32(forward: Callable, backward: Callable) -> tuple[Callable, Callable]:
    """A reference for bfloat16: widened before, computed in float32, rounded after. Sums without axes stay float32.

    Each gradient has the dtype of its input: that of a parameter, which is float32, is never rounded.
    """
    @wraps(forward)
    def forward_in_float32(*arrays: Any, needs: Any, **settings: Any) -> tuple[Array, tuple]:
        half = next(a.dtype for a in arrays if hasattr(a, "dtype") and is_bfloat16(a.dtype))
        result, saved = forward(*map(widened, arrays), needs=needs, **settings)
        dtypes = [a.dtype if hasattr(a, "dtype") else None for a in arrays]
        loses_axes = not result.ndim and any(getattr(a, "ndim", 0) for a in arrays)
        return result if loses_axes else result.astype(half), (dtypes, *saved)

    @wraps(backward)
    def backward_in_float32(grad: Array, dtypes: list[Any], *saved: Any, needs: Any) -> tuple:
        grads = backward(widened(grad), *saved, needs=needs)
        return tuple(None if g is None else g.astype(dtype, copy=False) for g, dtype in zip(grads, dtypes, strict=True))

    return forward_in_float32, backward_in_float32
