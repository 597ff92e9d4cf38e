"""Without CuPy, and with a CuPy that finds no GPU, minitune is imported and says in one line what is missing; kernels are found
from a wheel, an editable install and a bare checkout."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import minitune
from minitune.twins.cuda.kernel import folder

ROOT = Path(minitune.__file__).parents[1]
ASK = """
import numpy as np
import minitune as mt
from minitune import devices, nn
from minitune.cli.main import main
for ask in (lambda: devices.to_device(np.zeros(1, np.float32), "cuda"), lambda: nn.Linear(2, 2).to("cuda")):
    try:
        ask()
    except RuntimeError as told:
        print(told)
model = nn.Linear(2, 2)
model(mt.Tensor(np.ones((1, 2), np.float32))).sum().backward()
print("trains", model.weight.grad.shape)
main(["info"])
"""
STAND_IN = """
class cuda:
    is_available = staticmethod(lambda: False)
"""


def said(code: str, *places: Path) -> list[str]:
    """The lines that a fresh Python prints; packages are looked for in these places first."""
    path = os.pathsep.join(map(str, [*places, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, timeout=120,
                          env=os.environ | {"PYTHONPATH": path.rstrip(os.pathsep)}, check=False, cwd=sys.prefix)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def gpu_line(lines: list[str]) -> str:
    (line,) = (line for line in lines if line.startswith("GPU "))
    return line.removeprefix("GPU").strip()


def test_without_cupy_minitune_trains_and_says_what_to_install():
    lines = said("import sys\nsys.modules['cupy'] = None" + ASK)
    assert lines[:3] == ['device: "cuda" needs CuPy, which is not installed. Install minitune[cuda13] or, for CUDA 12, '
                         'minitune[cuda12]; or use device="cpu"'] * 2 + ["trains (2, 2)"]
    assert gpu_line(lines).startswith("none: ")


def test_with_a_cupy_that_finds_no_driver_minitune_trains_and_says_so(tmp_path):
    (tmp_path / "cupy.py").write_text(STAND_IN, encoding="utf-8")
    (tmp_path / "cupy-14.2.0.dist-info").mkdir()
    (tmp_path / "cupy-14.2.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: cupy\nVersion: 14.2.0\n")
    lines = said(ASK, tmp_path)
    assert lines[:3] == ['device: "cuda" was asked for, and CuPy finds no GPU with a driver here. Use device="cpu"'] * 2 \
        + ["trains (2, 2)"]
    assert gpu_line(lines).startswith("none: CuPy ") and "finds no GPU with a driver. CUDA kernels can" in gpu_line(lines)


@pytest.mark.skipif(find_spec("cupy") is None, reason="CuPy is not installed: pip install cupy-cuda13x")
def test_with_the_real_cupy_and_no_driver_it_is_the_same():
    if said("import cupy; print(cupy.cuda.is_available())") == ["True"]:
        pytest.skip("there is a GPU")
    lines = said(ASK)
    assert lines[:3] == ['device: "cuda" was asked for, and CuPy finds no GPU with a driver here. Use device="cpu"'] * 2 \
        + ["trains (2, 2)"]
    assert "finds no GPU with a driver" in gpu_line(lines)


def test_import_alone_asks_for_neither_cupy_nor_the_kernels():
    code = "import sys, minitune; print(sorted(name for name in sys.modules if 'cupy' in name or 'twins.cuda' in name))"
    assert said(code) == ["[]"]


# ---- Where the kernels lie ---------------------------------------------------------------------------------------

WHERE = "import minitune; from minitune.twins.cuda.kernel import Source, folder; print(minitune.__file__); print(folder()); " \
        "print(len(Source('layer_norm').text('cpu')))"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder that setup.py would put into a wheel."""
    pytest.importorskip("setuptools", reason="building takes setuptools")
    if not (ROOT / "setup.py").exists():
        pytest.skip("this is not a checkout")
    place = tmp_path_factory.mktemp("built")
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(place)], cwd=ROOT, check=True, timeout=120,
                   capture_output=True)
    return place


def test_a_wheel_has_every_kernel_in_the_package(built):
    files = {str(file.relative_to(folder())) for pattern in ("*.cu", "*.cuh", "emulate/*.h", "budgets.json")
             for file in folder().glob(pattern)}
    assert {str(file.relative_to(built / "minitune" / "kernels")) for file in (built / "minitune" / "kernels").rglob("*")
            if file.is_file()} == files
    assert "layer_norm.cu" in files and "emulate/cuda_cpu.h" in files


def test_a_wheel_has_the_models_that_come_with_the_package(built):
    shipped = Path("minitune", "models", "shipped")
    files = {file.relative_to(ROOT) for file in (ROOT / shipped).rglob("*") if file.is_file()}
    assert shipped / "minitune-base" / "README.md" in files
    assert {file.relative_to(built) for file in (built / shipped).rglob("*") if file.is_file()} == files


def test_kernels_are_found_from_a_wheel_and_from_a_bare_checkout(built):
    for place, kernels in ((built, built / "minitune" / "kernels"), (ROOT, ROOT / "kernels")):
        module, found, length = said(WHERE, place)
        assert Path(module).parent == place / "minitune" and Path(found) == kernels and int(length) > 10_000


def test_without_the_folder_the_references_run(built, tmp_path):
    (tmp_path / "minitune").mkdir()
    for part in (built / "minitune").iterdir():
        if part.name != "kernels":
            (tmp_path / "minitune" / part.name).symlink_to(part)
    assert said("from minitune import backend; print(backend.twins_in('cuda', 'layer_norm'))", tmp_path) == ["None"]
