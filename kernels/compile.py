"""Compiles every kernel for GPUs, which takes none, and compares what it uses with budgets.json.

    python kernels/compile.py             registers, shared memory and spills of each kernel
    python kernels/compile.py --write     writes budgets.json anew

With nvcc, and with NVRTC as CuPy calls it: NVRTC knows less (no INFINITY, no standard headers) and is what users run. It comes
with the CUDA toolkit and as a wheel: pip install nvidia-cuda-nvrtc.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from minitune.twins.cuda import kernel
from minitune.twins.cuda.kernel import Source, ceil_div

BUDGETS = Path(__file__).with_name("budgets.json")
ARCHITECTURES = ("sm_80", "sm_90")      # A100; H100 and H200
AS_CUPY = ("-ftz=true", "--std=c++17", "--device-as-default-execution-space", "--ptxas-options=-v")
AS_NVCC = ("-cubin", "-ftz=true", "-std=c++17", "-Xptxas", "-v,-warn-spills")
ALLOTTED = 8            # a GPU gives a thread registers by eights: up to the next multiple they cost nothing
ROOM = 4                # registers more for releases that were not measured
MOST = 255              # registers of a thread


class Variant(NamedTuple):
    """One form in which a file of kernels is compiled."""

    stem: str
    defines: tuple[str, ...]
    architecture: str

    def __str__(self) -> str:
        dtype = "bfloat16" if "BF16" in self.defines else "float32"
        return " ".join([self.stem, dtype, *(name for name in self.defines if name != "BF16"), self.architecture])

    def of(self, name: str) -> str:
        """What a kernel of the file is called in budgets.json."""
        return f"{name} {str(self).partition(' ')[2]}"


class Used(NamedTuple):
    """What a kernel takes: registers of a thread, bytes of shared memory of a block, bytes of local memory of a thread."""

    registers: int
    shared: int
    stack: int
    spilled: int


# ---- What there is to compile, and with what ---------------------------------------------------------------------

@cache
def sources() -> dict[str, Source]:
    """Every file of kernels, by its stem, as the twins declare it."""
    place = Path(kernel.__file__).parent
    modules = [import_module(f"{kernel.__package__}.{file.stem}") for file in sorted(place.glob("*.py"))]
    return {source.stem: source for module in modules for source in vars(module).values() if isinstance(source, Source)}


def variants() -> list[Variant]:
    """Every form of every file, for each architecture."""
    return [Variant(stem, defines, architecture) for stem, source in sources().items() for defines in source.variants()
            for architecture in ARCHITECTURES]


@cache
def nvcc() -> str | None:
    """Where nvcc is, if it is here."""
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


@cache
def nvrtc() -> str | None:
    """Where NVRTC's library is: in a wheel, the newest first, or in a toolkit."""
    wheels = [Path(place) / "nvidia" / part / "lib" for part in ("cu13", "cuda_nvrtc") for place in sys.path]
    toolkits = [Path(place) / "lib64" for place in (os.environ.get("CUDA_PATH"), "/usr/local/cuda") if place]
    found = [library for place in wheels + toolkits for library in sorted(place.glob("libnvrtc.so.*"))]
    return str(found[0]) if found else None


def compilers() -> list[str]:
    """The names of those that are here."""
    return [name for name, there in (("nvcc", nvcc()), ("nvrtc", nvrtc())) if there]


# ---- Compiling ---------------------------------------------------------------------------------------------------

def log_of(compiler: str, text: str, architecture: str, defines: tuple[str, ...] = ()) -> str:
    """What a compiler says of a text; kept in the user's cache. Raises RuntimeError where it does not compile."""
    options = [f"-arch={architecture}", *(AS_NVCC if compiler == "nvcc" else AS_CUPY), *(f"-D{name}" for name in defines)]
    key = sha256("\0".join([version(compiler), *options, text]).encode()).hexdigest()[:24]
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minitune" / "compiled"
    kept = place / f"{key}.txt"
    if not kept.exists():
        log = (_by_nvcc if compiler == "nvcc" else _by_nvrtc)(text, options)
        place.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place) as aside:
            (Path(aside) / kept.name).write_text(log, encoding="utf-8")
            (Path(aside) / kept.name).replace(kept)
    return kept.read_text(encoding="utf-8")


def _by_nvcc(text: str, options: list[str]) -> str:
    with TemporaryDirectory() as aside:
        file = Path(aside) / "kernels.cu"
        file.write_text(text, encoding="utf-8")
        done = subprocess.run([str(nvcc()), *options, "-o", f"{aside}/kernels.cubin", str(file)], check=False,
                              capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout + done.stderr


def _by_nvrtc(text: str, options: list[str]) -> str:
    library, program, size = _nvrtc_library(), ctypes.c_void_p(), ctypes.c_size_t()
    if library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None):
        raise RuntimeError("NVRTC makes no program")
    try:
        failed = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options)))
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise RuntimeError(log.value.decode())
    return log.value.decode()


@cache
def _nvrtc_library() -> ctypes.CDLL:
    return ctypes.CDLL(str(nvrtc()))


