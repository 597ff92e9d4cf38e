"""The pages on models can be followed from the top: their Python runs, and prints what the text after it says, figures aside.

Shown only: console, words that a model chose, and what scripts measured, in blocks of no language. Pages on tuning methods
print counts, which are compared whole, and their index says as many parameters as train.
"""

import re
from pathlib import Path

import pytest
from test_howto import blocks, comparable, load_once, python

from minitune import tune
from minitune.experiments import plan
from minitune.experiments.tuning_methods import KNOWN
from minitune.twins.cuda import emulation

DOCS = Path(__file__).parent.parent / "docs"
METHODS = sorted((DOCS / "methods").glob("*.md"))
RUN = [f"methods/{page.stem}" for page in METHODS if "python" in dict(blocks(page))]


def counted(line):
    """A line in which every number with a point or an exponent is #, and whole numbers stand as they are."""
    return " ".join(re.sub(r"\d[\d,]*\.\d+(e-\d+)?|\d+e-\d+", "#", line).split())


@pytest.mark.parametrize("page", ["transformer_from_its_parts", "bert_and_gpt", "image_model", "gpu", "ulmfit", "lora_or_full",
                                  "plan", *RUN])
def test_a_page_runs_as_it_stands(page, tmp_path, monkeypatch):
    for package in {"image_model": ("sklearn", "matplotlib"), "gpu": ("ml_dtypes",), "ulmfit": ("matplotlib",),
                    "plan": ("numba",), "methods/README": ("numba",)}.get(page, ()):
        pytest.importorskip(package, reason=f'the page needs {package}: pip install "minitune[test]"')
    if page == "gpu" and emulation.compiler() is None:
        pytest.skip("the page needs g++, which is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minitune.data.load", load_once)
    names, printed, seen = {"__name__": page}, [], counted if page in RUN else comparable
    parts = blocks(DOCS / f"{page}.md")
    assert {"python", "text"} <= {language for language, _ in parts} <= {"python", "text", "console", ""}
    for language, content in parts:
        if language == "python":
            printed = [seen(line) for line in python(content, names).splitlines()]
        elif language == "text":
            assert [seen(line) for line in content.splitlines()] == printed


def index():
    """(page, name in `compare` or "", what applies it, parameters of minitune-base) of each row of the methods' index."""
    text = (DOCS / "methods" / "README.md").read_text(encoding="utf-8")
    cells = [line.strip("| ").split(" | ") for line in re.sub(r"\| (?=\|)", "|  ", text).splitlines() if line.startswith("| [")]
    return [(re.search(r"\((.+)\)", row[0])[1], row[1].strip("` "), row[2], row[5]) for row in cells]


def test_every_method_has_its_page_in_the_index():
    rows = index()
    assert {page for page, *_ in rows} == {page.name for page in METHODS} - {"README.md"}
    assert sorted(name for _, name, *_ in rows if name) == sorted(KNOWN)
    configs = {name for name in tune.__all__ if name.endswith("Config")}
    assert configs == {name for *_, applied, _ in rows for name in re.findall(r"\w+Config", applied)}


def test_the_index_says_how_many_parameters_train_beside_a_head():
    for page, name, _, count in index():
        if name and name != "few-shot":
            found = plan("minitune-base", name, batch_size=1, block_size=8, labels=2, rates=False).trainable
            assert f"{found - 2 * 256:,}" == count, page


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_links_of_the_methods_pages_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    assert links and not [link for link in links if "://" not in link and not (page.parent / link).exists()]
