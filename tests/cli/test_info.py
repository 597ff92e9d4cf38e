"""minitune info: what was found, and one line for each inherited setting that slows the machine down."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minitune import backend, cli
from minitune.cli import info

VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
FASTEST = {"internal_api": "openblas", "version": "0.3.31", "architecture": "SkylakeX", "threading_layer": "pthreads",
           "num_threads": 8}


@pytest.fixture
def shown(monkeypatch, capsys):
    """Gives (rows by name, notes) of a machine with eight cores and these BLAS libraries and variables."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(info, "_cores_there", lambda: 8)

    def show(libraries, **variables):
        found = SimpleNamespace(lib_controllers=[loaded(**library) for library in libraries])
        monkeypatch.setattr("threadpoolctl.ThreadpoolController", lambda: SimpleNamespace(select=lambda user_api: found))
        monkeypatch.setattr("minitune.cores._blas", None)           # what minitune decides, it decides of these
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert cli.main(["info"]) == 0
        lines = capsys.readouterr().out.splitlines()
        return ({line[:14].strip(): line[15:] for line in lines if not line.startswith("Note")},
                [line for line in lines if line.startswith("Note")])
    return show


def loaded(num_threads, **details):
    """A BLAS library as threadpoolctl controls it."""
    library = SimpleNamespace(num_threads=num_threads, get_num_threads=lambda: library.num_threads,
                              set_num_threads=lambda threads: setattr(library, "num_threads", threads), **details)
    return library


def test_a_process_of_its_own_shows_the_machine_and_warns_of_inherited_settings():
    printed = subprocess.run([sys.executable, "-m", "minitune.cli", "info"], capture_output=True, text=True, check=True,
                             env=os.environ | {"OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_NUM_THREADS": "1"}).stdout
    assert all(word in printed for word in ("numpy", f"{np.__version__}", "ml_dtypes", "BLAS", "CPU twins",
                                             "OPENBLAS_CORETYPE=Haswell"))
    assert f"{info._cores_there()}, minitune uses 1\n" in printed
    if info._cores_there() > 1 and "openblas" in printed:
        assert "Note: OPENBLAS_NUM_THREADS=1 is set, so minitune uses 1 of" in printed


def test_where_nothing_is_wrong_no_note_is_printed(shown):
    rows, notes = shown([FASTEST], OMP_NUM_THREADS="8", MKL_NUM_THREADS="1")    # no MKL is loaded
    assert notes == [] and rows["BLAS"] == "openblas 0.3.31, SkylakeX kernels, threads: 8"
    assert shown([FASTEST | {"num_threads": 2}], OMP_NUM_THREADS="")[1] == []   # fewer, but no variable says so


@pytest.mark.parametrize("architecture, flags, half", [
    ("Haswell", "avx2 avx512f avx512bw", True), ("Haswell", "avx2", False), ("SkylakeX", "avx2 avx512f", False),
    ("Haswell", None, False),                           # not on Linux
])
def test_kernels_that_were_chosen_by_hand_are_noted_with_what_they_cost(architecture, flags, half, shown, monkeypatch):
    read = Path.read_text

    def read_text(file, *args, **settings):
        if file != Path("/proc/cpuinfo"):
            return read(file, *args, **settings)
        if flags is None:
            raise FileNotFoundError
        return f"processor\t: 0\nflags\t\t: fpu {flags} sse\n"

    monkeypatch.setattr(Path, "read_text", read_text)
    _, (note,) = shown([FASTEST | {"architecture": architecture}], OPENBLAS_CORETYPE=architecture)
    assert f"OPENBLAS_CORETYPE={architecture} is set" in note and "Unset it" in note
    assert ("half their speed is lost" in note) == half


@pytest.mark.parametrize("library, variables, counts", [
    ("openblas", ("OPENBLAS_NUM_THREADS",), "OPENBLAS_NUM_THREADS"), ("openblas", ("OMP_NUM_THREADS",), "OMP_NUM_THREADS"),
    ("openblas", ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "OPENBLAS_NUM_THREADS"),
    ("mkl", ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "MKL_NUM_THREADS"),
])
def test_fewer_threads_than_cores_are_noted_once_with_the_variable_that_counts(library, variables, counts, shown):
    slow = {"internal_api": library, "version": "1", "num_threads": 2}      # twice: NumPy and SciPy each bring their own
    rows, (note,) = shown([slow, slow], **dict.fromkeys(variables, "2"))
    assert rows["cores"] == "8, minitune uses 2"
    assert note.startswith(f"Note: {counts}=2 is set, so minitune uses 2 of 8 cores") and "Unset it" in note
    assert rows["BLAS"] == f"{library} 1, threads: 2; {library} 1, threads: 2"


def test_of_two_limits_the_one_that_counts_is_noted(shown):
    other = {"internal_api": "mkl", "version": "1", "num_threads": 4}
    _, (note,) = shown([other, FASTEST | {"num_threads": 2}], MKL_NUM_THREADS="4", OPENBLAS_NUM_THREADS="2")
    assert note.startswith("Note: OPENBLAS_NUM_THREADS=2 is set, so minitune uses 2 of 8 cores")


@pytest.mark.parametrize("libraries, blas", [
    ([], "chooses kernels and threads itself"),
    ([FASTEST | {"threading_layer": "openmp"}], "openblas 0.3.31, SkylakeX kernels, threads: 8"),
    ([FASTEST, FASTEST | {"threading_layer": "openmp"}], "threads: 8; openblas"),
])
def test_a_blas_that_minitune_cannot_limit_is_noted_with_a_repair(libraries, blas, shown):
    rows, (note,) = shown(libraries, OMP_NUM_THREADS="8")
    assert blas in rows["BLAS"] and rows["cores"] == "8, minitune uses 1"
    assert "run on 1 of 8 cores" in note and "conda install" in note


# ---- Twins ---------------------------------------------------------------------------------------------------------

def test_the_twins_shown_are_those_that_the_operations_find(shown):
    pytest.importorskip("numba", reason="without it there are no CPU twins")
    modules = [backend.twins_in("cpu", file.stem) for file in info.TWINS.glob("*.py")]
    found = {name.removesuffix("_forward") for module in modules for name, value in vars(module).items()
             if name.endswith("_forward") and not name.startswith("_") and value.__module__ == module.__name__}
    kind, _, names = shown([FASTEST])[0]["CPU twins"].partition(": ")
    assert kind == "compiled by numba" and set(names.split(", ")) == found and "gelu" in found


def test_where_compiled_twins_are_kept_is_shown(shown, monkeypatch, tmp_path):
    pytest.importorskip("numba", reason="without it there are no CPU twins")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert "when first used" in shown([FASTEST])[0]["compiled form"]
    (tmp_path / "cpu_0123").mkdir()
    (tmp_path / "cpu_0123" / f"softmax._forward-10.py{sys.version_info.major}{sys.version_info.minor}.nbi").write_bytes(b"")
    assert shown([FASTEST])[0]["compiled form"] == f"kept in {tmp_path / 'cpu_0123'}"


def test_without_numba_there_are_no_twins_and_the_line_says_what_to_install(shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    rows, _ = shown([FASTEST])
    assert rows["CPU twins"] == 'none: the references run. pip install "minitune[fast]"' and "compiled form" not in rows


def test_a_numba_that_refuses_is_quoted(shown, monkeypatch, tmp_path):
    (tmp_path / "numba.py").write_text('raise ImportError("Numba needs NumPy 1.0 or less")')
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert shown([FASTEST])[0]["CPU twins"] == "none: the references run. Numba needs NumPy 1.0 or less"
