"""classification_metrics: what a classifier gets right, class by class, and whether its confidence can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..show import classification

BINS = 10


class Bin(NamedTuple):
    """The rows whose confidence lies in (low, high]; mean confidence and accuracy are NaN where there are none."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class ClassificationMetrics:
    """What `classification_metrics` found; every other figure follows from the counts held here.

    `confusion` (K, K) counts rows by true class (first axis) and predicted class, `loss` is in nats, `bins` sort the rows by
    confidence, the probability of the predicted class. Where a class has no rows or was never predicted, 0 / 0 counts as 0.
    """

    names: tuple[str, ...]
    confusion: np.ndarray
    loss: float
    bins: list[Bin]

    @property
    def counts(self) -> np.ndarray:
        """Rows of each class, (K,)."""
        return self.confusion.sum(1)

    @property
    def precision(self) -> np.ndarray:
        """Of the rows put into a class, the share that belongs there, (K,)."""
        return self.confusion.diagonal() / np.maximum(self.confusion.sum(0), 1)

    @property
    def recall(self) -> np.ndarray:
        """Of the rows of a class, the share that was put there, (K,)."""
        return self.confusion.diagonal() / np.maximum(self.counts, 1)

    @property
    def f1(self) -> np.ndarray:
        """2 precision recall / (precision + recall) = 2 hits / (rows of the class + rows put there), (K,)."""
        return 2 * self.confusion.diagonal() / np.maximum(self.counts + self.confusion.sum(0), 1)

    @property
    def accuracy(self) -> float:
        """The share of rows whose most likely class is the true one."""
        return float(self.confusion.trace() / self.confusion.sum())

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy: how little few rows say. Source: Wilson 1927, Probable inference, page 210."""
        n, p, z = int(self.confusion.sum()), self.accuracy, 1.959964
        middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))

    @property
    def macro_f1(self) -> float:
        """The mean F1 over all K classes, each of the same weight."""
        return float(self.f1.mean())

    @property
    def micro_f1(self) -> float:
        """F1 of the counts pooled over the classes. With one label a row it equals the accuracy: both denominators are N."""
        return self.accuracy

    @property
    def expected_calibration_error(self) -> float:
        """sum over bins of rows / N * |accuracy - mean confidence|. Source: Guo et al. 2017, equation 3."""
        gaps = sum(part.rows * abs(part.accuracy - part.confidence) for part in self.bins if part.rows)
        return float(gaps / self.confusion.sum())

    def table(self) -> str:
        """Precision, recall, F1 and count of each class and on average, as aligned text."""
        macro = [self.precision.mean(), self.recall.mean(), self.macro_f1]
        rows = [*zip(self.names, self.precision, self.recall, self.f1, self.counts, self._notes()),
                ("macro average", *macro, self.confusion.sum(), ""),
                ("micro average", *[self.micro_f1] * 3, self.confusion.sum(), "equals the accuracy: one label a row")]
        width = max(len(row[0]) for row in rows)
        lines = [f"{'class':{width}}  precision  recall     F1    count"]
        lines += [f"{name:{width}}  {precision:9.3f}  {recall:6.3f}  {f1:5.3f}  {count:7,}  {note}".rstrip()
                  for name, precision, recall, f1, count, note in rows]
        low, high = self.accuracy_interval
        return "\n".join([*lines, f"accuracy {self.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f})",
                          f"loss {self.loss:.3f} nats, expected calibration error {self.expected_calibration_error:.3f}"])

    def _notes(self) -> list[str]:
        """Of each class, what makes a ratio of it 0 / 0, or nothing."""
        reasons = (("no rows", self.counts), ("never predicted", self.confusion.sum(0)))
        return [", ".join(reason for reason, amounts in reasons if not amounts[k]) for k in range(len(self.names))]

    def to_dict(self) -> dict[str, Any]:
        """Every figure as plain numbers, lists and dictionaries, for JSON; what an empty bin has not is None."""
        columns = zip(self.names, self.precision.tolist(), self.recall.tolist(), self.f1.tolist(), self.counts.tolist())
        return {"accuracy": self.accuracy, "accuracy_interval": [*self.accuracy_interval], "loss": self.loss,
                "macro_f1": self.macro_f1, "micro_f1": self.micro_f1,
                "expected_calibration_error": self.expected_calibration_error,
                "classes": [dict(zip(("name", "precision", "recall", "f1", "count"), column)) for column in columns],
                "confusion": self.confusion.tolist(),
                "bins": [{name: None if value != value else value for name, value in part._asdict().items()}
                         for part in self.bins]}

    def plot(self, file: str | Path | None = None) -> Any:
        """Confusion matrix and reliability diagram side by side. Returns the matplotlib Figure; see `show.classification`."""
        return classification(self.confusion, self.names, self.bins, self.expected_calibration_error, file)


def classification_metrics(labels: Any, probabilities: Any, names: Sequence[str]) -> ClassificationMetrics:
    """Measures predicted probabilities against true labels: loss, precision, recall, F1, confusion and calibration.

    The loss is -mean(log p[label]) in nats, where a probability of 0 counts as the smallest normal number (708 nats). The
    predicted class is the most likely one, the first of equals. Confidences are sorted into 10 bins of equal width.
    Shapes: labels (N,) integers, probabilities (N, K), names K. Raises ValueError for other shapes, an empty set, labels
    outside 0 .. K-1 and rows that are no probabilities.

    >>> metrics = classification_metrics([0, 1, 1], [[.9, .1], [.2, .8], [.6, .4]], ["ham", "spam"])
    >>> print(metrics.table())
    class          precision  recall     F1    count
    ham                0.500   1.000  0.667        1
    spam               1.000   0.500  0.667        2
    macro average      0.750   0.750  0.667        3
    micro average      0.667   0.667  0.667        3  equals the accuracy: one label a row
    accuracy 0.667 (95 % interval 0.208 to 0.939)
    loss 0.415 nats, expected calibration error 0.300
    """
    labels, probabilities = _checked(np.asarray(labels), np.asarray(probabilities, np.float64), len(names))
    predicted, confidences = probabilities.argmax(1), probabilities.max(1)
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    likelihoods = probabilities[np.arange(len(labels)), labels]
    loss = -np.log(np.maximum(likelihoods, np.finfo(np.float64).tiny)).mean()
    edges = np.arange(BINS + 1) / BINS
    place = np.searchsorted(edges[1:-1], confidences)           # an edge itself belongs to the bin below it
    bins = []
    for i in range(BINS):
        inside = place == i
        means = (float(x[inside].mean()) if inside.any() else np.nan for x in (confidences, predicted == labels))
        bins.append(Bin(float(edges[i]), float(edges[i + 1]), int(inside.sum()), *means))
    return ClassificationMetrics(tuple(names), confusion, float(loss), bins)


def _checked(labels: np.ndarray, probabilities: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities, or an error that says what is wrong with them."""
    if not labels.size:
        raise ValueError("classification_metrics: the set is empty")
    if labels.ndim != 1 or probabilities.shape != (len(labels), classes):
        raise ValueError(f"classification_metrics: expected labels (N,) and probabilities (N, K) with K = {classes} names, got "
                         f"{labels.shape} and {probabilities.shape}. Were classes predicted instead of probabilities?")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"classification_metrics: labels must be integers, got {labels.dtype}. Give class numbers")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise ValueError(f"classification_metrics: labels must be 0 .. {classes - 1}, got {labels[wrong[0]]} in row "
                         f"{wrong[0]}. Leave rows without a label out")
    wrong = np.flatnonzero(~((probabilities >= 0).all(1) & (abs(probabilities.sum(1) - 1) <= 1e-3)))
    if len(wrong):
        raise ValueError(f"classification_metrics: probabilities must be at least 0 and add up to 1, got "
                         f"{probabilities[wrong[0]]} in row {wrong[0]}. Were logits given? predict_proba gives probabilities")
    return labels, probabilities
