"""Curves hold what was given, and are written whole."""

import pytest

from minitune.show import interval_curves


def test_every_curve_is_drawn_with_its_interval(tmp_path):
    figure = interval_curves({"a": [(64, 2, 1, 3), (16, 4, 3, 5)], "b": [(16, 1, 1, 1)]}, "labels", "error", "title",
                             tmp_path / "new" / "curve.png")
    axes = figure.axes[0]
    a, b = axes.containers
    assert [container.get_label() for container in (a, b)] == ["a", "b"]
    line, _, (bars,) = a.lines
    assert list(line.get_xdata()) == pytest.approx([16, 64], rel=0.1) and list(line.get_ydata()) == [4, 2]
    assert [tuple(segment[:, 1]) for segment in bars.get_segments()] == [(3, 5), (1, 3)]
    assert axes.get_xscale() == "log" and [tick.get_text() for tick in axes.get_xticklabels()] == ["16", "64"]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["curve.png"]


def test_an_unknown_ending_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(ValueError, match="not supported"):
        interval_curves({"a": [(1, 1, 1, 1)]}, "x", "y", file=tmp_path / "curve.nothing")
    assert not list(tmp_path.iterdir())
