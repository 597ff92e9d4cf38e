"""The examples in docstrings do what they show."""

import doctest
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import minitune as mt

ROOT = Path(mt.__file__).parent
PLACES = ["tensor.py", "backend.py", "gradcheck.py", "data/*.py", "data/sources/*.py", "ops/*.py", "nn/*.py", "optim/*.py",
          "models/*.py", "formats/*.py", "tune/*.py", "train/*.py"]
MODULES = sorted(".".join(["minitune", *file.relative_to(ROOT).with_suffix("").parts])
                 for place in PLACES for file in ROOT.glob(place) if file.stem != "__init__")


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name):
    module = import_module(name)
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(verbose=False)
    for example in finder.find(module, extraglobs={"np": np}):
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0


def test_there_are_examples():
    find = doctest.DocTestFinder().find
    counts = {name: sum(len(example.examples) for example in find(import_module(name))) for name in MODULES}
    assert sum(counts.values()) >= 15 and counts["minitune.tensor"] and counts["minitune.gradcheck"]
