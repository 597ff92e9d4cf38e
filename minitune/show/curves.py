"""Curves with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .figure import new_figure, write_figure

COLOURS = ("#444444", "#8c6d31", "#1f77b4", "#d62728", "#2ca02c", "#9467bd")      # told apart in grey as well as in colour
MARKERS = "osD^vP"
BESIDE = 1.035                                  # a curve's x is this many times its left neighbour's
Point = tuple[float, float, float, float]       # x, y, lower end, upper end


def interval_curves(curves: Mapping[str, Sequence[Point]], x_label: str, y_label: str, title: str = "",
                    file: str | Path | None = None) -> Any:
    """One line with upright intervals for each named list of points (x, y, low, high); x on a logarithmic axis.

    Curves stand a little beside each other, so that intervals at the same x can be told apart.
    Returns the matplotlib Figure, and writes it to `file` (PNG, PDF or SVG by its ending) if given.
    Raises ImportError where matplotlib is not installed.
    """
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    for i, (name, points) in enumerate(curves.items()):
        x, y, low, high = zip(*sorted(points), strict=True)
        beside = [value * BESIDE ** (i - (len(curves) - 1) / 2) for value in x]
        ends = [[a - b for a, b in zip(y, low)], [a - b for a, b in zip(high, y)]]
        again = i >= len(COLOURS)               # a colour that comes a second time is dashed and hollow
        axes.errorbar(beside, y, ends, marker=MARKERS[i % len(MARKERS)], color=COLOURS[i % len(COLOURS)], label=name,
                      capsize=2.5, elinewidth=1, linewidth=1.6, linestyle="--" if again else "-",
                      markerfacecolor="white" if again else None)
    ticks = sorted({point[0] for points in curves.values() for point in points})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize="small" if len(curves) > 5 else None)
    return write_figure(figure, file)
