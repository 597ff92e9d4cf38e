"""lr_find: at which learning rates a loss falls, found in one short run that leaves no trace; sweep: which of some is best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..backend import random
from ..optim.optimizers import Slot
from ..show import rate_finding
from .trainer import Trainer, _score

FEWEST = 20         # steps of a run
SMOOTHING = 0.9     # with the usual 0.98 a loss would count for 50 steps, and a run of 100 show it some decades late
DIVERGED = 4.0      # times the lowest smoothed loss


@dataclass(frozen=True)
class RateFinding:
    """What `lr_find` saw: the rates, the smoothed loss at each, the rate it suggests, and what speaks against that, or ""."""

    rates: list[float]
    losses: list[float]
    suggestion: float
    note: str = ""

    def around(self, each_side: int = 2, factor: float = 3.0) -> list[float]:
        """The suggestion and its neighbours, each `factor` times the one before: what `sweep` may try."""
        return [self.suggestion * factor**power for power in range(-each_side, each_side + 1)]

    def plot(self, file: str | Path | None = None, title: str = "") -> Any:
        """The loss over the rate. Returns the matplotlib Figure, written to `file` if given."""
        return rate_finding(self.rates, self.losses, self.suggestion, file, title)

    def __str__(self) -> str:
        return f"rate {self.suggestion:.2g}, where half of the fall of the loss is done" + f". {self.note}" * bool(self.note)


def lr_find(trainer: Trainer, lowest: float = 1e-6, highest: float = 1.0, steps: int = 100) -> RateFinding:
    """Trains with a rate that rises from step to step, and then makes everything what it was, bit for bit.

    rate_i = lowest (highest / lowest)^(i / (steps - 1)). The loss before each step is smoothed, with bias correction:
    s_i = sum over j <= i of b^(i - j) loss_j / sum over j <= i of b^(i - j), b = 0.9. The run stops where s is not finite or
    4 times its lowest. The first tenth of the steps, whose s is of few losses, decides neither that nor the suggestion.

    The suggestion is the rate at which half of the fall of s, down to its lowest, is done. Smith reads two rates off the curve:
    where learning begins, and where it slows or becomes ragged. The first is too low, the second too high or, where a loss
    stays at a plateau for decades, anywhere on that. The middle of the fall lies between them, and noise moves it less than it
    does the steepest point.
    Relative rates of groups, clipping and `accumulate` are the trainer's; what trains is what its callbacks say for its next
    step. Weights, optimizer, gradients, random counters, the order of rows and the trainer are afterwards what they were,
    also where the run fails or is interrupted; meanwhile weights and moments are there twice.
    Raises ValueError for rates and steps that make no run, a training that has ended, and a loss that fell at no rate.
    Source: Smith 2017, Cyclical learning rates for training neural networks, section 3.3.
    """
    if not 0 < lowest < highest < inf or steps < FEWEST:
        raise ValueError(f"lr_find: expected 0 < lowest < highest and at least {FEWEST} steps, got lowest {lowest}, highest "
                         f"{highest} and {steps} steps")
    if trainer.step >= trainer.steps or trainer._stalled():
        raise ValueError(f"lr_find: the training has ended, at step {trainer.step}. Give a trainer that has steps to do")
    with _left_as_it_was(trainer), np.errstate(all="ignore"):               # that it overflows is what ends the run
        rates, losses = _run(trainer, np.geomspace(lowest, highest, steps).tolist())
    return _finding(rates, losses, steps)


def _smoothed(losses: Sequence[float]) -> np.ndarray:
    """The mean of the losses up to each, weights falling by SMOOTHING from one to the one before."""
    total, weight, means = 0.0, 0.0, []
    for loss in losses:
        total, weight = SMOOTHING * total + loss, SMOOTHING * weight + 1
        means.append(total / weight)
    return np.array(means)


def _run(trainer: Trainer, rates: list[float]) -> tuple[list[float], list[float]]:
    """(rates, losses) of the steps up to the one that is lost."""
    settled = len(rates) // 10
    trainer._tell("on_step_begin")
    for rate in tqdm(rates, desc="learning rate", unit="step", disable=not trainer.progress):
        try:
            trainer.train_step([trainer.train.batch(rows) for rows in trainer._next_rows()], rate)
            trainer._look()
        except FloatingPointError:
            break
        means = _smoothed(trainer.losses)
        if means[-1] > DIVERGED * means[settled:].min(initial=inf):
            break
    return rates[: len(trainer.losses)], trainer.losses


def _finding(rates: list[float], losses: list[float], steps: int) -> RateFinding:
    means, settled = _smoothed(losses), steps // 10
    lowest = settled + int(means[settled:].argmin()) if len(means) > settled else settled
    if lowest == settled:
        raise ValueError(f"lr_find: the loss fell at no rate, it was {', '.join(f'{loss:.3g}' for loss in losses[:3])} ... "
                         f"from rate {rates[0] if rates else 'the first'} on. Begin with a lower rate")
    fall = means[settled] - means[lowest]
    middle = int(np.flatnonzero(means[: lowest + 1] > means[lowest] + fall / 2)[-1]) + 1
    noise = np.sqrt(np.mean(np.diff(losses[: middle + 1]) ** 2) / 2)        # of one loss: a trend hardly enters differences
    notes = [(means[0] - means[settled] > max(fall / 2, 2 * noise), "It fell from the first rates on: begin lower"),
             (lowest == steps - 1, "It fell up to the highest rate: end higher"),
             (fall < 2 * noise, f"It fell by {fall:.2g}, and varies by {noise:.2g} from step to step: read more rows a step")]
    return RateFinding(rates, means.tolist(), rates[middle], ". ".join(note for holds, note in notes if holds))


@contextmanager
def _left_as_it_was(trainer: Trainer) -> Iterator[None]:
    """Inside this block it trains copies; afterwards the trainer, its model and every random stream are what they were."""
    model, optimizer = trainer.model, trainer.optimizer
    parameters = [(p, p.data, p.grad, p.requires_grad) for p in model.parameters()]
    modes = [(part, part.training) for part in model.modules()]
    own, its = dict(vars(trainer)), dict(vars(optimizer))
    try:
        for name, p in model.named_parameters():
            best, last = trainer.left.get(name, (None, None))               # as fit: it goes on from the last, not the best
            p.data = (p.data if last is None or p.data is not best else last).copy()
        optimizer.slots = {key: Slot(slot.step, tuple(m.copy() for m in slot.moments))
                           for key, slot in optimizer.slots.items()}
        trainer.losses, trainer.unseen = [], []
        model.train()
        with _random_as_it_was():
            yield
    finally:
        for p, data, grad, requires_grad in parameters:
            p.data, p.grad, p.requires_grad = data, grad, requires_grad
        for part, training in modes:
            part.training = training
        trainer.__dict__, optimizer.__dict__ = own, its


@contextmanager
def _random_as_it_was() -> Iterator[None]:
    """After this block every random stream stands where it stood before."""
    seed, counters = random.seed, dict(random.counters)
    try:
        yield
    finally:
        random.seed = seed
        random.counters.clear()
        random.counters.update(counters)


@dataclass(frozen=True)
class RateSweep:
    """What `sweep` measured: a row {"rate", "loss", ...} for each rate, the lowest first; loss inf where training diverged."""

    rows: list[dict[str, float]]
    best: float

    @property
    def at_edge(self) -> bool:
        """Whether the best is the lowest or the highest rate that was tried: a better one may lie beyond."""
        return self.best in (self.rows[0]["rate"], self.rows[-1]["rate"])

    def __str__(self) -> str:
        lines = ["".join(f"{name:>12}" for name in max(self.rows, key=len))]
        lines += ["".join(f"{value:12.4g}" for value in row.values()) + "  best" * (row["rate"] == self.best)
                  for row in self.rows]
        side = "lower" if self.best == self.rows[0]["rate"] else "higher"
        return "\n".join(lines) + f"\nThe best is at the edge: try {side} rates" * self.at_edge


def sweep(make_trainer: Callable[[float], Trainer], rates: Sequence[float]) -> RateSweep:
    """Trains once with each rate and says which did best on validation, by error and then loss as a Trainer chooses.

    `make_trainer(rate)` makes a model and its Trainer anew, with a validation set. Every training begins with the random
    numbers where they stand now, so that nothing but the rate differs, and they stand there again afterwards.
    Raises ValueError for fewer than two rates, no validation set, and models that share what they train; FloatingPointError
    where every training diverged.
    """
    rates = sorted(set(rates))
    if len(rates) < 2 or not 0 < rates[0] <= rates[-1] < inf:
        raise ValueError(f"sweep: expected at least two different rates above 0, got {rates}")
    rows: list[dict[str, float]] = []
    before: dict[int, Any] = {}                 # what the last training moved
    for rate in rates:
        with _random_as_it_was():
            trainer = make_trainer(rate)
            if trainer.valid is None:
                raise ValueError("sweep: make_trainer must give each Trainer a validation set")
            if any(id(p) in before for p in trainer.model.parameters()):
                raise ValueError("sweep: make_trainer gave weights that were trained at another rate. Make the model anew, or "
                                 "copy it: deepcopy(base)")
            before = {id(p): p for p in trainer.model.parameters() if p.requires_grad}
            rows.append({"rate": rate} | _measured(trainer))
    best = min(rows, key=_score)
    if best["loss"] == inf:
        raise FloatingPointError(f"sweep: training diverged at every rate, also at {rates[0]:.2g}. Try lower ones")
    return RateSweep(rows, best["rate"])


def _measured(trainer: Trainer) -> dict[str, float]:
    """What validation says of a training: of its best weights, or the last where none are kept."""
    try:
        with np.errstate(all="ignore"):
            rows = trainer.fit().rows
    except FloatingPointError:
        return {"loss": inf}
    if trainer.best:
        return trainer.best.measured
    return {name.removeprefix("valid_"): value for name, value in rows[-1].items() if name.startswith("valid_")}
