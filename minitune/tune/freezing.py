"""Freezing: `requires_grad` is the only truth. The engine skips, the optimizer neither moves nor decays what is frozen."""

from __future__ import annotations

from dataclasses import dataclass

from ..nn import Module
from .patterns import Patterns, backbone_of, inside, match


def freeze(model: Module, patterns: Patterns = "all") -> list[str]:
    """Stops training the parameters that `patterns` mean, or all of them. Returns their names.

    A pattern that names a layer means every parameter in it. Raises ValueError where a pattern matches nothing.
    """
    return _set(model, patterns, False, "freeze")


def unfreeze(model: Module, patterns: Patterns = "all") -> list[str]:
    """Trains the parameters that `patterns` mean, or all of them. Returns their names."""
    return _set(model, patterns, True, "unfreeze")


def _set(model: Module, patterns: Patterns, requires_grad: bool, caller: str) -> list[str]:
    parameters = dict(model.named_parameters())
    if patterns != "all":
        meant = match([*parameters, *(name for name, _ in model.named_modules() if name)], patterns, caller)
        parameters = {name: p for name, p in parameters.items() if inside(name, meant)}
    for parameter in parameters.values():
        parameter.requires_grad = requires_grad
    return list(parameters)


def freeze_to(model: Module, n: int) -> list[str]:
    """Trains the layer groups from number `n` on and freezes all else; -1 trains the last group only.

    Returns the names of the groups that train. Raises ValueError where there is no group `n`, with the groups.
    Source: Howard and Ruder 2018, ULMFiT, section 3.3, gradual unfreezing.
    """
    groups = model.layer_groups()               # type: ignore[attr-defined]
    if not -len(groups) <= n < len(groups):
        table = ", ".join(f"{i} {name}" for i, (name, _) in enumerate(groups))
        raise ValueError(f"freeze_to: there is no layer group {n}; the groups are {table}")
    train_only(model, groups[n:])
    return [name for name, _ in groups[n:]]


def train_only(model: Module, groups: list[tuple[str, list]]) -> None:
    """Trains these layer groups and nothing else; a parameter that a frozen group shares with one of them trains."""
    trained = {id(p) for _, modules in groups for module in modules for p in module.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad = id(parameter) in trained


@dataclass(frozen=True)
class FullConfig:
    """Full fine-tuning: every parameter trains."""

    def install(self, model: Module) -> None:
        unfreeze(model)


@dataclass(frozen=True)
class FreezeConfig:
    """Freezes what `patterns` mean, by default the whole backbone, so that only a new head trains; the rest trains."""

    patterns: Patterns = "all"

    def install(self, model: Module) -> None:
        if self.patterns == "all" and backbone_of(model) is model:
            raise ValueError("FreezeConfig: this model is all backbone, nothing would train. Give patterns, or put a "
                             "head on it: models.Classifier(model, labels=[...])")
        freeze(backbone_of(model), self.patterns)           # a pattern that matches nothing raises before anything is changed
        unfreeze(model)
        freeze(backbone_of(model), self.patterns)
