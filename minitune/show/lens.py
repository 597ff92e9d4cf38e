"""What training did to weights: drift by layer, singular values of the changes, and how alike two changes are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .figure import new_figure, write_figure

OUTSIDE = "outside the blocks"
Drift = tuple[str, str, float]                  # block or "", kind of matrix, relative change
TOP = 0.9                                       # of the colours, the brightest are too pale for a line


def drift(rows: Sequence[Drift], file: str | Path | None = None, title: str = "|dW| / |W|, %") -> Any:
    """How far each matrix moved, as a heat map: a row a block, a column a kind of matrix, the percent written in.

    `rows` are (block, kind, relative change); block "" is what stands outside the blocks, which gets columns of its own.
    Returns the matplotlib Figure, and writes it to `file` (PNG, PDF or SVG by its ending) if given.
    Raises ValueError where there is nothing to draw, ImportError where matplotlib is not installed.
    """
    if not rows:
        raise ValueError("drift: expected at least one row (block, kind, relative change), got none")
    blocks = sorted(dict.fromkeys(row[0] for row in rows), key=lambda block: block == "")
    kinds = list(dict.fromkeys(row[1] for row in sorted(rows, key=lambda row: row[0] == "")))
    grid = np.full((len(blocks), len(kinds)), np.nan)
    for block, kind, value in rows:
        grid[blocks.index(block), kinds.index(kind)] = 100 * value
    figure = new_figure(2.2 + 0.9 * len(kinds), 1.9 + 0.42 * len(blocks))
    axes = figure.add_subplot()
    finite = np.where(np.isfinite(grid), grid, np.nan)
    image = axes.imshow(finite, cmap="viridis", aspect="auto", vmin=0)
    middle = np.nanmax(finite, initial=0) * 0.6
    for (i, j), value in np.ndenumerate(grid):
        if not np.isnan(value):
            axes.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize="small",
                      color="black" if value > middle else "white")
    axes.set_yticks(range(len(blocks)), [block or OUTSIDE for block in blocks])
    axes.set_xticks(range(len(kinds)), [kind.replace(".", "\n") for kind in kinds], fontsize="small", rotation=30)
    axes.set_title(title, fontsize="medium")
    figure.colorbar(image, ax=axes)
    return write_figure(figure, file)


def singular_values(rows: Sequence[tuple[str, str, np.ndarray]], file: str | Path | None = None,
                    title: str = "singular values of the changes") -> Any:
    """The singular values of every change over their number, both on logarithmic axes; a panel a kind of matrix.

    `rows` are (block, kind, s_1 >= s_2 >= ... > 0); the lines of a panel are the blocks, dark to bright from the first to the
    last. A change without any is left out. Returns the matplotlib Figure, and writes it to `file` if given.
    Raises ValueError where nothing has changed, ImportError where matplotlib is not installed.
    """
    panels: dict[str, list[np.ndarray]] = {}
    for _, kind, s in rows:
        if len(s):
            panels.setdefault(kind, []).append(s)
    if not panels:
        raise ValueError("singular_values: expected at least one change with singular values, got none. Are both models the "
                         "same?")
    columns = min(4, len(panels))
    down = -(-len(panels) // columns)
    figure = new_figure(2.6 * columns, 2.3 * down + 0.4)
    from matplotlib import colormaps  # after new_figure, which says what to install
    for axes, (kind, lines) in zip(figure.subplots(down, columns, squeeze=False, sharey=True).flat, panels.items()):
        for i, s in enumerate(lines):
            axes.loglog(range(1, len(s) + 1), s, color=colormaps["viridis"](TOP * i / max(1, len(lines) - 1)), linewidth=1.3,
                        marker="." if len(s) <= 16 else None)
        ticks = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096) if n <= max(map(len, lines))]
        axes.set_xticks(ticks[:: 1 + len(ticks) // 6], [str(tick) for tick in ticks[:: 1 + len(ticks) // 6]])
        axes.xaxis.minorticks_off()
        axes.set_title(kind, fontsize="small")
        axes.grid(alpha=0.25)
    for axes in figure.axes[len(panels):]:
        axes.set_axis_off()
    figure.supxlabel("number", fontsize="small")
    figure.supylabel("singular value", fontsize="small")
    figure.suptitle(f"{title} (a line a block, the first is dark)", fontsize="medium")
    return write_figure(figure, file)


def similarity_maps(maps: Mapping[str, np.ndarray], file: str | Path | None = None, most: int = 12,
                    title: str = "phi(i, j): do the changes have the same directions?") -> Any:
    """A map from 0 to 1 a matrix: row i, column j is the similarity of the first i directions of one change and j of another.

    At most `most` maps are drawn, evenly chosen. What is NaN stays grey. Returns the Figure, and writes it to `file` if given.
    Raises ValueError where there is none, ImportError where matplotlib is not installed.
    Source: Hu et al. 2021, LoRA, figure 3.
    """
    if not maps:
        raise ValueError("similarity_maps: expected at least one map, got none")
    names = list(maps)
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int))]
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = new_figure(2.5 * columns + 0.6, 2.5 * rows + 0.4)
    from matplotlib import colormaps  # after new_figure, which says what to install
    colours = colormaps["magma"].with_extremes(bad="#bbbbbb")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, name in zip(panels.flat, chosen):
        phi = maps[name]
        image = axes.imshow(phi, cmap=colours, vmin=0, vmax=1, origin="upper")
        axes.set_title(name, fontsize="x-small")
        for axis, length in ((axes.set_xticks, phi.shape[1]), (axes.set_yticks, phi.shape[0])):
            ticks = sorted({0, length // 2, length - 1})
            axis(ticks, [str(tick + 1) for tick in ticks], fontsize="x-small")
    for axes in panels.flat[len(chosen):]:
        axes.set_axis_off()
    figure.supxlabel("j", fontsize="small")
    figure.supylabel("i", fontsize="small")
    figure.suptitle(title, fontsize="medium")
    figure.colorbar(image, ax=panels, shrink=0.8)
    return write_figure(figure, file)
