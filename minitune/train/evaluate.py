"""evaluate, predict_proba and predict: a model on a whole set, without recording anything."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp
from typing import Any, Protocol

import numpy as np

from ..data import Batch, ImageBatch
from ..nn import Module


class BatchSet(Protocol):
    """What trains and evaluates: a length, and batches by row number."""

    def __len__(self) -> int: ...
    def batch(self, rows: np.ndarray) -> Batch | ImageBatch: ...


def _batches(model: Module, dataset: BatchSet, batch_size: int) -> Iterator[tuple[np.ndarray, Any]]:
    """(row numbers, batch for the model) over the whole set; rows of like length go together, so that little is padding."""
    lengths = [len(document) for document in getattr(dataset, "documents", ())]
    order = np.argsort(lengths, kind="stable") if lengths else np.arange(len(dataset))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, dataset.batch(rows).to(model.device)


def evaluate(model: Module, dataset: BatchSet, batch_size: int = 32) -> dict[str, float]:
    """{"loss": mean loss in nats, "perplexity": e^loss} for a language model, {"loss", "error"} for a classifier.

    Sums are divided by counts over the whole set, so padding and batch size change nothing. "error" is the share of
    rows whose most likely class is wrong. Raises ValueError for an empty set.
    """
    parts: dict[str, list[tuple[Any, int]]] = {}
    with model.evaluating():
        for _, batch in _batches(model, dataset, batch_size):
            for name, part in model.measure(batch).items():         # type: ignore[attr-defined]
                parts.setdefault(name, []).append(part)             # on a GPU, read once all are on their way
    sums = {name: (sum(float(amount) for amount, _ in of), sum(count for _, count in of)) for name, of in parts.items()}
    if not any(count for _, count in sums.values()):
        raise ValueError("evaluate: the set holds nothing to predict")
    means = {name: amount / count for name, (amount, count) in sums.items()}
    return means if "error" in means else means | {"perplexity": exp(min(means["loss"], 700.0))}     # e^710 overflows


def predict_proba(model: Any, dataset: BatchSet, batch_size: int = 32) -> np.ndarray:
    """The probability of every class for every row, (N, K) float64, in the order of the rows: the head's `probabilities`.

    Raises TypeError for a model whose rows have no classes of their own, such as a language model.
    """
    if not hasattr(model, "probabilities"):
        raise TypeError(f"predict_proba: expected a model that classifies whole rows, got {type(model).__name__}. Its logits "
                        "are model(batch)")
    if not len(dataset):
        return np.empty((0, getattr(model, "choices", model.head.weight.shape[0])))
    with model.evaluating():
        parts = [(rows, model.probabilities(model(batch).numpy())) for rows, batch in _batches(model, dataset, batch_size)]
    order = np.concatenate([rows for rows, _ in parts])
    return np.concatenate([probabilities for _, probabilities in parts])[np.argsort(order)]


def predict(model: Any, dataset: BatchSet, batch_size: int = 32) -> np.ndarray:
    """The number of the most likely class of every row, (N,) integers; of several labels a row, which it has, (N, K) 0 or 1."""
    probabilities = predict_proba(model, dataset, batch_size)
    return (probabilities > 0.5).astype(int) if getattr(model, "independent", False) else probabilities.argmax(-1)
