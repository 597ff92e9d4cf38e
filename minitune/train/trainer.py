"""Trainer: one visible loop, and what may happen beside it. It knows a model only by its loss, a set only by its batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from math import isfinite, nan
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

from ..backend import Array, random
from ..cores import keep_large_blocks, sharing
from ..data import Batch, ImageBatch
from ..devices import to_device
from ..formats.folder import write_tensors
from ..nn import Module
from ..optim import SCHEDULES, AdamW, Optimizer, Schedule
from ..tune import audit, require_held
from .anomaly import not_finite, what_went_wrong
from .average import WeightAverage
from .checkpoint import checkpoints, clear_unfinished, restore, save_checkpoint, settings_of
from .evaluate import BatchSet, evaluate
from .history import Best, History
from .interruption import deferred_signals
from .memory import peak_mb

LOOK = 10           # on a GPU, losses are looked at every so many steps: reading a number waits for all work before it


class Callback:
    """Three events of a training, each of which does nothing unless a subclass says what.

    A training that is resumed makes its callbacks anew: what one remembers must follow from `trainer.step`. The repr of one
    that is a dataclass is among the training's settings, which must be the same then; `field(repr=False)` leaves a field out.
    """

    def on_step_begin(self, trainer: Trainer) -> None:
        """Before every step of the optimizer; `trainer.step` is its number, from 0."""

    def on_evaluate(self, trainer: Trainer, row: dict[str, float]) -> None:
        """After every evaluation; `row` is the history's new row and may be added to."""

    def on_train_end(self, trainer: Trainer) -> None:
        """When training has ended, for whatever reason."""


def _score(measured: dict[str, float]) -> tuple[float, float]:
    """Lower is better: the error of a classifier, its loss between equal errors; the loss of another model."""
    return measured.get("error", measured["loss"]), measured["loss"]


