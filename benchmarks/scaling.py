"""How do time and memory of a step grow with each size, and do they grow as theory says?

    python benchmarks/scaling.py --json --page              # made the committed results

One size at a time grows from a small base, the others stay. A power law is fitted, time = a size^exponent, by least squares in
logarithms; beside it stands the exponent that the additions and multiplications of the step's matrix products have over the
same points, and the one that they approach. Writes benchmarks/results/scaling.json, docs/images/scaling.png and the tables in
docs/performance.md.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from math import log
from pathlib import Path
from statistics import linear_regression

from measure import ROOT, Row, Size, in_turn, measure_step, options_of, parser_of, report, start, summary, table
from train_step import step_of

BASE, HEAD_WIDTH, STEPS = Size(V=1024, C=128, layers=4, heads=4, T=128, B=8), 32, 5
QUICK = Size(V=64, C=32, layers=1, heads=1, T=8, B=2)
# name: (its points, the exponent that time approaches, that of memory, why)
GROWTH: dict[str, tuple[tuple[int, ...], int, int, str]] = {
    "C": ((64, 128, 256, 512, 1024), 2, 2, "weights, their gradients and moments are (C, C); activations are linear in C"),
    "layers": ((1, 2, 4, 8, 16), 1, 1, "every layer is the same; embedding and head are a constant beside them"),
    "T": ((64, 128, 256, 512, 1024), 2, 1, "every pair of tokens meets in attention, but no (T, T) matrix is kept"),
    "B": ((2, 4, 8, 16, 32), 1, 1, "rows are independent; the optimizer's work and memory are a constant beside them"),
    "V": ((1024, 2048, 4096, 8192, 16384), 1, 1, "embedding and head are (V, C); logits are held a chunk at a time"),
}
COLUMNS = {"grows": "what grows", "points": "from ... to", "time": "time, fitted", "flops": "products over the same points",
           "time_limit": "time approaches", "memory": "memory, fitted", "memory_limit": "memory approaches", "why": "why"}


def main() -> None:
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--image", type=Path, help="where to draw (default: docs/images/scaling.png, with --page)")
    options = options_of(parser)
    base = QUICK if options.quick else BASE
    grown = [(name, grow(base, name, value)) for name, (points, *_) in GROWTH.items()
             for value in ((vars(base)[name], 2 * vars(base)[name]) if options.quick else points)]
    arms = [{"grows": name, "size": asdict(size)} for name, size in grown]
    results = in_turn(__file__, arms, 1 if options.quick else options.rounds)
    rows = [arm | summary(found) for arm, found in zip(arms, results)]
    fits = [fit(name, [row for row in rows if row["grows"] == name and "median_ms" in row]) for name in GROWTH]
    picture = options.image or (ROOT / "docs" / "images" / "scaling.png" if options.page else None)
    if picture:
        draw(rows, fits, picture)
    lines = [f"From {base}:", "", *table(fits, COLUMNS), "", "![Time and memory as each size grows](images/scaling.png)"]
    report(options, "scaling", rows, lines, {"fits": fits})


def grow(base: Size, name: str, value: int) -> Size:
    """The base with one size changed; heads keep their width as channels grow."""
    grown = replace(base, **{name: value})
    return replace(grown, heads=grown.C // HEAD_WIDTH)


def measure_arm(grows: str, size: Row) -> Row:
    """In a process of its own."""
    return measure_step(partial(step_of, "minitune", "full"), Size(**size), STEPS)


def fit(name: str, rows: list[Row]) -> Row:
    """The exponents of time, products and memory in one size. Imports NumPy, and so comes after all measuring."""
    from own import flops
    points, time_limit, memory_limit, why = GROWTH[name]
    x = [row["size"][name] for row in rows]
    return {"grows": name, "points": f"{x[0]:,} ... {x[-1]:,}", "time": exponent(x, [row["median_ms"] for row in rows]),
            "flops": exponent(x, [flops(Size(**row["size"])) for row in rows]), "time_limit": time_limit,
            "memory": exponent(x, [row["peak_mb"] for row in rows]), "memory_limit": memory_limit, "why": why}


def exponent(x: list[float], y: list[float]) -> float | None:
    """The slope of log y over log x; None where memory is too little to be seen, as of tiny models."""
    if min(y) <= 0:
        return None
    return linear_regression([log(value) for value in x], [log(value) for value in y]).slope


def draw(rows: list[Row], fits: list[Row], file: Path) -> None:
    """Time above, memory below, a column for each size, both axes logarithmic."""
    from minitune.show.figure import new_figure, write_figure
    figure = new_figure(14, 5.5)
    panels = figure.subplots(2, len(fits), sharey="row")
    for column, found in enumerate(fits):
        points = [row for row in rows if row["grows"] == found["grows"]]
        x = [row["size"][found["grows"]] for row in points]
        for axes, key, label, slope in zip(panels[:, column], ("median_ms", "peak_mb"), ("ms a step", "peak MB"),
                                           (found["time"], found["memory"])):
            axes.loglog(x, [row[key] for row in points], marker="o", color="#1f77b4")
            axes.set_xticks(x, [f"{value:,}" for value in x])
            axes.minorticks_off()
            axes.set(xlabel=found["grows"], ylabel="" if column else label, title=f"exponent {slope or 0:.2f}")
            axes.grid(alpha=0.25)
    write_figure(figure, file)


if __name__ == "__main__":
    start(main, measure_arm)
