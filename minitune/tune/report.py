"""report: what trains, how much of it, and in which part of the model."""

from __future__ import annotations

from dataclasses import dataclass

from ..nn import Module


@dataclass
class Report:
    """Rows of (part, parameters, trainable parameters); printed as a table."""

    rows: list[tuple[str, int, int]]

    @property
    def total(self) -> int:
        return sum(total for _, total, _ in self.rows)

    @property
    def trainable(self) -> int:
        return sum(trainable for _, _, trainable in self.rows)

    def __str__(self) -> str:
        width = max(len(name) for name, _, _ in [*self.rows, ("all", 0, 0)])
        lines = [f"{'part':{width}}  {'parameters':>14}  {'trainable':>14}  {'share':>7}"]
        for name, total, trainable in [*self.rows, ("all", self.total, self.trainable)]:
            lines.append(f"{name:{width}}  {total:14,}  {trainable:14,}  {trainable / max(total, 1):7.2%}")
        return "\n".join(lines)


def report(model: Module) -> Report:
    """Counts the parameters of each layer group, or of each direct part where the model defines no groups.

    A parameter used twice counts once, in the first part that holds it.
    """
    if hasattr(model, "layer_groups"):
        groups = model.layer_groups()
    else:
        groups = [(name, [part]) for name, part in model.children()]
    rows, seen = [], set()
    for name, modules in groups:
        own = {id(p): p for module in modules for p in module.parameters() if id(p) not in seen}
        seen |= set(own)
        rows.append((name, sum(p.size for p in own.values()), sum(p.size for p in own.values() if p.requires_grad)))
    return Report(rows)
