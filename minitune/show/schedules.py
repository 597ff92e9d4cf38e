"""The learning rates of a training, layer group by layer group, and when each group is frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from .figure import new_figure, write_figure

FROZEN = "#dddddd"
TOP = 0.9                                       # of the colours, the brightest are too pale for a line
Row = Mapping[str, float]


def rate_curves(rows: Sequence[Row], file: str | Path | None = None, title: str = "") -> Any:
    """Each layer group's learning rate over the steps, and below, as bars, where it trains and where it is frozen.

    `rows` are those of `tune.rates_by_step`: {"step", name of a layer group: rate}, the groups from the input to the output, a
    rate of 0 where the group is frozen. Rates stand on a logarithmic axis; a frozen group's line is broken.
    Returns the matplotlib Figure, and writes it to `file` (PNG, PDF or SVG by its ending) if given.
    Raises ValueError where there is nothing to draw, ImportError where matplotlib is not installed.
    """
    names = [name for name in (rows[0] if rows else {}) if name != "step"]
    if not all(row.keys() == {"step", *names} for row in rows) or not any(row[name] > 0 for row in rows for name in names):
        raise ValueError(f"rate_curves: expected rows with step and the same layer groups each, of which one trains, got "
                         f"{len(rows)} rows of {sorted({column for row in rows for column in row})}")
    low = 0.6 + 0.2 * len(names)                # inches
    figure = new_figure(7, 3.2 + low)
    from matplotlib import colormaps  # after new_figure, which says what to install
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[3.2, low])
    for i, name in enumerate(names):
        colour = colormaps["viridis"](TOP * i / max(1, len(names) - 1))
        for steps, rates in _stretches(rows, name):
            trains = rates[0] > 0
            if trains:
                upper.plot(steps, [*rates, rates[-1]], drawstyle="steps-post", color=colour, linewidth=1.6)
            lower.barh(i, steps[-1] - steps[0], left=steps[0], height=0.7, color=colour if trains else FROZEN,
                       hatch=None if trains else "////", edgecolor="white", linewidth=0)
    upper.set(yscale="log", ylabel="learning rate", title=title, xlim=(rows[0]["step"], _ends(rows)[-1]))
    upper.grid(alpha=0.25)
    lower.set(xlabel="step", ylabel="layer group")
    lower.set_yticks(range(len(names)), names)
    lower.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    lower.xaxis.set_major_formatter("{x:,.0f}")
    if not all(row[name] > 0 for row in rows for name in names):
        lower.set_title("hatched: frozen", loc="right", fontsize="small")
    return write_figure(figure, file)


def _stretches(rows: Sequence[Row], name: str) -> Iterator[tuple[list[float], list[float]]]:
    """(steps, rates) of each stretch in which a layer group trains, or is frozen, throughout; one step more, where it ends."""
    for _, stretch in groupby(zip(rows, _ends(rows)), key=lambda pair: pair[0][name] > 0):
        pairs = list(stretch)
        yield [*(row["step"] for row, _ in pairs), pairs[-1][1]], [row[name] for row, _ in pairs]


def _ends(rows: Sequence[Row]) -> list[float]:
    """Where each row's step ends: where the next row begins."""
    return [*(row["step"] for row in rows[1:]), rows[-1]["step"] + 1]
