"""Comparison: what `compare` found, as a table, a sentence, plots and JSON, and beside what papers report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from ..formats.folder import read_json, write_text
from ..show.comparison import comparison_panels
from .published_lora import CALLED, FORGETS_LESS, LEARNS_LESS, LORA, LOW_DATA, NOISE, PROMPTED, RATE_RATIOS, SIZES
from .results import Estimate, Results

FULL, LORA_METHOD = "full", "lora"
NEAR = 1.5                                      # label counts no further apart than this many times stand side by side
COLUMNS = {"training_seconds": "seconds", "peak_memory_mb": "peak MB", "file_mb": "file MB"}
PLOTS = "error_against_parameters.png", "error_against_seconds.png", "forgetting_against_learning.png"


class Comparison:
    """Methods beside each other on the same labels, seeds and test texts. `results` are the runs, with their settings.

    Differences are to `reference`, "full" where it was run, else the first method. Intervals of errors are those of `results`,
    95 %, by a bootstrap paired over seeds and test texts. Forgetting is the rise of the base's loss on a general text, in nats
    a token, with the least and the most of all seeds.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.methods, self.sizes = results.methods, results.sizes
        self.reference = FULL if FULL in self.methods else self.methods[0]

    # ---- What was measured -----------------------------------------------------------------------------------------

    def error(self, method: str, labels: int) -> Estimate:
        """The mean test error over the seeds, with its interval."""
        return self.results.error(method, labels)

    def difference(self, method: str, labels: int, other: str | None = None) -> Estimate:
        """error(method) - error(other), the reference unless told, with its interval."""
        return self.results.difference(method, other or self.reference, labels)

    def verdict(self, method: str, labels: int, other: str | None = None) -> str:
        """"better", "worse" or, where the interval holds 0, "not distinguishable"."""
        return _verdict(self.difference(method, labels, other))

    def forgetting(self, method: str, labels: int) -> Estimate | None:
        """(mean, least, most) over the seeds, nats a token; None where it was not measured. Below 0 the base got better."""
        rises = self._rises(method, labels)
        return (float(np.mean(rises)), min(rises), max(rises)) if rises else None

    def _rises(self, method: str, labels: int) -> list[float]:
        """The forgetting of each run, by seed; none where it was not measured."""
        return [row["general_loss"] - row["general_loss_before"] for row in self.results.runs(method, labels)
                if "general_loss" in row]

    def cost(self, column: str, method: str, labels: int) -> float | None:
        """The mean of a column such as "training_seconds" over the seeds; None where it was not measured."""
        values = [row[column] for row in self.results.runs(method, labels) if row.get(column) is not None]
        return float(np.mean(values)) if values else None

    def share(self, method: str, labels: int) -> float:
        """Trained parameters over all that the tuned model has."""
        runs = self.results.runs(method, labels)
        return sum(row["trainable_parameters"] for row in runs) / sum(row["total_parameters"] for row in runs)

    def rate(self, method: str, labels: int) -> float:
        """The rate that did best on validation, at which the method was run."""
        return self.results.runs(method, labels)[0]["rate"]

    # ---- In words --------------------------------------------------------------------------------------------------

    def table(self) -> str:
        """Of every label count a table: error, difference to the reference, and what each method costs."""
        head = ["method", "test error", f"to {self.reference}", "", "trained", "share", *COLUMNS.values(), "forgets"]
        lines = ["test error in %, difference in points [95 % intervals]; seconds of training's steps, peak memory of arrays,",
                 "size of a file of what was trained, in MB of 2^20 bytes; forgets: rise of the loss on a general text, in",
                 "nats a token [least, most of the seeds]"]
        if (workers := self.results.settings.get("workers", 1)) > 1:
            lines.append(f"{workers} runs side by side, which slow each other: seconds are longer than of a run alone")
        for n in self.sizes:
            seeds = len(self.results.runs(self.reference, n))
            lines += ["", f"{n:,} labels, {seeds} {'seed' if seeds == 1 else 'seeds'}",
                      *aligned([head, *(self._cells(name, n) for name in self.methods)])]
        return "\n".join(lines)

    def _cells(self, name: str, n: int) -> list[str]:
        to_reference = ["", ""] if name == self.reference else [_signed(self.difference(name, n)), self.verdict(name, n)]
        forgotten = self.forgetting(name, n)
        trained = self.results.mean("trainable_parameters", name, n)
        return [name, _percent(self.error(name, n)), *to_reference, f"{trained:,.0f}", f"{self.share(name, n):.2%}",
                *(_number(self.cost(column, name, n)) for column in COLUMNS),
                "-" if forgotten is None else f"{forgotten[0]:+.3f} [{forgotten[1]:+.3f}, {forgotten[2]:+.3f}]"]

    def sentence(self, method: str | None = None, labels: int | None = None) -> str:
        """What the runs say of a method beside the reference, "lora" and the middle size unless told."""
        method = method or self._other()
        labels = labels or self.sizes[(len(self.sizes) - 1) // 2]
        if method == self.reference:
            return f"Only {method} was run; there is nothing to compare it with."
        value, low, high = (100 * part for part in self.difference(method, labels))
        interval = f"95 % interval {low:+.1f} to {high:+.1f}"
        if low <= 0 <= high:
            said = (f"{method} and {self.reference} are not distinguishable at {labels:,} labels: their errors differ by "
                    f"{value:+.1f} points ({interval})")
        else:
            word = "less" if high < 0 else "more"
            said = f"{method} errs {abs(value):.1f} points {word} than {self.reference} at {labels:,} labels ({interval})"
        costs = self._costs(method, labels)
        return f"{said}, with {costs}." if costs else f"{said}."

    def _other(self) -> str:
        others = [name for name in self.methods if name != self.reference]
        return LORA_METHOD if LORA_METHOD in others else others[0] if others else self.reference

    def _costs(self, method: str, n: int) -> str:
        """"2.7 % of the trained parameters, 70 % of the time, ... and +0.01 against +0.30 nats a token forgotten"."""
        told = [("trainable_parameters", f"{self.reference}'s trained parameters"), ("training_seconds", "its training time"),
                ("peak_memory_mb", "its memory"), ("file_mb", "its file's size")]
        shares = [(self.cost(column, method, n), self.cost(column, self.reference, n), what) for column, what in told]
        parts = [f"{100 * mine / other:.3g} % of {what}" if mine < other else f"{mine / other:.3g} times {what}"
                 for mine, other, what in shares if mine is not None and other]
        mine, other = self.forgetting(method, n), self.forgetting(self.reference, n)
        if mine and other:
            parts.append(f"{mine[0]:+.3f} nats a token forgotten against {other[0]:+.3f}")
        return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)

    # ---- Rates -----------------------------------------------------------------------------------------------------

    def swept(self) -> dict[int, dict[str, dict[float, tuple[float, float]]]]:
        """{labels: {method: {rate: (validation error, validation loss)}}} of the runs that chose rates, means over seeds."""
        runs: dict[int, Any] = {}
        for row in sorted(self.results.settings.get("sweep", []), key=lambda row: row["labels"]):
            scores = runs.setdefault(row["labels"], {}).setdefault(row["method"], {})
            scores.setdefault(row["rate"], []).append((row["valid_error"], row["valid_loss"]))
        return {n: {name: {rate: tuple(np.mean(values, 0)) for rate, values in scores.items()}
                    for name, scores in methods.items()} for n, methods in runs.items()}

    def rates(self) -> str:
        """The validation error at every rate that was tried, the chosen one marked; and LoRA's best rate over full's."""
        swept, edges = self.swept(), self.results.settings.get("rates_at_the_edge", [])
        lines = ["validation error in % at each rate; * is the rate that was taken, by the mean loss between equal errors"]
        for n, methods in swept.items():
            tried = sorted({rate for scores in methods.values() for rate in scores})
            cells = [[name, *(f"{100 * scores[rate][0]:.1f}{' *' * (rate == _best(scores))}" if rate in scores else ""
                              for rate in tried)] for name, scores in methods.items()]
            lines += ["", *aligned([[f"{n:,} labels", *(f"{rate:g}" for rate in tried)], *cells])]
        at = self.results.settings.get("protocol", {}).get("sweep_at", ())
        for n in self.sizes if swept and at else ():
            if (near := min(at, key=lambda size: abs(log(size / n)))) != n:
                lines.append(f"\nRates for {n:,} labels are those chosen at {near:,}.")
        chosen = {name for methods in swept.values() for name in methods}
        given = [f"{name} {rate:g}" for name in self.methods if name not in chosen and (rate := self.rate(name, self.sizes[0]))]
        lines += [f"\nOne rate, not chosen: {', '.join(given)}."] if given else []
        lines += [f"\nBest at the edge of those tried: {', '.join(edges)}. A better one may lie outside."] if edges else []
        ratios = [f"{ratio:.3g} times full's at {n:,} labels" for n in swept if (ratio := self.rate_ratio(n))]
        papers = "; ".join(f"{figure.value:g} ({figure.paper.split(',')[0]})" for figure in RATE_RATIOS)
        lines += [f"\nLoRA's best rate is {', '.join(ratios)}. In papers: {papers}."] if ratios else []
        return "\n".join(lines)

    def rate_ratio(self, labels: int) -> float | None:
        """LoRA's best rate over full's on validation; None where not both of them were chosen at so many labels."""
        scores = self.swept().get(labels, {})
        return _best(scores[LORA_METHOD]) / _best(scores[FULL]) if {FULL, LORA_METHOD} <= set(scores) else None

    # ---- Beside papers ---------------------------------------------------------------------------------------------

    def beside_papers(self) -> str:
        """Our figures beside LoRA's Table 16 and its Appendix A, and two claims of Biderman et al., whichever way they go.

        Comparable is on which side of full fine-tuning a method is; errors are not: models, tasks and texts are others.
        """
        parts = [self._low_data(), self._prompted(), self._claims()]
        return "\n\n".join(part for part in parts if part)

    def _low_data(self) -> str:
        lines = [["labels", "method", "the paper's", "here [95 % interval]", "side"]]
        for n in self.sizes if self.reference == FULL else []:
            near = min(SIZES, key=lambda size: abs(log(size / n)))
            for method in self.methods:
                if method in CALLED and max(near / n, n / near) <= NEAR:
                    row = CALLED[method]
                    theirs = LOW_DATA[row, near].value - LOW_DATA["Fine-Tune", near].value
                    value, low, high = self.difference(method, n)
                    lines.append([f"{n:,}", f"{method} ({row})", f"{theirs:+.1f}", _signed((-value, -high, -low)),
                                  side(theirs, self.verdict(method, n))])
        if len(lines) == 1:
            return ""
        return "\n".join([f"Accuracy above full fine-tuning's, in points. {LORA}, Table 16: GPT-3 175B on MNLI, so many labels "
                          f"(accuracies there waver by {NOISE} points); here {self.results.settings.get('dataset', '')}.",
                          *aligned(lines)])

    def _prompted(self) -> str:
        if not {"few-shot", self.reference} <= set(self.methods):
            return ""
        n, (prompted, tuned) = self.sizes[-1], PROMPTED
        here = [f"{100 - 100 * self.error(name, n)[0]:.1f}" for name in ("few-shot", self.reference)]
        return (f"Prompted against tuned, accuracy in %. {LORA}, {prompted.place}: few-shot {prompted.value:g}, fine-tuned "
                f"{tuned.value:g} ({tuned.data}, GPT-3 175B). Here, {n:,} labels: few-shot {here[0]}, {self.reference} "
                f"{here[1]}.")

    def _claims(self) -> str:
        if not {FULL, LORA_METHOD} <= set(self.methods):
            return ""
        lines = [["labels", "error of lora above full's", "learns less", "forgets: lora", "full", "forgets less"]]
        for n in self.sizes:
            lora, full = self.forgetting(LORA_METHOD, n), self.forgetting(FULL, n)
            told = ["-", "-"] if lora is None or full is None else [f"{lora[0]:+.3f}", f"{full[0]:+.3f}"]
            lines.append([f"{n:,}", _signed(self.difference(LORA_METHOD, n)), learns_less(self.verdict(LORA_METHOD, n)), *told,
                          self.forgets_less(n)])
        return "\n".join([f"{LEARNS_LESS.paper}. Its claims: {LEARNS_LESS.says} ({LEARNS_LESS.there}); {FORGETS_LESS.says} "
                          f"({FORGETS_LESS.there}).", *aligned(lines)])

    def forgets_less(self, labels: int) -> str:
        """Whether LoRA forgot less than full fine-tuning: "holds" in every seed, "reversed" in every seed, or in how many."""
        pairs = list(zip(self._rises(LORA_METHOD, labels), self._rises(FULL, labels)))
        less = sum(lora < full for lora, full in pairs)
        if not pairs:
            return "not measured"
        more = sum(lora > full for lora, full in pairs)
        return ("holds" if less == len(pairs) else "reversed" if more == len(pairs) else
                f"in {less} of {len(pairs)} seeds")

    # ---- Plots and JSON --------------------------------------------------------------------------------------------

    def plot(self, folder: str | Path | None = None) -> list[Any]:
        """Error against trained parameters, error against training time, forgetting against error; a panel a label count.

        Returns the three matplotlib Figures, and writes them to `folder` if given: error_against_parameters.png,
        error_against_seconds.png, forgetting_against_learning.png. The last is left out where no forgetting was measured.
        Raises ImportError where matplotlib is not installed.
        """
        name, error = self.results.settings.get("dataset", ""), "test error, %"
        files = [Path(folder) / file if folder else None for file in PLOTS]
        percent = {(m, n): _times_100(self.error(m, n)) for m in self.methods for n in self.sizes}
        figures = []
        for column, label, file in (("trainable_parameters", "trained parameters", files[0]),
                                    ("training_seconds", "seconds of training", files[1])):
            panels = {f"{n:,} labels": {m: (_point(self.cost(column, m, n)), percent[m, n]) for m in self.methods
                                        if self.cost(column, m, n) is not None} for n in self.sizes}
            figures.append(comparison_panels(panels, label, error, f"{name}: what an error costs", file, log_x=True))
        panels = {f"{n:,} labels": {m: (percent[m, n], forgotten) for m in self.methods if (forgotten := self.forgetting(m, n))}
                  for n in self.sizes}
        if any(panels.values()):
            figures.append(comparison_panels(panels, error, "forgotten, nats a token", f"{name}: learning and forgetting",
                                             files[2], symmetric_log_y=True))
        return figures

    def to_json(self, file: str | Path) -> None:
        """Writes the sentences, the table, the rates, what stands beside papers, and every run, whole or not at all."""
        words = {"sentences": [self.sentence(labels=n) for n in self.sizes], "table": self.table().splitlines(),
                 "rates": self.rates().splitlines(), "beside_papers": self.beside_papers().splitlines()}
        write_text(file, json.dumps(words | {"settings": self.results.settings, "runs": self.results.rows}, indent=1) + "\n")

    @staticmethod
    def from_json(file: str | Path) -> Comparison:
        """Reads what `to_json` wrote; all words are made anew from the runs. Raises ValueError for another file."""
        stored = read_json(Path(file))
        if lacking := {"runs", "settings"} - set(stored):
            raise ValueError(f"Comparison.from_json: {file} has no {', '.join(sorted(lacking))}. Was it written by to_json?")
        return Comparison(Results(stored["runs"], stored["settings"]))


