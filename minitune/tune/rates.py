"""Discriminative rates: each layer group learns at its own, the lower the slower; and the rates of a whole training."""

from __future__ import annotations

from ..nn import Module
from ..optim import SCHEDULES, Group, Optimizer, Schedule
from .report import parts_of
from .unfreezing import Unfreezing


def discriminative(model: Module, factor: float = 2.6, weight_decay: float = 0.01) -> list[Group]:
    """The groups of an optimizer in which each layer group learns `factor` times slower than the one after it.

    rate of group l of L = factor^-(L - l), relative to the step's rate: `AdamW(discriminative(model), lr)`. `weight_decay`
    is of the weights of linear layers alone. A parameter that two layer groups share is of the first.
    Raises ValueError for a factor below 1 and where a parameter is in no layer group.
    Source: Howard and Ruder 2018, ULMFiT, section 3.2.
    """
    if not factor >= 1:
        raise ValueError(f"discriminative: factor must be at least 1, got {factor}. Did you give its inverse?")
    parts = parts_of(model)
    grouped = {id(p) for _, parameters in parts for p in parameters}
    if lost := [name for name, p in model.named_parameters() if id(p) not in grouped]:
        raise ValueError(f"discriminative: no layer group of {type(model).__name__} holds {', '.join(lost[:4])}")
    groups = []
    for depth, (_, parameters) in enumerate(reversed(parts)):
        for decays in (True, False):
            own = [p for p in parameters if p.decays == decays]
            groups += [Group(own, factor**-depth, weight_decay if decays else 0.0)] if own else []
    return groups[::-1]


def rates_by_step(model: Module, optimizer: Optimizer, steps: int, lr: float, schedule: str | Schedule = "linear",
                  unfreezing: Unfreezing | None = None) -> list[dict[str, float]]:
    """At which rate each layer group learns at every step of a training to come, 0 while it is frozen.

    Rows {"step", name of a layer group: rate}, which `show.rate_curves` draws; rate = lr times the schedule's factor times
    the largest rate that the optimizer's groups have in it. Without `unfreezing`, what is frozen is what is so now.
    Raises ValueError where `unfreezing` is of a model with other layer groups.
    """
    factor = schedule if callable(schedule) else SCHEDULES[schedule]
    held = {id(p): group.rate for group in optimizer.groups for p in group.parameters}
    parts = parts_of(model)
    relative = {name: max((held.get(id(p), 0.0) for p in own), default=0.0) for name, own in parts}
    now = tuple(name for name, own in parts if any(p.requires_grad for p in own))
    if unfreezing:
        unfreezing.check(model)
    rows = []
    for step in range(steps):
        rate, trained = lr * factor(step, steps), unfreezing.at(step) if unfreezing else now
        rows.append({"step": step} | {name: rate * own if name in trained else 0.0 for name, own in relative.items()})
    return rows
