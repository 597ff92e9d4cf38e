"""The core stays a day's reading: short functions, and few lines from backend to train."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "minitune"
CORE = ["backend.py", "tensor.py", "operators.py", "gradcheck.py", "ops", "nn", "optim", "data", "models", "tune", "train"]
# What a GPT does without: other models and heads, their folders, the operations, layers and sets that these alone use, the
# many figures that a classifier may be judged by, the tricks of ULMFiT, and the tuning methods beside LoRA.
OTHERS = {
    "models": ["awd_lstm", "bert", "cnn", "image_backbone", "llama", "loading", "masked_language_model", "other_heads", "vit"],
    "ops": ["conv2d", "erf", "lstm", "pooling", "rms_norm", "rope", "swiglu"], "nn": ["convolution", "lstm"],
    "data": ["image_set", "images", "labelled_sets", "masking"],
    "tune": ["adapted", "adapters", "bitfit", "dora", "extraction", "houlsby", "ia3", "installing", "lora_layers", "lora_plus",
             "merged", "nf4", "pissa", "prefix", "prompt", "rates", "registry", "saving", "standardized", "top_layers",
             "unfreezing", "virtual_tokens", "vocabulary"],
    "train": ["callbacks", "lr_find", "metrics"],
}


MENTION = ["__init__", "elementwise", "dataset"]        # what offers the others beside the core's own


def _files(names):
    """The core: all that training a GPT and tuning it takes. How a CSV, an archive or another library's folder is read is
    none of it (data/sources, formats), nor are cores.py and twins/, which are there for speed alone, and the packages'
    `__init__`, which are lists of names."""
    for name in names:
        files = sorted((ROOT / name).rglob("*.py")) if (ROOT / name).is_dir() else [ROOT / name]
        yield from (file for file in files if "sources" not in file.parts
                    and file.stem not in ("__init__", *OTHERS.get(name, ())))


def _lines(file):
    """How many lines of a file are neither empty nor comment nor docstring."""
    text = file.read_text(encoding="utf-8")
    prose = set(_prose(ast.parse(text)))
    return sum(1 for number, line in enumerate(text.splitlines(), 1)
               if line.strip() and not line.strip().startswith("#") and number not in prose)


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


def test_the_core_from_backend_to_train_stays_under_3420_lines_without_prose():
    assert sum(_lines(file) for file in _files(CORE)) < 3420


@pytest.mark.parametrize("file", [ROOT / part / f"{name}.py" for part, names in OTHERS.items() for name in names],
                         ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_other_model_is_a_short_file_that_the_core_does_not_need(file):
    assert _lines(file) < 150
    core = [other for other in _files(CORE) if other.stem not in MENTION]
    assert not any(f"from .{file.stem} import" in other.read_text(encoding="utf-8") for other in core
                   if other.parent == file.parent)


def test_every_public_function_and_class_has_a_docstring():
    bare = [f"{file.name}:{node.name}" for file in ROOT.rglob("*.py") if "twins" not in file.parts
            for node in ast.parse(file.read_text(encoding="utf-8")).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            and not node.name.endswith(("_forward", "_backward")) and ast.get_docstring(node) is None]
    assert not bare
