"""The notebooks run from top to bottom without an error, and are committed without outputs."""

import json
import re
import sys
from pathlib import Path

import pytest

from minitune.twins.cuda import emulation

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
NEEDS = {"01": ("nbclient", "ipykernel", "matplotlib"), "02": ("nbclient", "ipykernel", "matplotlib", "sklearn"),
         "07": ("nbclient", "ipykernel", "matplotlib", "ml_dtypes")}

every_notebook = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 2


@every_notebook
def test_is_committed_clean(file):
    notebook = json.loads(file.read_text(encoding="utf-8"))
    cells = notebook["cells"]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        assert not cell.get("outputs"), f"{cell['id']} has outputs: clear them before you commit"
        assert cell.get("execution_count") is None
        absolute = re.search(r"""["'](/[a-z]|[A-Z]:\\)""", "".join(cell["source"]))
        assert not absolute, f"{cell['id']} names a place on one machine"


@pytest.fixture
def own_kernel(tmp_path, monkeypatch):
    """A kernel "python3" that is the Python of this test, and no settings of the user: what an activated environment or
    ~/.jupyter holds must not decide what is tested."""
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
        (tmp_path / name.lower()).mkdir()


# jupyter_core 5 announces a change of its folders with every import; the fixture above names all folders itself.
@pytest.mark.filterwarnings("ignore:Jupyter is migrating its paths:DeprecationWarning")
@every_notebook
def test_runs(file, tmp_path, own_kernel):
    if file.stem.startswith("07") and emulation.compiler() is None:
        pytest.skip("lesson 7 compiles kernels: it needs g++")
    for package in NEEDS.get(file.stem[:2], NEEDS["02"]):
        pytest.importorskip(package, reason=f'notebooks need {package}: pip install "minitune[test]"')
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(file, as_version=4)
    work = tmp_path / "work"
    work.mkdir()
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(work)}})
    client.execute()                            # raises CellExecutionError, with the cell and its traceback

    outputs = [(cell["id"], output) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [name for name, output in outputs if output.output_type == "error"]
    assert [name for name, output in outputs if "image/png" in output.get("data", {})], "no picture was drawn"
    # A reader should meet no warning. tqdm's advice to install ipywidgets depends on the environment alone.
    told = [(name, line) for name, output in outputs if output.get("name") == "stderr" for line in output.text.splitlines()]
    assert not [(name, line) for name, line in told if "IProgress" not in line and "autonotebook" not in line]
    assert not list(work.iterdir()), "a notebook left files in the working directory"
