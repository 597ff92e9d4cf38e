"""Every compiled twin agrees with its reference, on the cases of the table, and keeps the same contract."""

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from cases import CASES, calls_of, check_contract

import minitune as mt
from minitune import backend, devices
from minitune.twins.cuda import emulation

TWINS = Path(mt.__file__).parent / "twins"
# A float32 result is off by a few roundings (6e-8 of the largest number that went into it) for each of up to a few
# hundred terms, and a twin may use a polynomial good to some 1e-7 instead of tanh.
RTOL, ATOL = 1e-5, 2e-6


def twins_on_disk() -> list[tuple[str, str, str]]:
    """(device, stem, operation) of every *_forward in twins/, read from the text: it needs no compiler."""
    return [(file.parent.name, file.stem, node.name.removesuffix("_forward"))
            for file in sorted(TWINS.glob("*/*.py"))
            for node in ast.parse(file.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_forward") and not node.name.startswith("_")]


def calls_for(device: str, stem: str, name: str):
    """(twin, its calls in float32, the same calls in float64), or a skip with its reason. CUDA's run where `on_device` puts
    them: on a GPU, or else on the emulation."""
    if device == "cuda" and not gpu() and emulation.compiler() is None:
        pytest.skip("CUDA twins need a GPU, or g++ for the emulation")
    fast = backend.twin(device, stem, name)
    if fast is None:
        pytest.skip(f"the compiler of {device} twins is not installed")
    pairs = [(single, double) for case in CASES
             for single, double in zip(calls_of(case, np.float32), calls_of(case), strict=True)
             if (single.stem, single.name) == (stem, name)]
    assert pairs, f"the table holds no case of {name}"
    taken = [(single._replace(arrays=[on_device(a, device) for a in single.arrays]), double) for single, double in pairs]
    taken = [(s, d) for s, d in taken if fast.unsupported(*s.arrays, **s.settings) is None]
    if not taken and device == "cuda":
        pytest.skip(f"the CUDA twin of {name} is for bfloat16 alone, which has tests of its own")
    assert taken, f"the {device} twin of {name} takes none of its cases"
    return fast, taken


def gpu() -> bool:
    """Whether there is a GPU that CuPy can use."""
    return find_spec("cupy") is not None and import_module("cupy").cuda.is_available()


def on_device(a, device):
    return devices.to_device(a, device) if isinstance(a, np.ndarray) and device == "cuda" and gpu() else a


def host(array):
    return devices.to_device(array, "cpu")


@pytest.mark.parametrize("twin", twins_on_disk(), ids="/".join)
def test_a_twin_has_its_reason_function_and_a_reference_of_its_name(twin):
    device, stem, name = twin
    names = {node.name for node in ast.parse((TWINS / device / f"{stem}.py").read_text(encoding="utf-8")).body
             if isinstance(node, ast.FunctionDef)}
    assert {f"{name}_forward", f"{name}_backward", f"{name}_unsupported"} <= names
    assert hasattr(import_module(f"minitune.ops.{stem}"), f"{name}_forward")


@pytest.mark.parametrize("twin", twins_on_disk(), ids="/".join)
def test_a_twin_agrees_with_the_reference_run_in_float64(twin):
    fast, calls = calls_for(*twin)
    for single, double in calls:
        for needs in single.subsets_of_needs():
            y, saved = fast.forward(*single.arrays, **single.settings, needs=needs)
            expected, expected_saved = double.forward(*double.arrays, **double.settings, needs=needs)
            np.testing.assert_allclose(host(y), expected, RTOL, ATOL)
            grad = np.asarray(np.random.default_rng(2).standard_normal(np.shape(expected)))
            got = fast.backward(on_device(grad.astype(np.float32), twin[0]), *saved, needs=needs)
            for g, e in zip(got, double.backward(grad, *expected_saved, needs=needs), strict=True):
                assert (g is None) == (e is None)
                if g is not None:
                    np.testing.assert_allclose(host(g), e, RTOL, ATOL)


@pytest.mark.parametrize("twin", [t for t in twins_on_disk() if t[0] == "cpu" or not gpu()], ids="/".join)
def test_a_twin_keeps_the_contract(twin):
    fast, calls = calls_for(*twin)
    for single, _ in calls:
        for needs in single.subsets_of_needs():
            check_contract(fast.forward, fast.backward, single.arrays, single.settings, needs)


@pytest.mark.parametrize("twin", [t for t in twins_on_disk() if t[0] == "cpu" or not gpu()], ids="/".join)
def test_a_twin_lets_nan_through(twin):
    """A loss that went wrong must show it: spoil the first number of each float input, and what depends on it is NaN.

    A query of attention depends on the keys it sees. What it does not see may be skipped, or be multiplied by 0.
    """
    (_, _, name), (fast, calls) = twin, calls_for(*twin)
    for single, _ in calls:
        for i, a in enumerate(single.arrays):
            if isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.size:
                bad = a.copy()
                bad.flat[0] = np.nan
                arrays = [*single.arrays[:i], bad, *single.arrays[i + 1 :]]
                needs = next(single.subsets_of_needs())
                with np.errstate(invalid="ignore"):
                    expected, _ = single.forward(*arrays, **single.settings, needs=needs)
                    y, _ = fast.forward(*arrays, **single.settings, needs=needs)
                depends = ...
                if name == "attention" and i > 0:
                    first, last = single.arrays[3:]
                    depends = (first <= 0) & (last >= 0)                    # the queries that see key 0
                np.testing.assert_array_equal(np.asarray(np.isnan(y))[depends], np.asarray(np.isnan(expected))[depends])
