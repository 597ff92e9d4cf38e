"""Results of sample_efficiency: a table, a plot, JSON, and what they mean in one sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isinf
from pathlib import Path
from typing import Any

import numpy as np

from ..formats.folder import write_text
from ..show import interval_curves
from .statistics import Bootstrap, interval, labels_needed

BASELINE, SCRATCH = "tf-idf", "scratch"
Estimate = tuple[float, float, float]       # value, and the ends of its 95 % interval


class Results:
    """The runs of an experiment: `rows`, a dictionary a run, and `settings`, what they have in common.

    Intervals are 95 % percentile intervals of a bootstrap paired over seeds and test texts.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], settings: dict[str, Any] | None = None) -> None:
        if not rows:
            raise ValueError("Results: expected at least one run")
        self.rows, self.settings = list(rows), settings or {}
        self.sizes = sorted({row["labels"] for row in rows})
        self.methods = list(dict.fromkeys(row["method"] for row in rows))
        self._bootstrap = Bootstrap(len({row["seed"] for row in rows}), rows[0]["test_texts"])

    def runs(self, method: str, labels: int) -> list[dict[str, Any]]:
        """The rows of one method at one label count, by seed. Raises ValueError where there are none."""
        chosen = [row for row in self.rows if row["method"] == method and row["labels"] == labels]
        if not chosen:
            raise ValueError(f"Results: no runs of {method!r} at {labels} labels; methods {self.methods}, sizes {self.sizes}")
        return sorted(chosen, key=lambda row: row["seed"])

    def mean(self, column: str, method: str, labels: int) -> float:
        """The mean of a column over the seeds."""
        return float(np.mean([row[column] for row in self.runs(method, labels)]))

    def _resampled(self, method: str, labels: int) -> np.ndarray:
        """The error in every resample: (R,)"""
        runs = self.runs(method, labels)
        bits = [np.frombuffer(bytes.fromhex(row["wrong"]), np.uint8) for row in runs]
        return self._bootstrap.errors(np.stack([np.unpackbits(b)[: row["test_texts"]] for b, row in zip(bits, runs)]))

    def error(self, method: str, labels: int) -> Estimate:
        """The mean test error over the seeds, with its interval."""
        return self.mean("error", method, labels), *interval(self._resampled(method, labels))

    def difference(self, method: str, other: str, labels: int) -> Estimate:
        """error(method) - error(other) at the same labels, seeds and test texts, with its interval."""
        value = self.mean("error", method, labels) - self.mean("error", other, labels)
        return value, *interval(self._resampled(method, labels) - self._resampled(other, labels))

    def best_tuned(self, labels: int) -> str:
        """The method that starts from the pre-trained model and did best on validation."""
        tuned = [name for name in self.methods if name not in (BASELINE, SCRATCH)]
        if not tuned:
            raise ValueError("Results: no method that starts from a pre-trained model was run")
        return min(tuned, key=lambda name: self.mean("valid_error", name, labels))

    def worth(self, method: str, labels: int) -> Estimate:
        """How many labels scratch needs to err as little as `method` does with `labels`; infinity: more than were tried."""
        curve = [self.mean("error", SCRATCH, n) for n in self.sizes]
        value = labels_needed(np.array([self.mean("error", method, labels)]), self.sizes, np.array([curve]))
        resampled = np.stack([self._resampled(SCRATCH, n) for n in self.sizes], 1)
        # the middle 95 % by rank: between a finite number and infinity there is nothing to interpolate
        needed = np.sort(labels_needed(self._resampled(method, labels), self.sizes, resampled))
        tail = round(0.025 * len(needed))
        return float(value[0]), float(needed[tail]), float(needed[-1 - tail])

    def sentence(self, labels: int | None = None) -> str:
        """What the runs say at `labels`, the middle size unless told: "64 labels fine-tuned match about N labels ..."."""
        labels = labels or self.sizes[len(self.sizes) // 2]
        method = self.best_tuned(labels)
        value, low, high = self.difference(method, SCRATCH, labels)
        if low <= 0 <= high:
            return (f"At {labels} labels, fine-tuning ({method}) and training from scratch are not distinguishable: their "
                    f"errors differ by {100 * value:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f}).")
        needed, fewest, most = self.worth(method, labels)
        if needed == 0:
            return f"{labels} labels fine-tuned ({method}) are beaten by {self.sizes[0]} labels from scratch."
        if isinf(needed):
            return (f"{labels} labels fine-tuned ({method}) match more than {self.sizes[-1]:,} labels from scratch, the most "
                    f"that were tried (95 % interval from {self._labels(fewest)}).")
        return (f"{labels} labels fine-tuned ({method}) match about {needed:,.0f} labels from scratch "
                f"(95 % interval {self._labels(fewest)} to {self._labels(most)}).")

    def _labels(self, needed: float) -> str:
        return f"more than {self.sizes[-1]:,}" if isinf(needed) else f"{needed:,.0f}" if needed else f"under {self.sizes[0]}"

    def compared(self) -> list[str]:
        """One line a label count: the best tuned method against scratch and against the plain baseline."""
        lines = []
        for n in self.sizes:
            method = self.best_tuned(n)
            parts = [_verdict(other, self.difference(method, other, n)) for other in (SCRATCH, BASELINE)
                     if other in self.methods]
            lines.append(f"{n:,} labels, {method}: {'; '.join(parts)}")
        return lines

    def table(self) -> str:
        """Test error in percent with its interval, for every method and label count; and what each method costs."""
        head = ["method", *(f"{n:,} labels" for n in self.sizes), "trained", "of", "seconds", "peak MB"]
        lines = [head]
        for name in self.methods:
            cells = [f"{100 * e:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
                     for e, low, high in (self.error(name, n) for n in self.sizes)]
            last = self.sizes[-1]
            costs = [f"{self.mean(column, name, last):,.0f}" for column in ("trainable_parameters", "total_parameters")]
            costs += [f"{self.mean(column, name, last):,.1f}" for column in ("seconds", "peak_memory_mb")]
            lines.append([name, *cells, *costs])
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        rows = ["  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths)))
                for line in lines]
        return "\n".join(["test error in % [95 % interval]; costs at the largest label count", *rows])

    def plot(self, file: str | Path | None = None) -> Any:
        """Test error against labels, a curve with its interval for each method. Returns the matplotlib Figure."""
        curves = {name: [(n, *(100 * part for part in self.error(name, n))) for n in self.sizes] for name in self.methods}
        title = f"{self.settings.get('dataset', '')}: how many labels is pre-training worth?"
        return interval_curves(curves, "labelled examples", "test error, %", title, file)   # type: ignore[arg-type]

    def to_json(self, file: str | Path) -> None:
        """Writes settings, summary and every run, whole or not at all."""
        summary = [{"method": name, "labels": n, "error": self.error(name, n)} for name in self.methods for n in self.sizes]
        whole = {"settings": self.settings, "sentence": self.sentence(), "compared": self.compared(), "summary": summary,
                 "runs": self.rows}
        write_text(file, json.dumps(whole, indent=1) + "\n")


def _verdict(other: str, difference: Estimate) -> str:
    value, low, high = (100 * part for part in difference)
    word = "not distinguishable from" if low <= 0 <= high else "better than" if high < 0 else "worse than"
    return f"{word} {other} ({value:+.1f} points, {low:+.1f} to {high:+.1f})"
