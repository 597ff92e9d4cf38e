"""apply: one call for every tuning method."""

from __future__ import annotations

from typing import Protocol

from ..nn import Module
from .patterns import new_parts
from .report import Report, report


class Method(Protocol):
    """A tuning method: a dataclass of its settings, with one function that prepares a model."""

    def install(self, model: Module) -> None: ...


def apply(model: Module, method: Method) -> Report:
    """Prepares `model` for a tuning method, in place, and returns the report of what trains now.

    >>> from minitune import models
    >>> from minitune.tune import LoRAConfig
    >>> gpt = models.GPT(models.GPTConfig(vocab_size=10, block_size=4, n_layer=1, n_head=2, n_embd=16))
    >>> apply(models.Classifier(gpt, labels=["no", "yes"]), LoRAConfig(r=2, lora_alpha=4)).trainable
    608
    """
    if not hasattr(method, "install"):
        raise TypeError(f"tune.apply: expected a method such as LoRAConfig(r=8) or FreezeConfig(), got {method!r}")
    method.install(model)
    for part in new_parts(model):               # a new head always trains
        for parameter in part.parameters():
            parameter.requires_grad = True
    return report(model)
