"""Source and Kernel: how a kernel's text is found, compiled, checked against its arguments and started.

A kernel runs on a GPU through CuPy or, for NumPy arrays, on the emulation (`emulation.py`), from the same text with the same
checks. Each file kernels/<stem>.cu is compiled at first use, for bfloat16 and float32 apart; `common.cuh` is put into its text,
since CuPy's own cache of compiled kernels would not see a change in an included file.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...devices import Array, array_module, device_of, is_bfloat16
from . import emulation

PACKAGE = Path(__file__).parents[2]
NUMPY_TYPES: dict[str, Any] = {"f32": np.float32, "i32": np.int32, "i64": np.int64, "u8": np.uint8, "u32": np.uint32,
                               "u64": np.uint64}
NULL = np.uint64(0)     # in place of an array that is None: CuPy's None would stand for no argument at all
REMEMBERED = 256        # kinds of arguments that a kernel remembers

Sizes = tuple[int, ...]


class Parameter(NamedTuple):
    """One parameter of a kernel: `dims` names an array's axes and is None for a number; `optional` arrays may be None."""

    name: str
    kind: str
    dims: tuple[str, ...] | None
    optional: bool


@cache
def folder() -> Path:
    """Where the kernels lie: beside the package in a checkout, inside it when it was installed from a wheel.

    Raises ModuleNotFoundError where they are not there: operations then take their references.
    """
    for place in (PACKAGE / "kernels", PACKAGE.parent / "kernels"):
        if (place / "common.cuh").exists():
            return place
    raise ModuleNotFoundError("minitune: the folder kernels/ is missing", name=__package__)


class Source:
    """One file of kernels and the kernels in it.

    It is compiled for the `dtypes` of activations and for each of the `choices` of sizes, such as D=(32, 64, 128). A text that
    is `given` takes the place of the file's.
    """

    def __init__(self, stem: str, given: str | None = None, dtypes: tuple[str, ...] = ("float32", "bfloat16"),
                 **choices: Sizes) -> None:
        self.stem, self.given, self.dtypes, self.choices = stem, given, dtypes, choices
        self.kernels: dict[str, Kernel] = {}
        self._functions: dict[Any, Any] = {}
        folder()

    def kernel(self, name: str, signature: str) -> Kernel:
        """The kernel of this name. `signature` lists its parameters as `name:type[dims]`, see Kernel."""
        self.kernels[name] = Kernel(self, name, signature)
        return self.kernels[name]

    def text(self, device: str = "cuda") -> str:
        """The file, with what it includes from this folder put into it. Compilers name the files and lines they came from."""
        return _whole(f"{self.stem}.cu", _read(f"{self.stem}.cu") if self.given is None else self.given, device)

    def variants(self) -> list[tuple[str, ...]]:
        """The defines of every form that the file may be compiled in: each dtype of activations with each choice of sizes."""
        both = any(p.kind == "T" for kernel in self.kernels.values() for p in kernel.parameters)
        sizes = [[f"{name}={value}" for value in values] for name, values in sorted(self.choices.items())]
        return [(*(["BF16"] if dtype == "bfloat16" else []), *chosen) for dtype in self.dtypes if both or dtype == "float32"
                for chosen in product(*sizes)]

    def function(self, name: str, like: Array, defines: tuple[str, ...]) -> Any:
        """The compiled kernel of a name, for the device of an array and these defines."""
        place = gpu_of(like)
        if (name, place, defines) not in self._functions:
            if place is None:
                built = emulation.build(self.stem, self.text("cpu"), list(self.kernels.values()), defines)
                self._functions |= {(kernel.name, place, defines): function for kernel, function in built}
            else:
                module = array_module(like).RawModule(code=self.text(), options=tuple(f"-D{name}" for name in defines))
                self._functions |= {(kernel, place, defines): module.get_function(kernel) for kernel in self.kernels}
        return self._functions[name, place, defines]

    def forget(self) -> None:
        """Compiles anew at the next use: for a text that was changed."""
        self._functions.clear()


def _read(name: str) -> str:
    return (folder() / name).read_text(encoding="utf-8")


def _whole(name: str, text: str, device: str) -> str:
    """A file's text with what it includes put into it; the emulation's part is for the CPU alone."""
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate(text.splitlines(), 1):
        included = re.fullmatch(r'#include "(.+)"', line)
        if included and (device == "cpu" or not included[1].startswith("emulate/")):
            lines += [_whole(included[1], _read(included[1]), device), f'#line {number + 1} "{name}"']
        else:
            lines.append("" if line == "#pragma once" else line)
    return "\n".join(lines) + "\n"


