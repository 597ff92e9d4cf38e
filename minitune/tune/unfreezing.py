"""Unfreezing: a schedule says which layer groups train from which step on; it is data that is printed, plotted and stored."""

from __future__ import annotations

from dataclasses import dataclass

from ..nn import Module
from .freezing import train_only

Stage = tuple[int, tuple[str, ...]]             # from which step on, which layer groups


@dataclass(frozen=True)
class Unfreezing:
    """Stages (first step, names of the layer groups that train from there on), as `model.layer_groups()` calls them.

    Printed, it is a table. A Trainer follows it with `callbacks=[train.Unfreeze(schedule)]`.
    Raises ValueError where the first stage is not of step 0, steps do not rise, or a stage trains nothing.

    >>> print(Unfreezing(((0, ("head",)), (100, ("blocks.1", "head")))))
    from step  trains
            0  head
          100  blocks.1, head
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.stages]
        if steps[:1] != [0] or steps != sorted(set(steps)):
            raise ValueError(f"Unfreezing: stages must begin with step 0 and their steps must rise, got {steps}")
        for step, names in self.stages:
            if isinstance(names, str) or not names:
                raise ValueError(f"Unfreezing: expected the names of layer groups from step {step} on, such as ('head',), got "
                                 f"{names!r}")
        # from JSON they come as lists, and the same schedule has to print and compare as the same
        object.__setattr__(self, "stages", tuple((step, tuple(names)) for step, names in self.stages))

    def at(self, step: int) -> tuple[str, ...]:
        """The names of the layer groups that train at a step."""
        return [names for start, names in self.stages if start <= step][-1]

    def apply(self, model: Module, step: int) -> None:
        """Trains the layer groups of a step and freezes all else, whatever froze or trained it before.

        A parameter that two groups share trains if one of them does.
        Raises ValueError, before anything is changed, for a name that is no layer group of the model.
        """
        self.check(model)
        names = self.at(step)
        train_only(model, [group for group in model.layer_groups() if group[0] in names])      # type: ignore[attr-defined]

    def check(self, model: Module) -> None:
        """Raises ValueError for a name that is no layer group of the model, with those that are."""
        known = _names(model)
        if unknown := [name for _, names in self.stages for name in names if name not in known]:
            raise ValueError(f"Unfreezing: {unknown[0]!r} is no layer group of {type(model).__name__}; the groups are "
                             f"{', '.join(known)}")

    def __str__(self) -> str:
        return "\n".join(["from step  trains", *(f"{step:9,}  {', '.join(names)}" for step, names in self.stages)])


def gradual(model: Module, every: int) -> Unfreezing:
    """The last layer group alone at first, and one more each `every` steps, down to the first.

    Source: Howard and Ruder 2018, ULMFiT, section 3.3.
    """
    names = _names(model)
    return _evenly("gradual", every, [names[start:] for start in reversed(range(len(names)))])


def chain_thaw(model: Module, every: int) -> Unfreezing:
    """The last layer group alone, then each other alone from the first on, then all together, `every` steps each.

    Source: Felbo et al. 2017, Using millions of emoji occurrences to learn any-domain representations, section 3.3.
    """
    names = _names(model)
    return _evenly("chain_thaw", every, [names[-1:], *((name,) for name in names[:-1]), names])


def last_only(model: Module) -> Unfreezing:
    """The last layer group throughout: a new head, or the top of a language model."""
    return Unfreezing(((0, _names(model)[-1:]),))


def all_at_once(model: Module) -> Unfreezing:
    """Every layer group throughout."""
    return Unfreezing(((0, _names(model)),))


def _names(model: Module) -> tuple[str, ...]:
    return tuple(name for name, _ in model.layer_groups())      # type: ignore[attr-defined]


def _evenly(caller: str, every: int, stages: list[tuple[str, ...]]) -> Unfreezing:
    if every < 1:
        raise ValueError(f"{caller}: every must be at least 1 step, got {every}")
    return Unfreezing(tuple((i * every, names) for i, names in enumerate(stages)))
