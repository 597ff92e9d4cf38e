"""comparison_panels: every method looks alike in every panel, and what costs nothing has its line."""

import pytest

pytest.importorskip("matplotlib", reason="the plots need matplotlib")

from minitune.show.comparison import comparison_panels

PANELS = {"100 labels": {"full": ((1e6, 1e6, 1e6), (20, 18, 23)), "lora": ((1e4, 1e4, 1e4), (21, 20, 22)),
                         "few-shot": ((0, 0, 0), (50, 45, 55))},
          "1,000 labels": {"lora": ((1e4, 1e4, 1e4), (11, 10, 12))}}


def test_panels_share_axes_and_the_legend_names_each_method_once(tmp_path):
    figure = comparison_panels(PANELS, "parameters", "error", "a title", tmp_path / "there/panels.png", log_x=True)
    assert (tmp_path / "there/panels.png").read_bytes().startswith(b"\x89PNG")
    assert [axes.get_title() for axes in figure.axes] == list(PANELS)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["full", "lora", "few-shot"]
    left, right = figure.axes
    assert left.get_xscale() == "log" and left.get_xlim() == right.get_xlim() and left.get_ylim() == right.get_ylim()
    colours = [axes.containers[at].lines[0].get_color() for axes, at in ((left, 1), (right, 0))]
    assert colours[0] == colours[1]


def test_a_point_at_0_of_a_logarithmic_axis_is_a_line_across():
    figure = comparison_panels(PANELS, "x", "y", log_x=True)
    across = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert len(across) == 1 and list(across[0].get_ydata()) == [50, 50]
    assert not any(line.get_linestyle() == "--" for line in comparison_panels(PANELS, "x", "y").axes[0].lines)


def test_points_of_one_cost_stand_beside_each_other_and_intervals_have_their_ends():
    panels = {"": {name: ((100, 100, 100), (value, value - 1, value + 2)) for name, value in (("a", 5), ("b", 6), ("c", 7))}}
    axes, = comparison_panels(panels, "x", "y", log_x=True).axes
    places = [container.lines[0].get_xdata()[0] for container in axes.containers]
    assert places[0] == 100 and places[0] < places[1] < places[2] < 150
    low, high = (container.get_ydata()[0] for container in axes.containers[0].lines[1][2:4])
    assert (low, high) == (4, 7)


def test_a_symmetric_axis_shows_both_signs():
    panels = {"": {"up": ((1, 1, 1), (0.5, 0.4, 0.6)), "down": ((2, 2, 2), (-0.001, -0.002, 0.0))}}
    axes, = comparison_panels(panels, "x", "y", symmetric_log_y=True).axes
    assert axes.get_yscale() == "symlog" and axes.get_ylim()[0] < 0 < axes.get_ylim()[1]


def test_nothing_to_show():
    with pytest.raises(ValueError, match="at least one panel with a point"):
        comparison_panels({"": {}}, "x", "y")
