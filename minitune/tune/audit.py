"""audit: what trains, is held by the optimizer, received a gradient and moved; told by looking, not by believing."""

from __future__ import annotations

from zlib import crc32

from ..backend import Array
from ..devices import to_device
from ..nn import Module
from ..optim import Optimizer


class Audit:
    """Watches a training: made before its first step, asked by `check()` after the second.

    Two steps, since the first gives LoRA's A a gradient of zeros: B is still 0 then.
    Raises ValueError at once where the optimizer does not hold a parameter that trains.
    """

    def __init__(self, model: Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.rows: list[tuple[str, int, str]] = []          # (name, numbers, what became of it), once checked
        self.before = {name: _sum(p.data) for name, p in model.named_parameters()}
        require_held(model, optimizer)

    def check(self) -> Audit:
        """Compares with the start and returns itself; printed, it says what became of every parameter.

        Raises RuntimeError where a parameter trains and received no gradient, where a frozen one moved, and where
        nothing moved at all.
        """
        self.rows = []
        for name, p in self.model.named_parameters():
            reached = "received" if id(p) in self.optimizer.slots else "NO"
            moved = "moved" if _sum(p.data) != self.before.get(name) else "did not move"
            self.rows.append((name, p.size, f"trains, {reached} gradient, {moved}" if p.requires_grad else f"frozen, {moved}"))
        wrong = {"trains, NO gradient": "receives no gradient: the loss does not depend on it. Freeze it, or mend the model",
                 "frozen, moved": "is frozen and moved all the same. What else writes into it?"}
        for start, sentence in wrong.items():
            if names := [name for name, _, state in self.rows if state.startswith(start)]:
                raise RuntimeError(f"audit: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''} {sentence}")
        if not any(state.endswith(", moved") for _, _, state in self.rows):
            raise RuntimeError("audit: two steps moved no parameter at all. Is the learning rate 0?")
        return self

    def __str__(self) -> str:
        lines = [f"{'parameters':>10}  {'numbers':>12}  what became of them"]
        for state in dict.fromkeys(state for _, _, state in self.rows):
            sizes = [size for _, size, other in self.rows if other == state]
            lines.append(f"{len(sizes):10,}  {sum(sizes):12,}  {state}")
        return "\n".join(lines)


def require_held(model: Module, optimizer: Optimizer) -> None:
    """Raises ValueError where a parameter trains that the optimizer does not hold: it would never move."""
    held = {id(p) for p in optimizer.parameters()}
    if lost := [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]:
        raise ValueError(f"the optimizer does not hold {', '.join(lost[:4])}{' ...' if len(lost) > 4 else ''}. "
                         "Make it after tune.apply")


def audit(model: Module, optimizer: Optimizer) -> Audit:
    """Begins to watch a training; `.check()` after two steps says what became of every parameter.

    >>> from minitune import Tensor, nn, optim
    >>> layer = nn.Linear(2, 1)
    >>> optimizer = optim.SGD(layer, lr=0.1)
    >>> watch = audit(layer, optimizer)
    >>> for _ in range(2):
    ...     layer(Tensor([[1.0, 2.0]])).sum().backward()
    ...     optimizer.step()
    >>> print(watch.check())
    parameters       numbers  what became of them
             2             3  trains, received gradient, moved
    """
    return Audit(model, optimizer)


def _sum(array: Array) -> int:
    return crc32(to_device(array, "cpu").tobytes())
