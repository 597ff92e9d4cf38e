"""minitune info: what minitune found on this machine."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, backend
from ..cores import cores, sharing
from ..devices import to_device

LIMITS = {"openblas": ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "mkl": ("MKL_NUM_THREADS", "OMP_NUM_THREADS"),
          "blis": ("BLIS_NUM_THREADS", "OMP_NUM_THREADS")}      # the first that is set counts
WITH_AVX512 = ("SkylakeX", "Cooperlake", "SapphireRapids")      # of OpenBLAS's kernels
TWINS = Path(backend.__file__).parent / "twins" / "cpu"
CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")                 # what its packages are called


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser("info", help="versions, cores, BLAS, compiled twins, GPU, data sets",
                                 description="Shows what minitune found on this machine, and what would make it faster.")
    parser.set_defaults(run=run)


def run(options: Any) -> None:
    """Prints what was found, then what to mend."""
    rows = {"minitune": __version__, "Python": f"{platform.python_version()} on {platform.platform()}",
            "cores": f"{_cores_there()}, minitune uses {cores()}", "BLAS": _blas()}
    for package in ("numpy", "tokenizers", "safetensors", "numba", "ml_dtypes", "matplotlib", "scikit-learn"):
        rows[package] = _version(package)
    rows |= _twins()
    rows["GPU"] = _gpu()
    folder = os.environ.get("MINITUNE_DATA")
    rows["MINITUNE_DATA"] = folder or "not set (pydocs needs no files)"
    for name, value in rows.items():
        print(f"{name:14} {value}")
    warn_of_slow_settings()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cores_there() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _blas() -> str:
    """Each library that is loaded, or else, where none tells of itself, the one that NumPy was built with."""
    if not sharing().loaded:
        built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]      # type: ignore[call-overload,index]
        return f"{built}, which chooses kernels and threads itself"
    return "; ".join(f"{library.internal_api} {library.version}, "
                     + (f"{_kernels(library)} kernels, " if _kernels(library) else "")
                     + f"threads: {library.num_threads}" for library in sharing().loaded)


def _kernels(library: Any) -> str | None:
    """The kernels that a BLAS library chose, of those that tell."""
    return getattr(library, "architecture", None)


def _twins() -> dict[str, str]:
    """Which operations have a compiled twin, read from its file: to import one might compile it."""
    try:
        import numba  # noqa: F401
    except ImportError as missing:
        absent = isinstance(missing, ModuleNotFoundError)
        return {"CPU twins": "none: the references run. " + ('pip install "minitune[fast]"' if absent else str(missing))}
    names = [name for file in TWINS.glob("*.py")
             for name in re.findall(r"^def (\w+)_forward\(", file.read_text(encoding="utf-8"), re.MULTILINE)]
    return {"CPU twins": f"compiled by numba: {', '.join(sorted(names))}", "compiled form": _kept()}


def _kept() -> str:
    """Where numba keeps what it compiled: in a folder beside the source, or in one that the user named."""
    folder, files = os.environ.get("NUMBA_CACHE_DIR"), f"*.py{sys.version_info.major}{sys.version_info.minor}*.nbi"
    places = {file.parent for file in (Path(folder).glob(f"cpu_*/{files}") if folder else TWINS.glob(f"__pycache__/{files}"))}
    return f"kept in {', '.join(sorted(map(str, places)))}" if places else "made when first used, in about half a minute"


def _gpu() -> str:
    """The GPU and what speaks to it, or why there is none; and what runs the CUDA kernels without one."""
    found = [version for package in CUPY if (version := _version(package)) != "not installed"]
    cupy = f"CuPy {found[0]}" if found else "CuPy is not installed"
    try:
        module = backend.array_module(to_device(np.zeros(1, np.float32), "cuda"))
        return f"{module.cuda.runtime.getDeviceProperties(0)['name'].decode()}, {cupy}"
    except RuntimeError as missing:
        reason = f"cannot be imported ({missing.__cause__})" if missing.__cause__ else "finds no GPU with a driver"
    emulation = backend.twins_in("cuda", "emulation")
    compiler = emulation and emulation.compiler()
    emulated = f"can be emulated by {compiler}" if compiler else "cannot be emulated: g++ is not installed"
    return f"none: {cupy} {reason if found else ''}".rstrip() + f". CUDA kernels {emulated}"


def warn_of_slow_settings() -> None:
    """Says so where an inherited setting makes minitune slow."""
    for note in dict.fromkeys(_slow_settings()):
        print(f"Note: {note}")


def _slow_settings() -> list[str]:
    """What each does, and the repair."""
    used, there, notes = cores(), _cores_there(), []
    kernels = os.environ.get("OPENBLAS_CORETYPE")
    if kernels:
        old = [library for library in sharing().loaded if _kernels(library) not in (None, *WITH_AVX512)]
        lost = ": about half their speed is lost, as these kernels leave its AVX-512 idle" if old and _has_avx512() else ""
        notes.append(f"OPENBLAS_CORETYPE={kernels} is set, which keeps NumPy from choosing the fastest matrix products for "
                     f"this processor{lost}. Unset it unless you need it.")
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        notes.append("NUMBA_DISABLE_JIT is set: the compiled twins run uncompiled, thousands of times slower. Unset it.")
    for library in sharing().libraries:         # the fewest threads of any of them are minitune's
        limit = next((name for name in LIMITS.get(library.internal_api, ()) if os.environ.get(name)), None)
        if limit and library.num_threads == used < there:
            notes.append(f"{limit}={os.environ[limit]} is set, so minitune uses {used} of {there} cores. "
                         "Unset it unless other work needs the rest.")
    if not sharing().libraries and there > 1:
        notes.append(f"NumPy's BLAS chooses its threads itself, so minitune's own loops run on 1 of {there} cores. An OpenBLAS "
                     'built without OpenMP leaves that to minitune: conda install numpy "libblas=*=*openblas" '
                     '"libopenblas=*=*pthreads*".')
    return notes


def _has_avx512() -> bool:
    """Whether Linux says that the processor has AVX-512; elsewhere nobody is asked."""
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
