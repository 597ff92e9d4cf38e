"""The plot of rates holds every rate of every layer group for as long as it is one, and a bar where a group is frozen."""

import pytest

from minitune import models, tune
from minitune.optim import AdamW
from minitune.show import rate_curves
from minitune.show.schedules import FROZEN

matplotlib = pytest.importorskip("matplotlib", reason='plots need matplotlib: pip install "minitune[test]"')


def planned(steps=12, every=2, maker=tune.gradual):
    model = models.Classifier(models.GPT(models.GPTConfig(20, 8, 2, 2, 16)), ["no", "yes"])
    return tune.rates_by_step(model, AdamW(tune.discriminative(model)), steps, 1e-3, "slanted_triangular", maker(model, every))


def drawn(axes):
    """{colour: {step: rate}} of the lines."""
    curves = {}
    for line in axes.lines:
        steps, rates = line.get_data()
        assert line.get_drawstyle() == "steps-post" and rates[-1] == rates[-2]      # a rate holds until the next step
        curves.setdefault(line.get_color(), {}).update(zip(steps[:-1], rates[:-1]))
    return curves


def bars(axes):
    """{row: [(first step, steps, whether frozen)]}"""
    rows = {}
    for bar in axes.patches:
        frozen = bar.get_facecolor() == matplotlib.colors.to_rgba(FROZEN)
        assert (bar.get_hatch() is not None) == frozen
        rows.setdefault(round(bar.get_y() + bar.get_height() / 2), []).append((bar.get_x(), bar.get_width(), frozen))
    return rows


@pytest.mark.parametrize("every, maker", [(2, tune.gradual), (1, tune.chain_thaw), (2, tune.all_at_once)])
def test_rates_are_lines_and_what_is_frozen_is_a_bar(every, maker, tmp_path):
    rows = planned(12, every, maker if maker is not tune.all_at_once else lambda model, every: maker(model))
    names = list(rows[0])[1:]
    figure = rate_curves(rows, tmp_path / "new" / "rates.png", "a plan")
    upper, lower = figure.axes
    curves, stretches = list(drawn(upper).values()), bars(lower)
    assert sorted(curves, key=str) == sorted(({row["step"]: row[name] for row in rows if row[name]} for name in names), key=str)
    for i, name in enumerate(names):
        frozen = {step for start, length, is_frozen in stretches[i] if is_frozen for step in range(start, start + length)}
        assert frozen == {row["step"] for row in rows if not row[name]}
        assert sum(length for _, length, _ in stretches[i]) == len(rows)
    assert [label.get_text() for label in lower.get_yticklabels()] == names
    assert (upper.get_yscale(), upper.get_ylabel(), upper.get_title()) == ("log", "learning rate", "a plan")
    assert (lower.get_xlabel(), lower.get_ylabel()) == ("step", "layer group")
    assert upper.get_xlim() == lower.get_xlim() == (0, 12)
    assert lower.get_title(loc="right") == ("" if maker is tune.all_at_once else "hatched: frozen")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["rates.png"]


def test_line_and_bar_of_a_group_have_one_colour():
    upper, lower = rate_curves(planned()).axes
    colours = {tuple(bar.get_facecolor()) for bar in lower.patches} - {matplotlib.colors.to_rgba(FROZEN)}
    assert {tuple(line.get_color()) for line in upper.lines} == colours and len(colours) == 4


def test_one_step_of_one_group_is_enough_and_rows_may_be_apart():
    upper, lower = rate_curves([{"step": 7, "head": 0.1}]).axes
    assert drawn(upper) == {upper.lines[0].get_color(): {7: 0.1}} and bars(lower) == {0: [(7, 1, False)]}
    _, lower = rate_curves([{"step": 0, "head": 0.0}, {"step": 50, "head": 0.1}, {"step": 100, "head": 0.2}]).axes
    assert bars(lower) == {0: [(0, 50, True), (50, 51, False)]}


@pytest.mark.parametrize("rows", [[], [{"step": 1}], [{"head": 0.1}], [{"step": 1, "head": 0.0}],
                                  [{"step": 1, "head": 0.1}, {"step": 2, "blocks.0": 0.1}]])
def test_rows_that_draw_nothing_are_told(rows):
    with pytest.raises(ValueError, match=f"rate_curves: expected rows with step and the same .*got {len(rows)} rows of"):
        rate_curves(rows)