def side(published: float, verdict: str) -> str:
    """Whether a method is on the same side of full fine-tuning in a paper, by `published` points of accuracy, and here."""
    there = "not distinguishable" if abs(published) <= NOISE else "better" if published > 0 else "worse"
    return "same" if there == verdict else f"there {there}, here {verdict}"


def learns_less(verdict: str) -> str:
    """What of "LoRA learns less" holds where its error is `verdict` beside full fine-tuning's."""
    return {"worse": "holds", "better": "reversed"}.get(verdict, verdict)


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Rows whose columns stand under each other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _best(scores: dict[float, tuple[float, float]]) -> float:
    """The rate with the lowest error, of equal ones with the lowest loss."""
    return min(scores, key=scores.__getitem__)


def _verdict(difference: Estimate) -> str:
    _, low, high = difference
    return "not distinguishable" if low <= 0 <= high else "better" if high < 0 else "worse"


def _point(value: float | None) -> Estimate:
    assert value is not None
    return value, value, value


def _times_100(estimate: Estimate) -> Estimate:
    value, low, high = estimate
    return 100 * value, 100 * low, 100 * high


def _percent(estimate: Estimate) -> str:
    value, low, high = _times_100(estimate)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _signed(estimate: Estimate) -> str:
    value, low, high = (part + 0.0 for part in _times_100(estimate))        # no "-0.0"
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