@cache
def version(compiler: str) -> str:
    """The release, such as "NVRTC 13.5", which decides what a text compiles to."""
    if compiler == "nvcc":
        told = subprocess.run([str(nvcc()), "--version"], capture_output=True, text=True, check=True).stdout
        return "nvcc " + re.findall(r", V([\d.]+)", told)[0]
    major, minor = ctypes.c_int(), ctypes.c_int()
    _nvrtc_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"NVRTC {major.value}.{minor.value}"


def used(log: str) -> dict[str, Used]:
    """What each kernel takes, from a compiler's words."""
    found = re.findall(r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
                       r".*?Used (\d+) registers([^\n]*)", log, re.DOTALL)
    shared = [sum(map(int, re.findall(r"(\d+) bytes smem", rest))) for *_, rest in found]
    return {name: Used(int(registers), bytes_, int(stack), int(stores) + int(loads))
            for (name, stack, stores, loads, registers, _), bytes_ in zip(found, shared, strict=True)}


class Compilations:
    """Compilations on all cores at once: each that is asked for later must be named at the start."""

    def __init__(self, wanted: list[tuple[str, Variant]]) -> None:
        self._pool = ThreadPoolExecutor(os.cpu_count())
        texts = {stem: source.text() for stem, source in sources().items()}
        self._logs: dict[tuple[str, Variant], Future[str]] = {}
        for compiler, v in wanted:
            self._logs[compiler, v] = self._pool.submit(log_of, compiler, texts[v.stem], v.architecture, v.defines)

    def log(self, compiler: str, variant: Variant) -> str:
        """What the compiler said of this form. Raises RuntimeError where it does not compile."""
        return self._logs[compiler, variant].result()


# ---- Budgets -----------------------------------------------------------------------------------------------------

def budgets() -> dict[str, dict[str, int]]:
    """The most registers and shared memory that each kernel may take, as the file has them."""
    return json.loads(BUDGETS.read_text(encoding="utf-8"))["kernels"]


def measured_by(compiler: str) -> bool:
    """Whether the budgets are of this compiler's CUDA version: between 12.9 and 13.5 registers differ by up to 11."""
    return _cuda(compiler) == json.loads(BUDGETS.read_text(encoding="utf-8"))["cuda"]


def _cuda(compiler: str) -> int:
    return int(version(compiler).partition(" ")[2].partition(".")[0])


def faults(compiler: str, name: str, took: Used, budget: dict[str, int] | None) -> Iterator[str]:
    """What is wrong with what a kernel takes. Spills are never right."""
    again = "If that is meant, run: python kernels/compile.py --write"
    if took.spilled or took.stack:
        yield f"{name}: {took.spilled} bytes of spills, {took.stack} of stack, none are allowed: keep fewer numbers at once"
    if budget is None:
        yield f"{name}: has no budget in kernels/budgets.json. Run: python kernels/compile.py --write"
        return
    if took.registers > budget["registers"] and measured_by(compiler):
        yield f"{name}: {took.registers} registers, {budget['registers']} are allowed. {again}"
    if took.shared > budget["shared"]:
        yield f"{name}: {took.shared} bytes of shared memory, {budget['shared']} are allowed. {again}"


def allowed(took: list[Used]) -> dict[str, int]:
    """The budget of a kernel that took so much."""
    registers = max(one.registers for one in took) + ROOM
    return {"registers": min(MOST, ceil_div(registers, ALLOTTED) * ALLOTTED), "shared": max(one.shared for one in took)}


def main() -> int:
    """Compiles all, and prints or writes."""
    parser = argparse.ArgumentParser(description="What the kernels take of a GPU.")
    parser.add_argument("--write", action="store_true", help="write budgets.json anew")
    write = parser.parse_args().write
    if not compilers():
        parser.error("neither nvcc nor NVRTC is here: pip install nvidia-cuda-nvrtc")
    wanted = [(compiler, variant) for variant in variants() for compiler in compilers()]
    compilations = Compilations(wanted)
    took: dict[str, dict[str, Used]] = {}
    for compiler, variant in wanted:
        try:
            log = compilations.log(compiler, variant)
        except RuntimeError as wrong:
            parser.error(f"{variant} does not compile by {compiler}:\n{wrong}")
        for name, one in used(log).items():
            took.setdefault(variant.of(name), {})[compiler] = one
    if write:
        _write(took)
    limits = budgets()
    for name, ones in sorted(took.items()):
        registers, shared = (" and ".join(sorted({str(one[i]) for one in ones.values()})) for i in (0, 1))
        print(f"{name:60} registers {registers:9} of {limits.get(name, {}).get('registers', '?'):3}, shared {shared}")
    over = dict.fromkeys(fault for name, ones in took.items() for compiler, one in ones.items()
                         for fault in faults(compiler, name, one, limits.get(name)))
    print("\n".join(over), end="\n" if over else "")
    return 1 if over else 0


def _write(took: dict[str, dict[str, Used]]) -> None:
    """One kernel a line, so that a change shows what it costs."""
    lines = [f"  {json.dumps(name)}: {json.dumps(allowed(list(took[name].values())))}" for name in sorted(took)]
    newest = max(map(_cuda, compilers()))
    BUDGETS.write_text(f'{{"cuda": {newest}, "kernels": {{\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