class Kernel:
    """A kernel and its signature, for example "x:T[N,C] weight:f32[C] y:T[N,C] N:i32 C:i32 eps:f32".

    T is the dtype of the activations, bfloat16 or float32, the same for all; "?" after an array allows None. Axes of one name
    must agree, and a whole number of an axis' name is filled in from the arrays: callers leave it out. Arrays must be
    contiguous, since a kernel sees an address alone.
    """

    def __init__(self, source: Source, name: str, signature: str) -> None:
        self.source, self.name = source, name
        self.parameters = [_parameter(part) for part in signature.split()]
        axes = {axis for p in self.parameters for axis in p.dims or ()}
        self.filled = {p.name for p in self.parameters if p.dims is None and p.name in axes}
        self.wanted = [p for p in self.parameters if p.name not in self.filled]
        self._places = [i for i, p in enumerate(self.wanted) if p.dims is not None]     # of arrays among the arguments
        self._slots = [i for i, p in enumerate(self.parameters) if p.name not in self.filled]   # of arguments among parameters
        self._numbers = [i for i in self._slots if self.parameters[i].dims is None]
        self._fitting: dict[Any, tuple[list[Any], bool]] = {}

    def __call__(self, grid: int | Sizes, block: int | Sizes, *arguments: Any, shared: int = 0, **defines: int) -> None:
        """Runs the kernel on grid x block threads with `shared` bytes of dynamic shared memory.

        Raises TypeError and ValueError for arguments that do not fit the signature.
        """
        given, half = self._bound(arguments)
        grid, block = _three(grid), _three(block)
        if not prod(grid):                      # nothing to do, which CUDA calls an invalid configuration
            return
        for name, values in self.source.choices.items():
            if defines.get(name) not in values:
                raise ValueError(f"{self.name}: {name} must be one of {', '.join(map(str, values))}, got {defines.get(name)}")
        like = next(arguments[i] for i in self._places if arguments[i] is not None)
        function = self.source.function(self.name, like, _names(half, *defines.items()))
        if device_of(like) == "cpu":
            emulation.run(self, function, grid, block, given, shared)
            return
        if shared:                              # with what a kernel shares besides, it may pass 48 KB, which needs this leave
            function.max_dynamic_shared_size_bytes = shared
        function(grid, block, tuple([NULL if a is None else a for a in given]), shared_mem=shared)

    def _bound(self, arguments: tuple[Any, ...]) -> tuple[list[Any], bool]:
        """All arguments in order, sizes filled in, numbers of the kernel's types; and whether activations are bfloat16."""
        if len(self.wanted) != len(arguments):
            names = ", ".join(p.name for p in self.wanted)
            raise TypeError(f"{self.name}: expected {len(self.wanted)} arguments, {names}, got {len(arguments)}")
        kinds = self._kinds(arguments)
        known = self._fitting.get(kinds)        # arrays of the same kinds that fitted: each step calls as the last one did
        if known is None:
            sizes, half = self._checked(arguments)
            filled = [self._number(p, sizes[p.name]) if p.name in self.filled else None for p in self.parameters]
            if kinds is not None:
                if len(self._fitting) >= REMEMBERED:
                    self._fitting.clear()
                self._fitting[kinds] = filled, half
        else:
            filled, half = known
        given = filled.copy()
        for i, argument in zip(self._slots, arguments, strict=True):
            given[i] = argument
        for i in self._numbers:
            given[i] = self._number(self.parameters[i], given[i])
        return given, half

    def _kinds(self, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """All that the checks of arrays depend on; None where an argument is no array."""
        try:
            return tuple([None if (a := arguments[i]) is None else (a.dtype, a.shape, a.flags.c_contiguous)
                          for i in self._places])
        except AttributeError:
            return None

    def _checked(self, arguments: tuple[Any, ...]) -> tuple[dict[str, int], bool]:
        """The lengths of axes, and whether activations are bfloat16. Raises unless the arrays are what was asked for."""
        sizes: dict[str, int] = {}
        dtype = None
        for p, a in zip(self.wanted, arguments, strict=True):
            if p.dims is not None and not (a is None and p.optional):
                dtype = self._check(p, a, sizes, dtype)
        return sizes, dtype is not None and is_bfloat16(dtype)

    def _number(self, p: Parameter, value: Any) -> Any:
        """The number as the kernel's type."""
        kind, whole = NUMPY_TYPES[p.kind], p.kind != "f32"
        if type(value) is kind:
            return value
        if not isinstance(value, (int, np.integer, np.bool_)) and (whole or not isinstance(value, (float, np.floating))):
            raise TypeError(f"{self.name}: {p.name} must be a {'whole ' if whole else ''}number, got {value!r}")
        try:
            return kind(int(value) if whole else value)
        except OverflowError:
            raise ValueError(f"{self.name}: {p.name} must fit into {p.kind}, got {value}") from None

    def _check(self, p: Parameter, a: Any, sizes: dict[str, int], dtype: Any) -> Any:
        """Raises unless array `a` is what parameter p asks for; returns the dtype of the activations, once it is known."""
        assert p.dims is not None
        if not hasattr(a, "dtype") or not hasattr(a, "shape"):
            raise TypeError(f"{self.name}: {p.name} must be an array, got {type(a).__name__}")
        expected = NUMPY_TYPES[p.kind] if p.kind != "T" else dtype or a.dtype
        if a.dtype != expected or p.kind == "T" and a.dtype != np.float32 and not is_bfloat16(a.dtype):
            wanted = "bfloat16 or float32" if p.kind == "T" and dtype is None else np.dtype(expected).name
            raise TypeError(f"{self.name}: {p.name} must be {wanted}, got {a.dtype}")
        shape = tuple(sizes.setdefault(axis, length) for axis, length in zip(p.dims, a.shape, strict=False))
        if len(p.dims) != a.ndim or a.shape != shape:
            letters = ", ".join(f"{axis} = {sizes[axis]}" if axis in sizes else axis for axis in p.dims)
            raise ValueError(f"{self.name}: {p.name} must be ({letters}), got {a.shape}")
        if not a.flags.c_contiguous:
            raise ValueError(f"{self.name}: {p.name} must be contiguous, its strides are {a.strides}")
        return a.dtype if p.kind == "T" else dtype


def _parameter(text: str) -> Parameter:
    parts = re.fullmatch(r"(\w+):(\w+)(?:\[([\w,]*)\])?(\?)?", text)
    if parts is None or parts[2] not in emulation.C_TYPES or parts[4] and parts[3] is None:
        raise ValueError(f"kernel signature: expected name:type or name:type[dims], got {text!r}")
    dims = None if parts[3] is None else tuple(axis for axis in parts[3].split(",") if axis)
    return Parameter(parts[1], parts[2], dims, bool(parts[4]))


@cache
def _names(half: bool, *defines: tuple[str, int]) -> tuple[str, ...]:
    """What the compiler is told to define."""
    return (*(["BF16"] if half else []), *(f"{name}={value}" for name, value in sorted(defines)))


def _three(sizes: int | Sizes) -> tuple[int, int, int]:
    x, y, z = (*((sizes,) if isinstance(sizes, int) else sizes), 1, 1)[:3]
    return x, y, z


def empty(shape: int | Sizes, dtype: Any, like: Array) -> Array:
    """An array to be written on the device of `like`. The emulation fills it with NaN, so that what is left out shows."""
    array = array_module(like).empty(shape, dtype)
    if device_of(like) == "cpu":
        array.reshape(-1).view(np.uint8)[...] = 0xFF
    return array


def gpu_of(array: Array) -> int | None:
    """The number of the GPU that an array lies on, None on the CPU: what is kept on a device is kept for each of them."""
    return None if device_of(array) == "cpu" else array.device.id


def ceil_div(count: int, by: int) -> int:
    """The number of parts of at most `by` that hold `count`."""
    return -(-count // by)


def rows_of(x: Array) -> Array:
    """x (..., C) as (N, C), contiguous."""
    return array_module(x).ascontiguousarray(x).reshape(prod(x.shape[:-1]), x.shape[-1])


def not_for_a_gpu(*arrays: Array | None) -> str | None:
    """The reason why these are not for a CUDA twin, if one is neither bfloat16 nor float32."""
    for a in arrays:
        if a is not None and a.dtype != np.float32 and not is_bfloat16(a.dtype):
            return f"the CUDA twin takes bfloat16 and float32, got {a.dtype}"
    return None
