"""The curve of a search for a learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .curves import COLOURS
from .figure import new_figure, write_figure


def rate_finding(rates: Sequence[float], losses: Sequence[float], suggestion: float, file: str | Path | None = None,
                 title: str = "") -> Any:
    """The smoothed loss over rising rates, on a logarithmic axis, with the suggested rate marked.

    The axis ends a little above the highest loss before the lowest: how far a lost run rises says nothing.
    Returns the matplotlib Figure, and writes it to `file` (PNG, PDF or SVG by its ending) if given.
    Raises ValueError where there are not as many losses as rates, or none; ImportError where matplotlib is not installed.
    """
    if not len(rates) or len(rates) != len(losses):
        raise ValueError(f"rate_finding: expected as many losses as rates, got {len(losses)} and {len(rates)}")
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    axes.plot(rates, losses, color=COLOURS[0], linewidth=1.6)
    axes.axvline(suggestion, color=COLOURS[3], linestyle="--", linewidth=1.2, label=f"suggested: {suggestion:.2g}")
    low = min(losses)
    high = max(losses[: list(losses).index(low) + 1])
    axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed loss, nats", title=title)
    if high > low:
        axes.set_ylim(low - 0.1 * (high - low), high + 0.25 * (high - low))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return write_figure(figure, file)