class Trainer:
    """Trains a model on batches of a set and keeps the weights that did best on another.

    One step reads `accumulate` batches of `batch_size` rows. Its gradient is that of the mean loss over all their
    supervised targets, so four batches of 8 do exactly what one of 32 does.
    The rate at step t is `lr` times the schedule's factor. Every `evaluate_every` steps the model is evaluated on `valid`;
    the best weights so far, by error and then loss for a classifier, by loss otherwise, are kept and put back at the end;
    with `keep_best=False` it is only watched, and the last weights stay.
    With `patience`, training stops after so many evaluations in a row without a new best, though not before `min_steps`.
    With `ema`, a decay such as 0.99, an average of the weights is what is evaluated, kept and left in the model.
    With `out`, the history, best.safetensors (what was trained) and, every `checkpoint_every` steps (as often as it is
    evaluated unless told), a checkpoint are written there; `fit(resume=True)` goes on from the last one.
    Batches go where the model is. On a GPU, with AdamW, no step waits for the one before: every 10 steps, and before an
    evaluation or a checkpoint, losses are looked at. After one that is not finite nothing moves: the weights are those before
    that step, and the rows read since are not read again.
    Raises ValueError for settings that cannot work, FloatingPointError at the first loss that is not finite, with the
    operation that made it, RuntimeError where a parameter that trains is not reached (`tune.audit`).
    """

    def __init__(self, model: Module, train: BatchSet, valid: BatchSet | None = None, *, steps: int, lr: float,
                 batch_size: int = 16, accumulate: int = 1, optimizer: Optimizer | None = None,
                 schedule: str | Schedule = "linear", weight_decay: float | None = None, clip: float = 1.0,
                 evaluate_every: int | None = None, keep_best: bool = True, patience: int | None = None, min_steps: int = 0,
                 ema: float | None = None, callbacks: Sequence[Callback] = (), checkpoint_every: int | None = None,
                 out: str | Path | None = None, progress: bool | str = True) -> None:
        counts = {"steps": steps, "batch_size": batch_size, "accumulate": accumulate, "patience": patience,
                  "evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"Trainer: {name} must be at least 1, got {value}")
        if not clip > 0:
            raise ValueError(f"Trainer: clip must be above 0, got {clip}. For no clipping give float('inf')")
        if not callable(schedule) and schedule not in SCHEDULES:
            raise ValueError(f"Trainer: schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
        if patience and (valid is None or not keep_best):
            raise ValueError("Trainer: patience needs a validation set, Trainer(model, train, valid, ...), and keep_best")
        if optimizer and weight_decay is not None:
            raise ValueError("Trainer: weight_decay is the optimizer's own: AdamW(model, weight_decay=...)")
        self.model, self.train, self.valid = model, train, valid
        self._check_model_and_data()
        self.steps, self.lr, self.batch_size, self.accumulate = steps, lr, batch_size, accumulate
        self.optimizer = optimizer or AdamW(model, lr, weight_decay=0.01 if weight_decay is None else weight_decay)
        require_held(model, self.optimizer)
        self.schedule = schedule if callable(schedule) else SCHEDULES[schedule]
        self.clip = clip
        self.evaluate_every = evaluate_every or max(1, steps // 10)
        self.checkpoint_every = checkpoint_every or self.evaluate_every
        self.keep_best, self.patience, self.min_steps = keep_best, patience, min_steps
        self.average = WeightAverage(ema) if ema is not None else None
        self.callbacks = list(callbacks)
        self.out, self.progress = Path(out) if out else None, progress
        self.history = History()
        self.step = 0
        self.order = np.zeros(0, int)           # the rows that are still to be read, in this order
        self.losses: list[float] = []           # of the steps since the history's last row
        self.unseen: list[tuple] = []           # what `_look` reads of the steps after these; last: are all finite so far?
        self.seen = nan                         # the last loss that was read
        self.best: Best | None = None
        self.left: dict[str, tuple[Array, Array]] = {}      # (what fit left in the model, what training had come to)

    def _check_model_and_data(self) -> None:
        """What is wrong with a row shows now and by its number, not after hours at the batch that holds it."""
        for name, dataset in (("training", self.train), ("validation", self.valid)):
            if dataset is not None and not len(dataset):
                raise ValueError(f"Trainer: the {name} set is empty")
        if not any(p.requires_grad for p in self.model.parameters()):
            raise ValueError("Trainer: every parameter is frozen. Unfreeze some: tune.unfreeze(model, patterns)")
        for dataset in (self.train, self.valid):
            if hasattr(self.model, "check") and dataset is not None:
                self.model.check(dataset)

    def fit(self, resume: bool = False) -> History:
        """Trains, and returns the history. However it ends, the best weights so far are in the model.

        With `resume`, the last checkpoint in `out` is read first, if there is one: what follows is bit for bit what the
        uninterrupted training would have done. Ctrl-C and SIGTERM let a step end and its checkpoint be written.
        Raises ValueError where `out` holds checkpoints of another training, or of this one without `resume`.
        """
        keep_large_blocks()
        self._begin(resume)
        self.model.train()
        with deferred_signals() if self.out else nullcontext(lambda: False) as stop:
            try:
                self._loop(stop)
            finally:                            # also of a run that was interrupted or went astray, the best is left
                self._leave()
        return self.history

    def _begin(self, resume: bool) -> None:
        if resume and not self.out:
            raise ValueError("Trainer: fit(resume=True) needs out=..., the folder with the checkpoints")
        for name, p in self.model.named_parameters():       # a second call goes on from the last weights, not from the best
            if name in self.left and p.data is self.left[name][0]:
                p.data = self.left[name][1]
        self.settings = settings_of(self)
        if self.out:
            clear_unfinished(self.out)
        written = checkpoints(self.out) if self.out else []
        if resume and written:
            self.unseen.clear()
            restore(self, written[-1])
        elif written and not self.step:
            raise ValueError(f"Trainer: {self.out} holds a training that reached step {written[-1].stem.split('-')[-1]}. Go on "
                             "from there with fit(resume=True), or give another folder")

    def _loop(self, stop: Callable[[], bool]) -> None:
        tokens, seconds, trained, watch, due = 0, 0.0, set[str](), None, 0
        label = self.progress if isinstance(self.progress, str) else "training"
        with tqdm(total=self.steps, initial=self.step, desc=label, unit="step", disable=not self.progress) as bar:
            while self.step < self.steps and not self._stalled():
                self._tell("on_step_begin")
                if trained != self._trained():          # at the start, and where a callback froze or unfroze something
                    trained, watch, due = self._trained(), audit(self.model, self.optimizer), self.step + 2
                    self._add_to_best(trained)
                rate, start = self.lr * self.schedule(self.step, self.steps), perf_counter()
                batches = [self.train.batch(rows) for rows in self._next_rows()]
                self.train_step(batches, rate)
                self.step += 1
                if self.average:
                    self.average.update(self.model, self.step)
                if watch and self.step >= due and rate > 0:
                    self._look()
                    watch.check()
                    watch = None
                recorded = self.step % self.evaluate_every == 0 or self.step == self.steps
                if recorded:                    # what waits for a GPU is part of the time
                    self._look()
                tokens, seconds = tokens + sum(b.tokens for b in batches), seconds + perf_counter() - start
                bar.set_postfix_str(f"loss {self.seen:.3f}, rate {rate:.1e}, {tokens / seconds:,.0f} tokens/s", refresh=False)
                bar.update()
                if recorded:
                    self._record(rate, tokens / seconds)
                interrupted = stop()
                if self.out and (interrupted or self.step % self.checkpoint_every == 0 or self.step == self.steps
                                 or self._stalled()):
                    self._look()
                    save_checkpoint(self)
                if interrupted:
                    break

    def train_step(self, batches: list[Batch | ImageBatch], rate: float) -> Any:
        """One step of the optimizer on all these batches together. Returns the mean loss in nats, on a GPU as an array ()."""
        self.optimizer.zero_grad()              # what an interrupted or failed step left must not be added to this one
        counters, before = dict(random.counters), self.unseen[-1][-1] if self.unseen else 0.0
        self.optimizer.lr, batches = rate, [batch.to(self.model.device) for batch in batches]
        with sharing():
            loss = self._backward(batches)
            norm = self.optimizer.clip(self.clip, before + loss)
        self.unseen.append((self.step, rate, batches, counters, loss, norm, before + loss + norm))
        if isinstance(norm, float) or self.step % LOOK == 0:
            self._look()
        with sharing():
            self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def _look(self) -> None:
        """Reads the losses of the steps just done. Raises FloatingPointError for the first that is not finite."""
        steps, self.unseen = self.unseen, []
        for step, rate, batches, counters, *numbers, _ in steps:
            loss, norm = map(float, numbers)
            if not isfinite(loss + norm):       # a finite loss can have an infinite slope
                skipped, self.step = self.step - step, step
                for slot in self.optimizer.slots.values():                  # steps that moved nothing
                    slot.step -= min(skipped, slot.step)
                random.counters.clear()
                random.counters.update(counters)                            # the same dropout again
                cause = what_went_wrong(self.model, partial(self._backward, batches))
                self.optimizer.zero_grad()
                raise FloatingPointError(f"Trainer: the loss is {loss} and the gradient's norm {norm} at step {step}, rate "
                                         f"{rate:.3g}. {cause}. The weights before this step are intact"
                                         f"{', the best so far are in the model' if self.best else ''}; try a lower rate")
            self.losses.append(loss)
            self.seen = loss

    def _backward(self, batches: list[Batch | ImageBatch]) -> Any:
        """Adds the gradient of the mean loss over all targets of all batches; returns the mean, a number or array ()."""
        totals: dict[str, int] = {}
        for batch in batches:
            for term, count in self.model.counts(batch).items():            # type: ignore[attr-defined]
                totals[term] = totals.get(term, 0) + count
        mean: Any = 0.0
        for batch in batches:
            parts = [loss * (weight / max(totals[term], 1))
                     for term, (loss, _, weight) in self.model.loss(batch).items()]     # type: ignore[attr-defined]
            loss = sum(parts[1:], start=parts[0])
            loss.backward()
            mean += loss.item() if self.model.device == "cpu" else loss.data
        return mean

    def _next_rows(self) -> list[np.ndarray]:
        """The numbers of the next step's rows, batch by batch; each epoch reads every row once, in a new order."""
        step = self.batch_size * self.accumulate
        while len(self.order) < min(step, len(self.train)):
            self.order = np.concatenate([self.order, random.permutation("order", len(self.train))])
        rows, self.order = self.order[:step], self.order[step:]
        return [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]

    def _record(self, rate: float, speed: float) -> None:
        """Adds a row to the history, keeps the weights if they are the best so far, writes both to `out`."""
        row = {"step": self.step, "loss": float(np.mean(self.losses)), "rate": rate, "tokens_per_second": speed}
        peak = peak_mb()
        if peak is not None:
            row["peak_mb"] = peak
        self.losses.clear()
        ruined = not_finite(self.model)
        if ruined:
            raise FloatingPointError(f"Trainer: the weights hold NaN or infinity after step {self.step}, in {ruined}. The last "
                                     "checkpoint is of a step before; try a lower rate")
        if self.valid is not None:
            with self.average.applied(self.model) if self.average else nullcontext():
                row |= self._validate(self.valid)
        self._tell("on_evaluate", row)
        self.history.rows.append({name: value.item() if hasattr(value, "item") else value for name, value in row.items()})
        if self.out:
            self.history.write(self.out)

    def _validate(self, valid: BatchSet) -> dict[str, float]:
        measured = evaluate(self.model, valid)
        if not isfinite(measured["loss"]):
            raise FloatingPointError(f"Trainer: the validation loss is {measured['loss']} at step {self.step}, with weights "
                                     "that are finite. Try a lower rate")
        if self.keep_best and (self.best is None or _score(measured) < _score(self.best.measured)):
            self.best = Best(self.step, measured, {})
            self._add_to_best({name for name, p in self.model.named_parameters()
                               if p.requires_grad or id(p) in self.optimizer.slots})
        return {f"valid_{name}": value for name, value in measured.items()}

    def _add_to_best(self, names: set[str]) -> None:
        """Keeps the weights of these names as the best's, where it has none: what is unfrozen late was what it is now."""
        if self.best and not names <= set(self.best.weights):
            self.best.weights |= {name: to_device(p.data, "cpu").copy() for name, p in self.model.named_parameters()
                                  if name in names - set(self.best.weights)}
            if self.out:
                write_tensors(self.out / "best.safetensors", self.best.weights)

    def _trained(self) -> set[str]:
        return {name for name, p in self.model.named_parameters() if p.requires_grad}

    def _stalled(self) -> bool:
        if not self.patience or self.best is None or self.step < self.min_steps or self.step % self.evaluate_every:
            return False
        return self.step - self.best.step >= self.patience * self.evaluate_every

    def _tell(self, event: str, *details: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *details)

    def _leave(self) -> None:
        """Puts the best weights, or else the average, into the model."""
        kept = self.best.weights if self.best else self.average.weights if self.average else {}
        live = {name: p.data for name, p in self.model.named_parameters() if name in kept}
        self.model.load_state_dict(kept, strict=False)
        self.left = {name: (p.data, live[name]) for name, p in self.model.named_parameters() if name in kept}
        self.model.eval()
        self._tell("on_train_end")
