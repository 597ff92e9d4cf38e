"""Curves with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = ("#444444", "#8c6d31", "#1f77b4", "#d62728", "#2ca02c", "#9467bd")      # told apart in grey as well as in colour
MARKERS = "osD^vP"
Point = tuple[float, float, float, float]       # x, y, lower end, upper end


def interval_curves(curves: Mapping[str, Sequence[Point]], x_label: str, y_label: str, title: str = "",
                    file: str | Path | None = None) -> Any:
    """One line with a shaded interval for each named list of points (x, y, low, high); x on a logarithmic axis.

    Returns the matplotlib Figure, and writes it to `file` (PNG, PDF or SVG by its ending) if given.
    Raises ImportError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise ImportError('plots need matplotlib: pip install "minitune[plots]"') from missing
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, points) in enumerate(curves.items()):
        x, y, low, high = zip(*sorted(points), strict=True)
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(x, y, marker=MARKERS[i % len(MARKERS)], color=colour, label=name)
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    ticks = sorted({point[0] for points in curves.values() for point in points})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    if file:
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{file.name}")        # keeps the ending, which chooses the format
        figure.savefig(unfinished, dpi=150)
        unfinished.replace(file)
    return figure
