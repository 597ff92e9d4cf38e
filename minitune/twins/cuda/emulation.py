"""The kernels without a GPU: the same text, compiled by g++ and run thread by thread (kernels/emulate/cuda_cpu.h)."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

FLAGS = ["-std=c++17", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-fno-strict-aliasing", "-Wall", "-Wno-unused-function",
         "-Wno-unknown-pragmas"]
KEPT = 30 * 24 * 3600                           # seconds that a library stays in the cache unused
ORDERS = {"forwards": 0, "backwards": 1, "shuffled": 2, "warps": 3}
NUMBERS = {"f32": ctypes.c_float, "i32": ctypes.c_int, "i64": ctypes.c_longlong, "u8": ctypes.c_ubyte, "u32": ctypes.c_uint,
           "u64": ctypes.c_ulonglong}
C_TYPES = {"T": "real", "f32": "float", "i32": "int", "i64": "long long", "u8": "unsigned char", "u32": "unsigned",
           "u64": "unsigned long long"}

_order = ORDERS["forwards"]
_one_at_a_time = threading.Lock()               # the emulated GPU is one


class EmulationError(RuntimeError):
    """A kernel did what no GPU forgives: a barrier that not all threads reach, a shuffle of a warp that a lane has left."""


@contextmanager
def thread_order(order: str) -> Iterator[None]:
    """Inside a `with` block, threads and blocks run "forwards", "backwards", "shuffled" or by "warps", each as far as it can.

    Results must not depend on it.
    """
    global _order
    before, _order = _order, ORDERS[order]
    try:
        yield
    finally:
        _order = before


def compiler() -> str | None:
    """The C++ compiler: $CXX, else g++; None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def build(stem: str, text: str, kernels: Sequence[Any], defines: Sequence[str]) -> list[tuple[Any, Any]]:
    """(kernel, function) for each kernel of a file, compiled for the CPU; what was compiled once is kept.

    `MINITUNE_SANITIZE=address,undefined` compiles with these checks. Raises RuntimeError where there is no compiler, or the
    address sanitizer's library was not loaded with Python.
    """
    program = text + "".join(map(_entry, kernels))
    options = _sanitized(os.environ["MINITUNE_SANITIZE"]) if os.environ.get("MINITUNE_SANITIZE") else ["-O2"]
    options += [f"-D{name}" for name in defines]
    library = ctypes.CDLL(str(_built(stem, program, FLAGS + options)))
    return [(kernel, _function(library, kernel)) for kernel in kernels]


def _sanitized(checks: str) -> list[str]:
    """The options for these checks; unoptimised, since the compiler takes longer than the kernels."""
    options = ["-O0", "-g1", f"-fsanitize={checks}", "-fno-sanitize-recover=all"]
    if "address" not in checks:
        return options
    if not hasattr(ctypes.CDLL(None), "__asan_init"):           # to load a library that needs it would end Python
        raise RuntimeError("emulation: MINITUNE_SANITIZE=address needs the sanitizer's library in Python from the start: set "
                           "LD_PRELOAD=$(g++ -print-file-name=libasan.so) and "
                           "ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 before it")
    return options if "clang" in str(compiler()) else [*options, "-fsanitize-sections=emulated_shared"]


def _entry(kernel: Any) -> str:
    """The C function that starts a kernel from Python."""
    declared = "".join(f", {'void*' if p.dims is not None else C_TYPES[p.kind]} {p.name}" for p in kernel.parameters)
    passed = ", ".join(p.name if p.dims is None else f"({C_TYPES[p.kind]}*){p.name}" for p in kernel.parameters)
    return (f'\nextern "C" const char* emulated_{kernel.name}(const unsigned* sizes, size_t shared, int order{declared}) {{\n'
            f"    return emulated::launch(sizes, shared, order, [=] {{ {kernel.name}({passed}); }});\n}}\n")


def _built(stem: str, program: str, options: list[str]) -> Path:
    """The compiled library; a file in the user's cache named after all that went into it."""
    gxx = compiler()
    if gxx is None:
        raise RuntimeError(f"emulation: needs a C++ compiler, and {os.environ.get('CXX', 'g++')} was not found. Install g++, "
                           "or set CXX to another compiler")
    key = sha256("\0".join([gxx, _version(gxx), *options, program]).encode()).hexdigest()[:24]
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minitune" / "emulated"
    library = place / f"{stem}-{key}.so"
    if not library.exists():
        place.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place) as aside:
            source, made = Path(aside) / f"{stem}.cpp", Path(aside) / library.name
            source.write_text(program, encoding="utf-8")
            done = subprocess.run([gxx, *options, str(source), "-o", str(made)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"emulation: {stem}.cu does not compile:\n{done.stderr[-4000:]}")
            made.replace(library)
        _remove_unused(place)
    with suppress(OSError):                     # a cache that may only be read
        library.touch()
    return library


@cache
def _version(gxx: str) -> str:
    return subprocess.run([gxx, "--version"], capture_output=True, text=True, check=False).stdout


def _remove_unused(place: Path) -> None:
    for library in place.glob("*.so"):
        with suppress(OSError):                 # another process may remove it first
            if time.time() - library.stat().st_mtime > KEPT:
                library.unlink()


def _function(library: ctypes.CDLL, kernel: Any) -> Any:
    function = getattr(library, f"emulated_{kernel.name}")
    function.restype = ctypes.c_char_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
                         *(NUMBERS[p.kind] if p.dims is None else ctypes.c_void_p for p in kernel.parameters)]
    return function


def run(kernel: Any, function: Any, grid: tuple[int, ...], block: tuple[int, ...], given: list[Any], shared: int) -> None:
    """Runs a whole grid. Raises EmulationError where a thread did what no GPU forgives."""
    sizes = np.array([*grid, *block], np.uint32)
    passed = [None if a is None else a.ctypes.data if p.dims is not None else a.item()
              for p, a in zip(kernel.parameters, given, strict=True)]
    with _one_at_a_time:
        wrong = function(sizes.ctypes.data, shared, _order, *passed)
    if wrong:
        raise EmulationError(f"{kernel.name}: {wrong.decode()}")
