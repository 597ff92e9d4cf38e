"""report: what trains, how much of it, in which part of the model, and at which rate."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..nn import Module, Parameter
from ..optim import Optimizer


@dataclass
class Report:
    """Rows of (part, parameters, trainable parameters), and the rates of each part that trains; printed as a table."""

    rows: list[tuple[str, int, int]]
    rates: dict[str, list[float]] = field(default_factory=dict)         # from the lowest; empty without an optimizer

    @property
    def total(self) -> int:
        return sum(total for _, total, _ in self.rows)

    @property
    def trainable(self) -> int:
        return sum(trainable for _, _, trainable in self.rows)

    def __str__(self) -> str:
        width = max(len(name) for name, _, _ in [*self.rows, ("all", 0, 0)])
        lines = [f"{'part':{width}}  {'parameters':>14}  {'trainable':>14}  {'share':>7}" + "  rate" * bool(self.rates)]
        for name, total, trainable in [*self.rows, ("all", self.total, self.trainable)]:
            rates = self.rates.get(name, [])
            rate = " .. ".join(f"{rate:.2e}" for rate in rates[:1] + rates[1:][-1:])
            lines.append(f"{name:{width}}  {total:14,}  {trainable:14,}  {trainable / max(total, 1):7.2%}  {rate}".rstrip())
        return "\n".join(lines)


def report(model: Module, optimizer: Optimizer | None = None) -> Report:
    """Counts the parameters of each layer group, or of each direct part where the model defines no groups.

    A parameter that two parts share counts once, in the first. With an optimizer, the report says at which rates each part
    moves: the optimizer's present `lr`, which a Trainer sets before every step, times the rates of its groups; 0 for what
    trains without being held by it.
    """
    parts, rates = parts_of(model), {}
    rows = [(name, sum(p.size for p in own), sum(p.size for p in own if p.requires_grad)) for name, own in parts]
    if optimizer:
        held = {id(p): optimizer.lr * group.rate for group in optimizer.groups for p in group.parameters}
        rates = {name: sorted({held.get(id(p), 0.0) for p in own if p.requires_grad}) for name, own in parts}
    return Report(rows, rates)


def parts_of(model: Module) -> list[tuple[str, list[Parameter]]]:
    """(name, parameters) of each layer group, or of each direct part; one that two of them share is of the first."""
    groups = model.layer_groups() if hasattr(model, "layer_groups") else [(name, [part]) for name, part in model.children()]
    first = {id(p): name for name, modules in reversed(groups) for module in modules for p in module.parameters()}
    return [(name, [p for p in model.parameters() if first.get(id(p)) == name]) for name, _ in groups]
