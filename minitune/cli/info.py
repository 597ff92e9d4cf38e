"""minitune info: what minitune found on this machine."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import numpy as np

from .. import __version__, backend


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser("info", help="versions, cores, BLAS, compiled twins, data sets",
                                 description="Shows what minitune found on this machine, and what would make it faster.")
    parser.set_defaults(run=run)


def run(options: Any) -> None:
    """Prints what was found, then what to mend."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]       # type: ignore[call-overload,index]
    rows = {"minitune": __version__, "Python": f"{platform.python_version()} on {platform.platform()}",
            "cores": str(os.cpu_count()), "BLAS": f"{blas['name']} {blas['version']}"}
    for package in ("numpy", "tokenizers", "safetensors", "numba", "cupy", "matplotlib", "scikit-learn"):
        rows[package] = _version(package)
    gelu = backend.twin("cpu", "elementwise", "gelu")
    rows["CPU twins"] = "compiled by numba" if gelu else 'none: the references run. pip install "minitune[fast]"'
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


def warn_of_slow_settings() -> None:
    """Says so where an inherited setting makes NumPy slow."""
    kernels = os.environ.get("OPENBLAS_CORETYPE")
    if kernels:
        print(f"Note: OPENBLAS_CORETYPE={kernels} is set, which keeps NumPy from choosing the fastest matrix products for "
              "this processor. Unset it unless you need it.")
