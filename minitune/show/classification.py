"""What a classifier mistakes for what, and whether its confidence can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .curves import COLOURS
from .figure import new_figure, write_figure

Bin = tuple[float, float, int, float, float]    # confidence from, to, rows, mean confidence, accuracy
LONGEST, COUNTED, NAMED = 16, 12, 40            # characters of a name; classes up to which counts and names are written


def classification(confusion: np.ndarray, names: Sequence[str], bins: Sequence[Bin], calibration_error: float,
                   file: str | Path | None = None) -> Any:
    """The confusion matrix, rows the true classes, beside the reliability diagram.

    `confusion` (K, K) holds counts; colour is the share of a row. `bins` are (from, to, rows, mean confidence, accuracy).
    Returns the matplotlib Figure, and writes it to `file` (PNG, PDF or SVG by its ending) if given.
    Raises ImportError where matplotlib is not installed.
    """
    side = min(max(4.5, 2.4 + 0.3 * len(names)), 7)
    figure = new_figure(side + 4.2, side)
    left, right = figure.subplots(1, 2, width_ratios=[side, 4.2])
    _confusion(left, np.asarray(confusion), names)
    _reliability(right, bins)
    right.set_title(f"expected calibration error {calibration_error:.3f}", pad=20)
    return write_figure(figure, file)


def _confusion(axes: Any, confusion: np.ndarray, names: Sequence[str]) -> None:
    classes = len(names)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if classes <= NAMED:
        short = [name if len(name) <= LONGEST else f"{name[:LONGEST - 7]}…{name[-6:]}" for name in names]
        style = {"size": 10 if classes <= COUNTED else 7, "parse_math": False}
        level = classes * max(map(len, short)) <= 36        # else names side by side would run into each other
        axes.set_yticks(range(classes), short, **style)
        axes.set_xticks(range(classes), short, **style,
                        **({} if level else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}))
    if classes <= COUNTED:
        size = min(9, 450 / (classes * len(f"{confusion.max():,}")))            # as the cells allow
        for (row, column), count in np.ndenumerate(confusion):
            axes.text(column, row, f"{count:,}", ha="center", va="center", size=size,
                      color="white" if shares[row, column] > 0.5 else "black")
    axes.set(xlabel="predicted", ylabel="true", title=f"{confusion.sum():,} rows; colour: share of the true class")


def _reliability(axes: Any, bins: Sequence[Bin]) -> None:
    size = min(7, 36 / len(f"{max(rows for _, _, rows, *_ in bins):,}"))
    for low, high, rows, _, accuracy in bins:
        if rows:
            axes.bar(low, accuracy, high - low, align="edge", color=COLOURS[2], alpha=0.7, edgecolor="white")
            axes.text((low + high) / 2, 1.01, f"{rows:,}", ha="center", size=size, color="#777777")
    axes.plot([0, 1], [0, 1], "--", color=COLOURS[0], linewidth=1)
    axes.set(xlabel="confidence\n(dashed: perfect calibration; grey: rows)", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
