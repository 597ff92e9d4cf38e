"""The heat map holds every drift, the curves every singular value, the maps every similarity."""

import numpy as np
import pytest

from minitune.show import drift, similarity_maps, singular_values

pytest.importorskip("matplotlib", reason='plots need matplotlib: pip install "minitune[test]"')
ROWS = [("", "token_embedding", 0.5), ("blocks.0", "mlp.up", 0.01), ("blocks.0", "mlp.down", 0.02),
        ("blocks.1", "mlp.up", 0.03)]


def test_every_drift_stands_in_its_cell_in_percent(tmp_path):
    axes, _ = drift(ROWS, tmp_path / "new" / "drift.png", "moved").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["blocks.0", "blocks.1", "outside the blocks"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["mlp\nup", "mlp\ndown", "token_embedding"]
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), [[1, 2, np.nan], [3, np.nan, np.nan],
                                                                               [np.nan, np.nan, 50]])
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "1"), ((1, 0), "2"), ((0, 1), "3"), ((2, 2), "50")}
    assert axes.get_title() == "moved" and [file.name for file in (tmp_path / "new").iterdir()] == ["drift.png"]


def test_every_singular_value_is_on_the_line_of_its_block():
    values = {"blocks.0": np.array([3.0, 2, 1]), "blocks.1": np.array([0.5]), "blocks.2": np.zeros(0)}
    figure = singular_values([(block, "mlp.up", s) for block, s in values.items()] + [("", "token_embedding", np.ones(20))])
    up, tokens = figure.axes
    assert (up.get_title(), tokens.get_title()) == ("mlp.up", "token_embedding")
    assert [line.get_ydata().tolist() for line in up.lines] == [[3, 2, 1], [0.5]]       # nothing of what did not change
    assert up.lines[0].get_xdata().tolist() == [1, 2, 3] and (up.get_xscale(), up.get_yscale()) == ("log", "log")
    assert len({line.get_color() for line in up.lines}) == 2


def test_every_map_is_drawn_from_zero_to_one_and_of_many_some_are_chosen():
    phi = np.array([[0.1, 0.4], [np.nan, np.nan]])
    axes = similarity_maps({"blocks.0.mlp.up": phi}).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), phi)
    assert axes.images[0].get_clim() == (0, 1) and axes.get_title() == "blocks.0.mlp.up"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2"]
    titles = [axes.get_title() for axes in similarity_maps({f"blocks.{i}": phi for i in range(20)}, most=5).axes]
    assert [title for title in titles if title] == ["blocks.0", "blocks.5", "blocks.10", "blocks.14", "blocks.19"]


@pytest.mark.parametrize("draw, nothing, said", [
    (drift, [], "drift: expected at least one row"), (singular_values, [("", "x", np.zeros(0))], "Are both models the same"),
    (similarity_maps, {}, "similarity_maps: expected at least one map")])
def test_what_draws_nothing_is_told(draw, nothing, said):
    with pytest.raises(ValueError, match=said):
        draw(nothing)
