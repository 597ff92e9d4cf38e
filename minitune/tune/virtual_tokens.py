"""Virtual tokens: trained positions in front of every text, of which prefix and prompt tuning are two kinds."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import cache
from typing import Any

from ..models.backbone import Backbone
from ..nn import Attention, Module
from ..ops.checks import check_int
from ..tensor import Tensor
from .freezing import freeze
from .patterns import backbone_of


class VirtualTokens(Backbone):
    """What a backbone becomes that reads `virtual_tokens` positions of its own in front of every text.

    It stays the model that it was, with the same parts under the same names. `config.block_size` is what they leave to a text,
    so that sets and generation keep to it.
    """

    virtual_tokens: int = 0

    def __reduce__(self) -> tuple:
        """How it is copied and pickled, as its class has no name of its own."""
        return _blank, type(self).__bases__, vars(self)

    def read(self, batch: Any, *cache: Any) -> Tensor:
        """The features of a batch that counts the virtual tokens, as the model without them makes these."""
        whole = copy(self)                      # the same parts; a row with a prompt before each of its documents is longer
        whole.config = replace(self.config, block_size=self.config.block_size + batch.ids.shape[1])
        return super(VirtualTokens, whole).features(batch, *cache)

    def check_room(self, batch: Any) -> None:
        """Raises ValueError where the virtual tokens leave no room for a row."""
        size, P = self.config.block_size, self.virtual_tokens
        if batch.ids.shape[1] > size:
            raise ValueError(f"{type(self).__name__}: this model reads at most {size + P} tokens a row, and its {P} virtual "
                             f"ones leave {size}, got {batch.ids.shape[1]}. Cut the texts to model.config.block_size = {size}, "
                             "or take fewer virtual tokens")


def check_can_begin(model: Module, length: int, caller: str) -> Any:
    """The backbone of a model before which `length` virtual tokens can stand; raises ValueError for what is wrong."""
    backbone = backbone_of(model)
    check_int(caller, "length", length)
    if isinstance(backbone, VirtualTokens):
        raise ValueError(f"{caller}: the model has {backbone.virtual_tokens} virtual tokens already. Load the base anew")
    if any(hasattr(part, "merged") for part in model.modules()):
        raise ValueError(f"{caller}: the model has adapted layers already. Merge them first: tune.merge(model)")
    blocks = [getattr(block, "attention", None) for block in getattr(backbone, "blocks", [])]
    if not hasattr(backbone, "token_embedding") or not blocks or not all(isinstance(part, Attention) for part in blocks):
        raise ValueError(f"{caller}: virtual tokens stand before the tokens of a transformer, and {type(backbone).__name__} is "
                         "none that reads texts. Take LoRAConfig or FreezeConfig")
    if length >= backbone.config.block_size:
        raise ValueError(f"{caller}: length must be less than block_size = {backbone.config.block_size}, which texts share "
                         f"with the virtual tokens, got {length}")
    return backbone


def begin(backbone: Any, kind: type[VirtualTokens], length: int) -> None:
    """Freezes a backbone and makes it one of `kind`, in place."""
    freeze(backbone)
    backbone.__class__ = _joined(kind, type(backbone))          # type: ignore[arg-type]
    backbone.virtual_tokens = length
    backbone.config = replace(backbone.config, block_size=backbone.config.block_size - length)


@cache
def _joined(kind: type[VirtualTokens], model: type) -> type:
    return type(model.__name__, (kind, model), {"__doc__": model.__doc__, "__module__": model.__module__})


def _blank(kind: type[VirtualTokens], model: type) -> Any:
    return object.__new__(_joined(kind, model))                 # type: ignore[arg-type]
