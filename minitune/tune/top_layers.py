"""TopLayersConfig: the last layer groups of a backbone train, the rest is frozen."""

from __future__ import annotations

from dataclasses import dataclass

from ..nn import Module
from ..ops.checks import check_int
from .freezing import freeze_to
from .patterns import backbone_of


@dataclass(frozen=True)
class TopLayersConfig:
    """Trains the last `k` layer groups of the backbone, as `layer_groups()` lists them, and new heads; all else is frozen.

    A weight that a frozen group shares with a trained one trains. Raises ValueError where `k` is no int from 1 to the number of
    groups.
    Source: Hu et al. 2021, LoRA, section 5.1, FT-Top2, which trains the last two layers.
    """

    k: int = 2

    def install(self, model: Module) -> None:
        check_int("TopLayersConfig", "k", self.k)
        freeze_to(backbone_of(model), -self.k)
