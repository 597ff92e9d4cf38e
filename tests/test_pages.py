"""The pages on models can be followed from the top: their Python runs, and prints what the text after it says, figures aside.

Shown only: console, words that a model chose, and what scripts measured, in blocks of no language.
"""

from pathlib import Path

import pytest
from test_howto import blocks, comparable, load_once, python

from minitune.twins.cuda import emulation

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("page", ["transformer_from_its_parts", "bert_and_gpt", "image_model", "gpu", "ulmfit", "lora_or_full",
                                  "plan"])
def test_a_page_runs_as_it_stands(page, tmp_path, monkeypatch):
    for package in {"image_model": ("sklearn", "matplotlib"), "gpu": ("ml_dtypes",), "ulmfit": ("matplotlib",),
                    "plan": ("numba",)}.get(page, ()):
        pytest.importorskip(package, reason=f'the page needs {package}: pip install "minitune[test]"')
    if page == "gpu" and emulation.compiler() is None:
        pytest.skip("the page needs g++, which is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minitune.data.load", load_once)
    names, printed = {"__name__": page}, []
    parts = blocks(DOCS / f"{page}.md")
    assert {"python", "text"} <= {language for language, _ in parts} <= {"python", "text", "console", ""}
    for language, content in parts:
        if language == "python":
            printed = [comparable(line) for line in python(content, names).splitlines()]
        elif language == "text":
            assert [comparable(line) for line in content.splitlines()] == printed
