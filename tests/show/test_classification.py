"""The confusion matrix and the reliability diagram show the numbers they were given."""

import sys

import numpy as np
import pytest

from minitune.show import classification

BINS = [(0.0, 0.5, 0, np.nan, np.nan), (0.5, 0.9, 1200, 0.7, 0.6), (0.9, 1.0, 4, 0.95, 0.0)]


def axes(confusion, names, file=None):
    return classification(np.array(confusion), names, BINS, 0.1234, file).axes


def test_the_matrix_is_coloured_by_shares_and_written_in_counts(tmp_path):
    left, _ = axes([[1500, 500, 0], [0, 0, 0], [1, 2, 1]], ["a", "b", "c"], tmp_path / "new" / "picture.svg")
    np.testing.assert_array_equal(left.images[0].get_array(), [[0.75, 0.25, 0], [0, 0, 0], [0.25, 0.5, 0.25]])
    assert [text.get_text() for text in left.texts] == ["1,500", "500", "0", "0", "0", "0", "1", "2", "1"]
    assert [text.get_position() for text in left.texts][1] == (1, 0)       # (column, row): the true class goes down
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["a", "b", "c"]
    assert (left.get_xlabel(), left.get_ylabel()) == ("predicted", "true")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["picture.svg"]


def test_the_reliability_diagram_has_a_bar_for_each_bin_that_has_rows():
    _, right = axes([[1, 0], [0, 1]], ["a", "b"])
    bars = [(bar.get_x(), round(bar.get_width(), 9), bar.get_height()) for bar in right.patches]
    assert bars == [(0.5, 0.4, 0.6), (0.9, 0.1, 0)]
    assert [text.get_text() for text in right.texts] == ["1,200", "4"] and "0.123" in right.get_title()
    assert [list(values) for values in right.lines[0].get_data()] == [[0, 1], [0, 1]]
    assert right.get_xlabel().startswith("confidence") and right.get_ylabel() == "accuracy"


@pytest.mark.parametrize("classes, counts, names", [(12, 144, 12), (13, 0, 13), (41, 0, 0)])
def test_many_classes_are_shown_without_counts_and_very_many_without_names(classes, counts, names):
    left, _ = axes(np.eye(classes, dtype=int), [f"name {i}" for i in range(classes)])
    assert len(left.texts) == counts
    assert sum(tick.get_text().startswith("name") for tick in left.get_xticklabels()) == names


def test_long_names_are_shortened_and_turned_and_dollars_are_no_formulas(tmp_path):
    left, _ = axes(np.eye(3, dtype=int), ["a very long name of a class", r"$\nothing$", "c"], tmp_path / "drawn.png")
    first, second, _ = left.get_xticklabels()
    assert first.get_text() == "a very lo… class" and second.get_text() == r"$\nothing$" and first.get_rotation() == 45
    short, _ = axes([[1, 0], [0, 1]], ["no", "yes"])
    assert short.get_xticklabels()[0].get_rotation() == 0


def test_a_figure_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def breaks(figure, file, **_):
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", breaks)
    (tmp_path / "old.png").write_bytes(b"old")
    with pytest.raises(OSError, match="no space"):
        axes([[1, 0], [0, 1]], ["a", "b"], tmp_path / "old.png")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("old.png", b"old")]


def test_without_matplotlib_the_repair_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "minitune\[plots\]"'):
        axes([[1, 0], [0, 1]], ["a", "b"])
