"""A table of a paper beside our own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .curves import COLOURS
from .figure import new_figure, write_figure

STYLES = {"": ("o", COLOURS[0]), "holds": ("s", COLOURS[2]), "reversed": ("D", COLOURS[3]),
          "not distinguishable": ("^", COLOURS[1])}
Row = tuple[str, float, tuple[float, float, float], str]    # name, the paper's value, ours with its interval's ends, verdict


def paper_and_here(rows: Sequence[Row], labels: tuple[str, str], title: str = "", file: str | Path | None = None) -> Any:
    """The rows of a table from top to bottom: on the left the paper's values, on the right ours with their intervals.

    `labels` say what each side measures; each has an axis of its own, and a dashed line at the last row, which the others are
    compared with. A row's verdict, "holds", "reversed", "not distinguishable" or "", chooses its colour and marker.
    Returns the matplotlib Figure, and writes it to `file` (PNG, PDF or SVG by its ending) if given.
    Raises ValueError where there are no rows or a verdict is none of these, ImportError where matplotlib is not installed.
    """
    if not rows or not all(row[3] in STYLES for row in rows):
        raise ValueError(f"paper_and_here: expected at least one row, and verdicts of {list(STYLES)}, got "
                         f"{[row[3] for row in rows]}")
    figure = new_figure(8, 1.8 + 0.34 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    left.plot([row[1] for row in rows], range(len(rows)), "o", color=COLOURS[0], fillstyle="none", markersize=7)
    for verdict, (marker, colour) in STYLES.items():
        chosen = [(place, *row[2]) for place, row in enumerate(rows) if row[3] == verdict]
        if chosen:
            places, values, low, high = zip(*chosen)
            ends = [[a - b for a, b in zip(values, low)], [a - b for a, b in zip(high, values)]]
            right.errorbar(values, places, xerr=ends, fmt=marker, color=colour, markersize=6, capsize=3, elinewidth=1.4,
                           label=verdict or None)
    for axes, last, label in zip((left, right), (rows[-1][1], rows[-1][2][0]), labels):
        axes.axvline(last, color=COLOURS[0], linestyle="--", linewidth=0.8, zorder=0)
        axes.set_xlabel(label)
        axes.grid(alpha=0.25)
    left.set_yticks(range(len(rows)), [row[0] for row in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    figure.suptitle(title, fontsize="medium")
    if any(row[3] for row in rows):
        figure.legend(loc="outside lower right", ncols=4, frameon=False, fontsize="small", title="the paper's order",
                      title_fontsize="small")
    return write_figure(figure, file)
