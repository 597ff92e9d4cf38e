"""Methods beside each other: one cost against another, a panel for each label count."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .curves import COLOURS as FIRST
from .curves import MARKERS
from .figure import new_figure, write_figure

COLOURS = (*FIRST, "#17becf", "#e377c2")         # there are more methods than curves elsewhere
Ends = tuple[float, float, float]               # value, lower end, upper end
Panels = Mapping[str, Mapping[str, tuple[Ends, Ends]]]          # {title: {name: (x, y)}}
NEARLY, BESIDE = 0.01, 1.15                     # points closer than this share are moved, each by this factor more
LINEAR = 0.01                                   # below this a symmetric logarithmic axis is straight


def comparison_panels(panels: Panels, x_label: str, y_label: str, title: str = "", file: str | Path | None = None, *,
                      log_x: bool = False, symmetric_log_y: bool = False) -> Any:
    """A point with both intervals for each name in each panel; the axes are shared, and each name looks alike everywhere.

    With `log_x` points of the same x stand beside each other, and a point at 0, of what costs nothing, is a dashed line
    across its panel with its interval as a band. Returns the matplotlib Figure, and writes it to `file` (PNG, PDF or SVG by its
    ending) if given.
    Raises ValueError where there is nothing to show, ImportError where matplotlib is not installed.
    """
    names = list(dict.fromkeys(name for points in panels.values() for name in points))
    if not names:
        raise ValueError("comparison_panels: expected at least one panel with a point")
    figure = new_figure(2.2 + 3.4 * len(panels), 4.2)
    drawn: dict[str, Any] = {}
    places = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (label, points) in zip(places, panels.items()):
        for i, (name, (x, y)) in enumerate(points.items()):
            crowd = sum(abs(other[0] - x[0]) < NEARLY * x[0] for other, _ in list(points.values())[:i]) if log_x else 0
            value, low, high = (part * BESIDE**crowd for part in x)
            drawn[name] = _draw(axes, (value, low, high), y, names.index(name), log_x)
        if log_x:
            axes.set_xscale("log")
        if symmetric_log_y:
            axes.set_yscale("symlog", linthresh=LINEAR)
            axes.axhline(0, color=COLOURS[0], linewidth=0.8, zorder=0)
        axes.set_title(label, fontsize="medium")
        axes.set_xlabel(x_label)
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel(y_label)
    figure.suptitle(title, fontsize="medium")
    figure.legend([drawn[name] for name in names], names, loc="outside right upper", frameon=False)
    return write_figure(figure, file)


def _draw(axes: Any, x: Ends, y: Ends, number: int, log_x: bool) -> Any:
    """One point with its intervals, or a line across."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
    if log_x and x[0] <= 0:
        axes.axhspan(y[1], y[2], color=colour, alpha=0.12, linewidth=0)
        return axes.axhline(y[0], color=colour, linestyle="--", linewidth=1.2)
    ends = [[[max(0.0, value - low)], [max(0.0, high - value)]] for value, low, high in (x, y)]
    return axes.errorbar([x[0]], [y[0]], xerr=ends[0], yerr=ends[1], fmt=marker, color=colour, markersize=6, capsize=2.5,
                         elinewidth=1, linestyle="none")
