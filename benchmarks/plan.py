"""Does a plan say how much memory a training step takes, and how long?

    python benchmarks/plan.py --json --page                 # made the committed results; nothing else should run meanwhile

Sizes M and L (see measure.py), a classifier of four classes and a language model. The machine is calibrated first, in a process
of its own; then each step is planned, made and measured in another: the most that arrays and Python's objects took at once
(tracemalloc), what the process held at most above its libraries, and the median time of its steps. Asked are 15 % for memory
and 25 % for time. Writes benchmarks/results/plan.json and the table in docs/plan.md.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict
from statistics import median

from measure import (
    ROOT,
    SIZES,
    Row,
    Size,
    held_mb,
    in_turn,
    options_of,
    parser_of,
    peak_mb,
    report,
    run_child,
    start,
    table,
)

PAGE = ROOT / "docs" / "plan.md"
ASKED = {"memory": 0.15, "time": 0.25}
ARMS = (("full", None), ("lora", None), ("full", 4), ("lora", 4), ("head", 4))      # method, classes or a language model
COLUMNS = {"size": "size", "task": "learns", "method": "trains", "planned_mb": "planned MB", "measured_mb": "measured MB",
           "memory_ratio": "ratio", "resident_mb": "resident MB", "planned_ms": "planned ms", "measured_ms": "measured ms",
           "time_ratio": "ratio of times", "verdict": f"within {ASKED['memory']:.0%} and {ASKED['time']:.0%}"}


def main() -> None:
    parser = parser_of(__file__, __doc__, PAGE)
    parser.add_argument("--sizes", default="M,L", help="with commas (default: M,L)")
    parser.add_argument("--steps", type=int, default=9, help="timed steps in each process (default: 9)")
    options = options_of(parser)
    if options.quick:
        options.sizes, options.rounds, options.steps = "tiny", 1, 2
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder           # a calibration of this run, which all arms read
        rates = run_child(__file__, {"method": "calibrate", "labels": None, "size": asdict(SIZES["tiny"]), "steps": 0})
        arms = [{"method": method, "labels": labels, "size": asdict(SIZES[size]), "steps": options.steps}
                for size in options.sizes.split(",") for method, labels in ARMS]
        names = [size for size in options.sizes.split(",") for _ in ARMS]
        rows = [arm | {"size": name} | summed(found)
                for arm, name, found in zip(arms, names, in_turn(__file__, arms, options.rounds))]
    page, options.page = options.page, False            # report's own page is another
    lines = lines_of(rows, options.sizes.split(","))
    report(options, "plan", rows, lines, {"rates": rates, "asked": ASKED, "sizes": {
        name: asdict(SIZES[name]) for name in options.sizes.split(",")}})
    if page:
        from measure import machine
        from pages import write_between_marks
        facts = machine()
        where = f"Measured on {facts['cores']} cores of {facts['processor']}, NumPy {facts['versions']['numpy']}, by "
        write_between_marks(PAGE, "plan", ["", f"{where}`{facts['command']}`.", "", *lines, ""])


def measure_arm(method: str, labels: int | None, size: Row, steps: int) -> Row:
    """In a process of its own."""
    from minitune.experiments import calibrate, plan
    from minitune.models import GPTConfig
    if method == "calibrate":
        rates = calibrate(again=True)
        return {"products": rates.products, "loops": rates.loops, "machine": rates.machine}
    tiny = SIZES["tiny"]
    plan(GPTConfig(tiny.V, tiny.T, tiny.layers, tiny.heads, tiny.C), method, tiny.B, labels=labels).measure(1)   # compiles
    before, sizes = held_mb(), Size(**size)
    found = plan(GPTConfig(sizes.V, sizes.T, sizes.layers, sizes.heads, sizes.C), method, sizes.B, labels=labels)
    found.measure(steps)
    return found.row() | {"resident": peak_mb() - before}


def summed(found: list[Row]) -> Row:
    """The rounds of an arm in one row: what is planned and traced is the same in each, times are the median of all steps."""
    if "error" in found[-1]:
        return {"error": found[-1]["error"], "verdict": found[-1]["error"]}
    times = [1000 * t for row in found for t in row["measured_times"]]
    last, milliseconds = found[-1], median(times)
    row = {"task": "classes" if last["model"].startswith("Classifier") else "texts", "planned_mb": last["peak"] / 2**20,
           "measured_mb": last["measured_peak"] / 2**20, "memory_ratio": last["memory_ratio"],
           "resident_mb": median(row["resident"] for row in found), "planned_ms": 1000 * last["seconds"],
           "measured_ms": milliseconds, "time_ratio": 1000 * last["seconds"] / milliseconds, "times_ms": times,
           "parts_ms": {name: 1000 * seconds for name, seconds in last["parts"].items()},
           **{name: last[name] for name in ("parameters", "trainable", "weights", "moments", "gradients", "activations")}}
    return row | {"verdict": verdict(row)}


def verdict(row: Row) -> str:
    """Which of the two is as near as was asked. Ratios are planned / measured, of which a quarter less is a quarter off."""
    off = {"memory": abs(row["memory_ratio"] - 1), "time": abs(row["time_ratio"] - 1)}
    missed = [name for name, by in off.items() if by > ASKED[name]]
    return f"missed: {' and '.join(missed)}" if missed else "met"


def lines_of(rows: list[Row], sizes: list[str]) -> list[str]:
    """The table, and what its sizes are."""
    return [*table(rows, COLUMNS), "", *(f"{name}: {SIZES[name]}." for name in sizes)]


if __name__ == "__main__":
    start(main, measure_arm)
