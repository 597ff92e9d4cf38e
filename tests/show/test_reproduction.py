"""The paper's values stand on the left, ours with their intervals on the right, row by row."""

import pytest

from minitune.show.reproduction import paper_and_here

ROWS = [("scratch", 9.0, (30.0, 28.0, 33.0), "holds"), ("full", 6.0, (20.0, 19.0, 21.0), "reversed"),
        ("whole", 5.0, (22.0, 20.0, 23.0), "")]


def test_every_row_is_drawn_on_both_sides_under_its_name(tmp_path):
    figure = paper_and_here(ROWS, ("paper, %", "here, %"), "title", tmp_path / "new" / "table.png")
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["scratch", "full", "whole"]
    assert list(left.lines[0].get_xdata()) == [9, 6, 5] and list(left.lines[0].get_ydata()) == [0, 1, 2]
    assert left.get_ylim()[0] > left.get_ylim()[1]                      # the first row on top
    drawn = {container.get_label(): container.lines for container in right.containers}
    line, _, (bars,) = drawn["holds"]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([30], [0])
    assert [tuple(end) for end in bars.get_segments()[0]] == [(28, 0), (33, 0)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["holds", "reversed"]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["table.png"]


@pytest.mark.parametrize("rows", [[], [("whole", 5.0, (22.0, 20.0, 23.0), "fails")]])
def test_no_rows_and_unknown_verdicts_are_refused(rows):
    with pytest.raises(ValueError, match="paper_and_here: expected at least one row, and verdicts of"):
        paper_and_here(rows, ("paper", "here"))
