"""Trainer: one visible loop. It knows a model only by its loss, and a set only by its batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from time import perf_counter

import numpy as np
from tqdm import tqdm

from ..backend import Array, keep_large_blocks, random
from ..data import Batch
from ..formats.folder import write_tensors
from ..nn import Module
from ..optim import SCHEDULES, AdamW, Optimizer, Schedule, clip_grad_norm
from .evaluate import BatchSet, evaluate
from .history import History


@dataclass
class Best:
    """The evaluation that did best so far: its step, what was measured on `valid`, and the trained weights then."""

    step: int
    measured: dict[str, float]
    weights: dict[str, Array]


def _score(measured: dict[str, float]) -> tuple[float, float]:
    """Lower is better: the error of a classifier, its loss between equal errors; the loss of another model."""
    return measured.get("error", measured["loss"]), measured["loss"]


class Trainer:
    """Trains a model on batches of a set and keeps the weights that did best on another.

    One step reads `accumulate` batches of `batch_size` rows. Its gradient is that of the mean loss over all their
    supervised targets, so four batches of 8 do exactly what one of 32 does.
    The rate at step t is `lr` times the schedule's factor. Every `evaluate_every` steps the model is evaluated on `valid`;
    the best weights so far, by error and then loss for a classifier, by loss otherwise, are kept and put back at the end.
    With `patience`, training stops after so many evaluations in a row without a new best, though not before `min_steps`.
    With `out`, history.csv and best.safetensors (what was trained) are written there at each evaluation.
    Raises ValueError for settings that cannot work, FloatingPointError at the first loss that is not finite.
    """

    def __init__(self, model: Module, train: BatchSet, valid: BatchSet | None = None, *, steps: int, lr: float,
                 batch_size: int = 16, accumulate: int = 1, optimizer: Optimizer | None = None,
                 schedule: str | Schedule = "linear", weight_decay: float = 0.01, clip: float = 1.0,
                 evaluate_every: int | None = None, patience: int | None = None, min_steps: int = 0,
                 out: str | Path | None = None, progress: bool | str = True) -> None:
        for name, value in {"steps": steps, "batch_size": batch_size, "accumulate": accumulate}.items():
            if value < 1:
                raise ValueError(f"Trainer: {name} must be at least 1, got {value}")
        if not clip > 0:
            raise ValueError(f"Trainer: clip must be above 0, got {clip}. For no clipping give float('inf')")
        if not callable(schedule) and schedule not in SCHEDULES:
            raise ValueError(f"Trainer: schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
        if not len(train):
            raise ValueError("Trainer: the training set is empty")
        if patience and valid is None:
            raise ValueError("Trainer: patience needs a validation set: Trainer(model, train, valid, ...)")
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError("Trainer: every parameter is frozen. Unfreeze some: tune.unfreeze(model, patterns)")
        self.model, self.train, self.valid = model, train, valid
        self.steps, self.lr, self.batch_size, self.accumulate = steps, lr, batch_size, accumulate
        self.optimizer = optimizer or AdamW(model, lr, weight_decay=weight_decay)
        held = {id(p) for p in self.optimizer.parameters()}
        lost = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
        if lost:
            raise ValueError(f"Trainer: the optimizer does not hold {', '.join(lost[:4])}. Make it after tune.apply")
        self.schedule = schedule if callable(schedule) else SCHEDULES[schedule]
        self.clip = clip
        self.evaluate_every = evaluate_every or max(1, steps // 10)
        self.patience, self.min_steps = patience, min_steps
        self.out, self.progress = Path(out) if out else None, progress
        self.history = History()
        self.step = 0
        self.losses: list[float] = []           # of the steps since the history's last row
        self.best: Best | None = None

    def fit(self) -> History:
        """Trains, and returns the history. However it ends, the best weights so far are in the model."""
        keep_large_blocks()
        self.model.train()
        batches = self._batches()
        label = self.progress if isinstance(self.progress, str) else "training"
        try:
            self._loop(batches, label)
        finally:                                # also of a run that was interrupted or went astray, the best is left
            if self.best:
                self.model.load_state_dict(self.best.weights, strict=False)
            self.model.eval()
        return self.history

    def _loop(self, batches: Iterator[Batch], label: str) -> None:
        tokens, seconds = 0, 0.0
        with tqdm(total=self.steps, desc=label, unit="step", disable=not self.progress) as bar:
            while self.step < self.steps:
                rate, start = self.lr * self.schedule(self.step, self.steps), perf_counter()
                step_batches = [next(batches) for _ in range(self.accumulate)]
                loss = self.train_step(step_batches, rate)
                self.step += 1
                self.losses.append(loss)
                tokens, seconds = tokens + sum(b.tokens for b in step_batches), seconds + perf_counter() - start
                bar.set_postfix_str(f"loss {loss:.3f}, rate {rate:.1e}, {tokens / seconds:,.0f} tokens/s", refresh=False)
                bar.update()
                if self.step % self.evaluate_every == 0 or self.step == self.steps:
                    self._record(rate, tokens / seconds)
                    if self._stalled():
                        break

    def train_step(self, batches: list[Batch], rate: float) -> float:
        """One step of the optimizer on all these batches together. Returns the mean loss in nats."""
        self.optimizer.zero_grad()              # what an interrupted or failed step left must not be added to this one
        totals: dict[str, int] = {}
        for batch in batches:
            for term, count in self.model.counts(batch).items():            # type: ignore[attr-defined]
                totals[term] = totals.get(term, 0) + count
        mean = 0.0
        for batch in batches:
            parts = [loss * (weight / max(totals[term], 1))
                     for term, (loss, _, weight) in self.model.loss(batch).items()]     # type: ignore[attr-defined]
            loss = sum(parts[1:], start=parts[0])
            loss.backward()
            mean += loss.item()
        norm = clip_grad_norm(self.optimizer.parameters(), self.clip)
        if not isfinite(mean + norm):           # a finite loss can have an infinite slope
            raise FloatingPointError(f"Trainer: the loss is {mean} and the gradient's norm {norm} at step {self.step}, rate "
                                     f"{rate:.3g}. The weights before this step are intact; try a lower rate")
        self.optimizer.lr = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return mean

    def _batches(self) -> Iterator[Batch]:
        """Batches without end; each epoch reads every row once, in a new order."""
        order = np.zeros(0, int)
        while True:
            while len(order) < min(self.batch_size, len(self.train)):
                order = np.concatenate([order, random.permutation("order", len(self.train))])
            rows, order = order[: self.batch_size], order[self.batch_size :]
            yield self.train.batch(rows)

    def _record(self, rate: float, speed: float) -> None:
        """Adds a row to the history, keeps the weights if they are the best so far, writes both to `out`."""
        row = {"step": self.step, "loss": float(np.mean(self.losses)), "rate": rate, "tokens_per_second": speed}
        self.losses.clear()
        if self.valid is not None:
            measured = evaluate(self.model, self.valid)
            row |= {f"valid_{name}": value for name, value in measured.items()}
            if self.best is None or _score(measured) < _score(self.best.measured):
                trained = {name: p.data.copy() for name, p in self.model.named_parameters() if p.requires_grad}
                self.best = Best(self.step, measured, trained)
                if self.out:
                    write_tensors(self.out / "best.safetensors", trained)
        self.history.rows.append(row)
        if self.out:
            self.history.to_csv(self.out / "history.csv")

    def _stalled(self) -> bool:
        if not self.patience or self.best is None or self.step < self.min_steps:
            return False
        return self.step - self.best.step >= self.patience * self.evaluate_every
