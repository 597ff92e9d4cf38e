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

    Intervals are 95 % percentile intervals of a bootstrap paired over seeds and test texts; texts of one group, named in
    `settings["test_groups"]`, are drawn together.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], settings: dict[str, Any] | None = None) -> None:
        if not rows:
            raise ValueError("Results: expected at least one run")
        self.rows, self.settings = list(rows), settings or {}
        self.methods = list(dict.fromkeys(row["method"] for row in rows))
        self.tuned = [name for name in self.methods if name not in (BASELINE, SCRATCH)]
        self._have = {(row["method"], row["labels"]) for row in rows}
        self.all_sizes = sorted({labels for _, labels in self._have})
        self.sizes = [n for n in self.all_sizes if all((name, n) in self._have for name in self.methods)]
        groups = self.settings.get("test_groups") or rows[0]["test_texts"]
        self._bootstrap = Bootstrap(groups)
        self._errors: dict[tuple[str, int], np.ndarray] = {}

    def runs(self, method: str, labels: int) -> list[dict[str, Any]]:
        """The rows of one method at one label count, by seed. Raises ValueError where there are none."""
        chosen = [row for row in self.rows if row["method"] == method and row["labels"] == labels]
        if not chosen:
            raise ValueError(f"Results: no runs of {method!r} at {labels} labels; there are {sorted(self._have)}")
        return sorted(chosen, key=lambda row: row["seed"])

    def sizes_of(self, method: str) -> list[int]:
        """The label counts that a method was run with."""
        return [n for n in self.all_sizes if (method, n) in self._have]

    def mean(self, column: str, method: str, labels: int) -> float:
        """The mean of a column over the seeds."""
        return float(np.mean([row[column] for row in self.runs(method, labels)]))

    def _resampled(self, method: str, labels: int) -> np.ndarray:
        """The error in every resample: (R,), computed once."""
        if (method, labels) not in self._errors:
            runs = self.runs(method, labels)
            bits = [np.frombuffer(bytes.fromhex(row["wrong"]), np.uint8) for row in runs]
            wrong = np.stack([np.unpackbits(b)[: row["test_texts"]] for b, row in zip(bits, runs)])
            self._errors[method, labels] = self._bootstrap.errors(wrong)
        return self._errors[method, labels]

    def error(self, method: str, labels: int) -> Estimate:
        """The mean test error over the seeds, with its interval."""
        low, high = interval(self._resampled(method, labels))
        return self.mean("error", method, labels), max(low, 0.0), min(high, 1.0)        # few seeds may be stretched beyond

    def difference(self, method: str, other: str, labels: int) -> Estimate:
        """error(method) - error(other) at the same labels, seeds and test texts, with its interval."""
        value = self.mean("error", method, labels) - self.mean("error", other, labels)
        return value, *interval(self._resampled(method, labels) - self._resampled(other, labels))

    def best_tuned(self, labels: int) -> str:
        """The method that starts from the pre-trained model and did best on validation."""
        return min(self.tuned, key=lambda name: self.mean("valid_error", name, labels))

    def worth(self, method: str, labels: int) -> Estimate:
        """How many labels scratch needs to err as little as `method` does with `labels`; infinity: more than were tried."""
        sizes = self.sizes_of(SCRATCH)
        curve = [self.mean("error", SCRATCH, n) for n in sizes]
        value = labels_needed(np.array([self.mean("error", method, labels)]), sizes, np.array([curve]))
        resampled = np.stack([self._resampled(SCRATCH, n) for n in sizes], 1)
        # the middle 95 % by rank: between a finite number and infinity there is nothing to interpolate
        needed = np.sort(labels_needed(self._resampled(method, labels), sizes, resampled))
        tail = round(0.025 * len(needed))
        return float(value[0]), float(needed[tail]), float(needed[-1 - tail])

    def sentence(self, labels: int | None = None) -> str:
        """What the runs say at `labels`, the middle size unless told: "64 labels fine-tuned match about N labels ..."."""
        labels = labels or self.sizes[(len(self.sizes) - 1) // 2]
        if not self.tuned:
            return "No method that starts from the pre-trained model was run."
        method = self.best_tuned(labels)
        if SCRATCH not in self.methods:
            return f"At {labels} labels {method} did best on validation; nothing was trained from scratch to compare with."
        value, low, high = self.difference(method, SCRATCH, labels)
        if low <= 0 <= high:
            return (f"At {labels} labels, fine-tuning ({method}) and training from scratch are not distinguishable: their "
                    f"errors differ by {100 * value:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f}).")
        needed, fewest, most = self.worth(method, labels)
        if needed == 0:
            return f"{labels} labels fine-tuned ({method}) are beaten by {self.sizes[0]} labels from scratch."
        about = "" if isinf(needed) else "about "
        return (f"{labels} labels fine-tuned ({method}) match {about}{self._count(needed)} labels from scratch "
                f"(95 % interval {self._count(fewest)} to {self._count(most)}).")

    def _count(self, labels: float) -> str:
        """A number of labels from scratch, in words where it lies outside those that were tried."""
        tried = self.sizes_of(SCRATCH)
        if isinf(labels) or not labels:
            return f"more than {tried[-1]:,}" if labels else f"under {tried[0]:,}"
        return f"{float(f'{labels:.2g}'):,.0f}"         # two digits: the curve says no more

    def compared(self) -> list[str]:
        """One line a label count: the best tuned method against scratch, the plain baseline and the other tuned ones."""
        lines = []
        for n in self.sizes if self.tuned else []:
            method = self.best_tuned(n)
            others = [name for name in (SCRATCH, BASELINE) if name in self.methods]
            others += [name for name in self.methods if name not in (method, SCRATCH, BASELINE)]
            lines.append(f"{n:,} labels, {method}: " + "; ".join(_verdict(o, self.difference(method, o, n)) for o in others))
        return lines

    def table(self) -> str:
        """Test error in percent with its interval, for every method and label count; and what each method costs."""
        measured = {"seconds": "seconds"} | ({"peak_memory_mb": "peak MB"} if "peak_memory_mb" in self.rows[0] else {})
        head = ["method", *(f"{n:,} labels" for n in self.all_sizes), "trained", "of", *measured.values()]
        lines = [head]
        for name in self.methods:
            cells = [_percent(self.error(name, n)) if (name, n) in self._have else "" for n in self.all_sizes]
            last = self.sizes[-1]
            costs = [f"{self.mean(column, name, last):,.0f}" for column in ("trainable_parameters", "total_parameters")]
            costs += [f"{self.mean(column, name, last):,.1f}" for column in measured]
            lines.append([name, *cells, *costs])
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        rows = ["  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths)))
                for line in lines]
        return "\n".join([f"test error in % [95 % interval]; costs at {self.sizes[-1]:,} labels", *rows])

    def plot(self, file: str | Path | None = None) -> Any:
        """Test error against labels, a curve with its interval for each method. Returns the matplotlib Figure."""
        curves = {name: [(n, *(100 * part for part in self.error(name, n))) for n in self.sizes_of(name)]
                  for name in self.methods}
        title = f"{self.settings.get('dataset', '')}: how many labels is pre-training worth?"
        return interval_curves(curves, "labelled examples", "test error, %", title, file)   # type: ignore[arg-type]

    def to_json(self, file: str | Path) -> None:
        """Writes settings, summary and every run, whole or not at all."""
        summary = [{"method": name, "labels": n, "error": self.error(name, n)} for name, n in sorted(self._have)]
        whole = {"settings": self.settings, "sentence": self.sentence(), "compared": self.compared(), "summary": summary,
                 "runs": self.rows}
        write_text(file, json.dumps(whole, indent=1) + "\n")


def _percent(error: Estimate) -> str:
    value, low, high = (100 * part for part in error)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _verdict(other: str, difference: Estimate) -> str:
    value, low, high = (100 * part for part in difference)
    word = "not distinguishable from" if low <= 0 <= high else "better than" if high < 0 else "worse than"
    return f"{word} {other} ({value:+.1f} points, {low:+.1f} to {high:+.1f})"
