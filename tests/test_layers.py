"""The house stands as it was drawn: imports go one way, and without twins everything still runs."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minitune

ROOT = Path(minitune.__file__).parent
# Who may import whom: only what stands in an earlier line, or a part of the same folder.
ORDER = [{"cores", "devices"}, {"backend"}, {"tensor"}, {"ops"}, {"gradcheck", "operators", "show"}, {"nn"}, {"formats"},
         {"optim", "data"}, {"models"}, {"tune"}, {"train"}, {"experiments"}, {"cli"}]
COMMON = ["backend", "cores", "devices"]        # what twins may import beside files of their device
FILES = sorted(ROOT.rglob("*.py"))
TRAINING_STEP = """
import numpy as np, minitune as mt
x, w, b = (mt.Tensor(np.ones(s, np.float32), requires_grad=True) for s in ((2, 3), (3, 3), (3,)))
loss = mt.ops.gelu(mt.ops.linear(mt.ops.layer_norm(x, b, b), w, b)).sum()
loss.backward()
assert w.grad.shape == (3, 3) and np.isfinite(w.grad).all()
print("trained", mt.__file__)
"""


def part_of(file: Path) -> str:
    """The part of the house a file belongs to: "ops" for minitune/ops/gelu.py, "tensor" for minitune/tensor.py."""
    return file.relative_to(ROOT).with_suffix("").parts[0]


def imports_of(file: Path) -> set[str]:
    """Absolute names of all that a file imports, at the top or inside functions; relative imports are resolved."""
    package = ("minitune", *file.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])]) if node.level \
                else node.module or ""
            found |= {f"{base}.{alias.name}" for alias in node.names} if base == "minitune" else {base}
    return found


def names_imported_by_text(file: Path) -> set[str]:
    """The names in import_module("...")."""
    return {node.args[0].value for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module")
            and node.args and isinstance(node.args[0], ast.Constant)}


def test_every_file_belongs_to_a_part_of_the_house():
    assert {part_of(file) for file in FILES} <= {"__init__", "__main__", "twins", *set().union(*ORDER)}


@pytest.mark.parametrize("file", [f for f in FILES if part_of(f) not in ("__init__", "__main__", "twins")],
                         ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file):
    part = part_of(file)
    (rank,) = (i for i, parts in enumerate(ORDER) if part in parts)
    allowed = {part, "__version__", *set().union(*ORDER[:rank])}
    used = {name.split(".")[1] for name in imports_of(file) if name.startswith("minitune.")}
    assert used <= allowed


@pytest.mark.parametrize("file", [f for f in FILES if part_of(f) == "twins"],
                         ids=lambda file: str(file.relative_to(ROOT)))
def test_twins_import_cores_devices_backend_and_files_of_their_own_device_only(file):
    device = "minitune." + ".".join(file.relative_to(ROOT).parts[:-1])
    for name in imports_of(file):
        assert not name.startswith("minitune") or name.startswith((*(f"minitune.{part}" for part in COMMON), device))


def test_only_backend_reaches_for_twins_and_only_devices_for_cupy():
    assert ROOT / "devices.py" in FILES and "cupy" in names_imported_by_text(ROOT / "devices.py")
    for file in FILES:
        imported = imports_of(file)
        if file != ROOT / "devices.py":
            assert not any(name.split(".")[0] == "cupy" for name in imported | names_imported_by_text(file)), file
            assert 'import_module("cupy")' not in file.read_text(encoding="utf-8"), file
        if part_of(file) != "twins":
            assert not any(name.startswith("minitune.twins") for name in imported), file


def test_matplotlib_is_imported_in_show_only_and_only_where_it_is_used():
    for file in FILES:
        if part_of(file) != "show":
            assert not any(name.split(".")[0] == "matplotlib" for name in imports_of(file)), file


def test_optional_packages_are_not_imported_by_import_minitune():
    optional = {"torch", "transformers", "cupy", "numba", "matplotlib", "sklearn"}
    code = f"import sys, minitune; print(sorted({optional} & set(sys.modules)))"
    assert run_python(code, ROOT.parent).strip() == "[]"


def test_without_twins_and_kernels_everything_still_runs(tmp_path):
    shutil.copytree(ROOT, tmp_path / "minitune", ignore=shutil.ignore_patterns("twins", "kernels", "__pycache__"))
    assert not (tmp_path / "minitune" / "twins").exists()
    output = run_python(TRAINING_STEP, tmp_path)
    assert output.startswith("trained") and str(tmp_path) in output


def run_python(code: str, folder: Path) -> str:
    """What a fresh Python prints, with warnings as errors and minitune taken from `folder`."""
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], cwd=folder, text=True, timeout=120,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(folder)}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_test_sees_relative_and_absolute_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "ops").mkdir()
    file = tmp_path / "ops" / "gelu.py"
    file.write_text("from .. import nn\nfrom ..tensor import apply\nfrom . import softmax\nimport minitune.train as t\n"
                    "from minitune import tune\ndef f():\n    from ..models.gpt import GPT\n", encoding="utf-8")
    assert imports_of(file) == {"minitune.nn", "minitune.tensor", "minitune.ops", "minitune.train", "minitune.tune",
                                "minitune.models.gpt"}
