"""pydocs: made from this Python's own text, the same every time, with nothing of test in the rest."""

import ast
import time

import numpy as np
import pytest

from minitune.data.dataset import nested_subsets
from minitune.data.sources import pydocs
from minitune.data.sources.load import load
from minitune.data.sources.pydocs import NearDuplicates


@pytest.fixture(scope="module")
def dataset():
    return load("pydocs")


def test_sizes(dataset):
    assert dataset.labels == ("internet", "concurrency", "mathematics", "files")
    areas = len(dataset.labels)
    assert np.bincount(dataset.valid.labels).tolist() == [pydocs.VALID_PER_AREA] * areas
    assert np.bincount(dataset.test.labels).tolist() == [pydocs.TEST_PER_AREA] * areas
    assert list(nested_subsets(dataset.train.labels, [16, 64, 256], seed=0)) == [16, 64, 256]
    assert sum(map(len, dataset.unlabelled.texts)) > 1_400_000
    assert dataset.version.split()[1] in dataset.citation


def test_every_module_named_is_in_one_area():
    modules = " ".join(pydocs.AREAS.values()).split()
    assert len(modules) == len(set(modules))


def test_held_out_texts_are_nowhere_else(dataset):
    held_out = dataset.valid.texts + dataset.test.texts
    seen = NearDuplicates(held_out)
    assert not [text for text in dataset.train.texts if text in seen]
    everything = "\n\n".join(dataset.unlabelled.texts)
    assert not [text for text in held_out if text in everything]
    test = NearDuplicates(dataset.test.texts)
    assert not [text for text in dataset.valid.texts if text in test]


def test_texts_differ_and_say_something(dataset):
    labelled = dataset.train.texts + dataset.valid.texts + dataset.test.texts
    assert len(labelled) == len(set(labelled))
    assert min(len(text.split()) for text in labelled) > 3
    assert len(dataset.unlabelled.texts) == len(set(dataset.unlabelled.texts))


def test_the_same_every_time_and_soon(dataset):
    start = time.process_time()
    assert load("pydocs").fingerprint == dataset.fingerprint
    assert time.process_time() - start < 5


def test_a_class_is_one_group_and_a_function_another():
    source = '''
"""Module."""
class Outer:
    """Class."""
    def method(self):
        """Method."""
    class Inner:
        """Inner."""
if True:
    async def function():
        """
        Function,
            indented.
        """
        def local(): "Local."
'''
    assert list(pydocs._docstrings(ast.parse(source))) == [
        ("", "Module."), ("Outer", "Class."), ("Outer", "Method."), ("Outer", "Inner."),
        ("function", "Function,\n    indented."), ("function", "Local."),
    ]  # fmt: skip


def test_passages_keep_every_paragraph_whole():
    paragraphs = ["a" * 150, "b" * 150, "c" * 150, "d" * 900, "e" * 10]
    cut = pydocs.passages("\n\n".join(paragraphs))
    assert "\n\n".join(cut).split("\n\n") == paragraphs
    assert [len(passage) for passage in cut] == [302, 150, 900, 10]


def test_near_duplicates():
    seen = NearDuplicates(["Close the connection and wait until every reply has been read."])
    assert "  close the CONNECTION, and wait until every reply\nhas been read!" in seen
    assert "Close the connection and wait until every reply has been sent." in seen
    assert "Close the connection and forget every reply that has been read." not in seen
    assert "First of all: close the connection and wait until every reply has been read. " + "Then go on. " * 20 in seen
    assert "" not in seen


def test_no_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="comes without its sources"):
        load("pydocs")


def test_ipython_additions_to_builtins_do_not_matter(monkeypatch):
    before = pydocs._builtin_docstrings()
    monkeypatch.setattr("builtins.display", lambda: "a function of IPython", raising=False)
    assert pydocs._builtin_docstrings() == before
