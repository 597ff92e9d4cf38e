"""Curves of one training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .curves import COLOURS
from .figure import new_figure, write_figure

Row = Mapping[str, float]
FEW = 30                                        # so many points are marked each; more would run together
CURVES = {"loss": ("train", COLOURS[0]), "valid_loss": ("validation", COLOURS[2])}
BEST = ("valid_error", "valid_loss")            # what decides, the first that was measured; low is good


def training_curves(rows: Sequence[Row], file: str | Path | None = None, title: str = "") -> Any:
    """Loss of training and validation over the steps, the best validation marked, and the learning rate below.

    `rows` are a history's: {"step", "loss", "valid_loss", "valid_error", "rate"}, the loss in nats; any column but "step" may
    be missing, also in single rows. The best row has the lowest error, the lowest loss among equals.
    Returns the matplotlib Figure, and writes it to `file` (PNG, PDF or SVG by its ending) if given.
    Raises ValueError where there is nothing to draw, ImportError where matplotlib is not installed.
    """
    if not any(column in row for row in rows for column in CURVES) or not all("step" in row for row in rows):
        raise ValueError(f"training_curves: expected rows with step and {' or '.join(CURVES)}, got {len(rows)} rows of "
                         f"{sorted({column for row in rows for column in row})}. Has the trainer evaluated yet?")
    rated = any("rate" in row for row in rows)
    figure = new_figure(7, 5 if rated else 4)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[4, 1]) if rated else [figure.add_subplot()] * 2
    for column, (name, colour) in CURVES.items():
        _line(upper, rows, column, color=colour, label=name)
    if any("valid_loss" in row for row in rows):
        column, best = _best(rows)
        upper.plot(best["step"], best["valid_loss"], "*", color=COLOURS[3], fillstyle="none", markersize=15,
                   label=f"best: step {best['step']:,}, {column.removeprefix('valid_')} {best[column]:.3g}")
    if rated:
        _line(lower, rows, "rate", color=COLOURS[1], clip_on=False)
        lower.set(ylabel="rate", ylim=(0, None))
        lower.ticklabel_format(axis="y", scilimits=(-2, 3))
        lower.grid(alpha=0.25)
    upper.set(ylabel="loss, nats", title=title)
    upper.grid(alpha=0.25)
    upper.legend(frameon=False)
    lower.set_xlabel("step")
    lower.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    lower.xaxis.set_major_formatter("{x:,.0f}")
    return write_figure(figure, file)


def _line(axes: Any, rows: Sequence[Row], column: str, **style: Any) -> None:
    """One column over the steps, of the rows that have it."""
    points = [(row["step"], row[column]) for row in rows if column in row]
    if points:
        marks = {"marker": "o", "markersize": 4} if len(points) <= FEW else {}
        axes.plot(*zip(*points), linewidth=1.6 if marks else 1, **marks, **style)


def _best(rows: Sequence[Row]) -> tuple[str, Row]:
    """(the column that decides, the row that did best), as the trainer chooses."""
    column = next(name for name in BEST if any(name in row and "valid_loss" in row for row in rows))
    measured = [row for row in rows if column in row and "valid_loss" in row]
    return column, min(measured, key=lambda row: (row[column], row["valid_loss"]))
