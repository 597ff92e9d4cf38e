"""A matplotlib Figure: made without a screen, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def new_figure(width: float, height: float) -> Any:
    """An empty Figure, its sizes in inches. Raises ImportError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise ImportError('plots need matplotlib: pip install "minitune[plots]"') from missing
    return Figure(figsize=(width, height), layout="constrained")


def write_figure(figure: Any, file: str | Path | None) -> Any:
    """Writes a Figure to `file` (PNG, PDF or SVG by its ending) if given, and returns it."""
    if file:
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{os.getpid()}.{file.name}")      # keeps the ending, which chooses the format
        try:
            figure.savefig(unfinished, dpi=150)
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)
    return figure
