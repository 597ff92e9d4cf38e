"""The curve of a search for a rate holds what was measured, marks the suggestion, and is not flattened by a lost run."""

import pytest

from minitune.show import rate_finding
from minitune.train import RateFinding

RATES, LOSSES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0], [3.0, 2.9, 2.0, 1.5, 40.0]


def test_the_losses_stand_over_their_rates_and_the_suggestion_is_marked(tmp_path):
    figure = RateFinding(RATES, LOSSES, 1e-2).plot(tmp_path / "new" / "rates.png", "a search")
    (axes,) = figure.axes
    curve, mark = axes.lines
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == (RATES, LOSSES)
    assert set(mark.get_xdata()) == {1e-2} and mark.get_label() == "suggested: 0.01"
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_title()) == ("log", "learning rate", "a search")
    low, high = axes.get_ylim()
    assert low < 1.5 and 3.0 < high < 4.0       # how far the lost run rose flattens nothing
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["rates.png"]


def test_losses_that_do_not_fall_are_drawn_too():
    (axes,) = rate_finding([0.1, 0.2], [1.0, 2.0], 0.1).axes
    assert axes.get_ylim()[1] >= 2.0


@pytest.mark.parametrize("rates, losses", [([], []), ([0.1], []), ([0.1], [1.0, 2.0])])
def test_what_makes_no_curve_is_told(rates, losses):
    with pytest.raises(ValueError, match=f"as many losses as rates, got {len(losses)} and {len(rates)}"):
        rate_finding(rates, losses, 0.1)
