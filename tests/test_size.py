"""The core stays a day's reading: short functions, and few lines from backend to train."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "minitune"
CORE = ["backend.py", "tensor.py", "operators.py", "gradcheck.py", "ops", "nn", "formats", "optim", "data", "models", "tune",
        "train"]


def _files(names):
    """data/sources is no core: nobody needs to read how a CSV or an archive is read to understand training. Nor are
    cores.py and twins/, which are there for speed alone."""
    for name in names:
        files = sorted((ROOT / name).rglob("*.py")) if (ROOT / name).is_dir() else [ROOT / name]
        yield from (file for file in files if "sources" not in file.parts)


def _prose(tree):
    """The line numbers of docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            yield from range(node.body[0].lineno, node.body[0].end_lineno + 1)


def test_no_function_is_longer_than_about_forty_lines():
    long = []
    for file in ROOT.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        prose = set(_prose(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                lines = [n for n in range(node.lineno, node.end_lineno + 1) if n not in prose]
                if len(lines) > 44:
                    long.append(f"{file.name}:{node.name} {len(lines)}")
    assert not long


def test_backend_to_train_stays_under_3500_lines_without_prose():
    lines = 0
    for file in _files(CORE):
        text = file.read_text(encoding="utf-8")
        prose = set(_prose(ast.parse(text)))
        lines += sum(1 for number, line in enumerate(text.splitlines(), 1)
                     if line.strip() and not line.strip().startswith("#") and number not in prose)
    assert lines < 3500


def test_every_public_function_and_class_has_a_docstring():
    bare = [f"{file.name}:{node.name}" for file in ROOT.rglob("*.py") if "twins" not in file.parts
            for node in ast.parse(file.read_text(encoding="utf-8")).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            and not node.name.endswith(("_forward", "_backward")) and ast.get_docstring(node) is None]
    assert not bare
