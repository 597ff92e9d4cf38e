"""Merged models as folders that were read back, and output matrices that are untied from the embedding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..devices import to_device
from ..models import from_pretrained
from ..nn import Linear, Parameter, shapes_only
from .adapted import adapted_layers
from .lora import Certificate, merge


@dataclass(frozen=True)
class SavedModel:
    """What `save_merged` did: the certificate of the merge, and how far the logits of the folder's model are from before it."""

    folder: Path
    certificate: Certificate | None             # None where the model had no adapters
    gap: float                                  # the largest difference of a logit on the probe, from adapters to folder
    largest: float

    def __str__(self) -> str:
        merged = f"{self.certificate}; " if self.certificate else ""
        return (f"{merged}read back from {self.folder}, logits are at most {self.gap:.2g} from those before "
                f"(largest {self.largest:.3g})")


def save_merged(model: Any, folder: str | Path, probe: Any, dtype: str | None = None, max_shard_bytes: int | None = None,
                untie: bool = False) -> SavedModel:
    """Merges a model's adapters, writes it by `save_pretrained`, reads the folder and compares its logits on `probe`.

    The probe is a batch or ids (B, T); the gap that is returned is from the model with adapters to the one in the folder, so it
    counts the merge's rounding and that of `dtype`. Without `dtype` what is read must be what was written, to the bit.
    Raises what `merge` and `save_pretrained` raise; RuntimeError where the folder's weights are others, or its logits are not
    finite. The model stays merged then: `tune.unmerge(model, certificate)` is for a merge by hand.
    """
    before = _logits(model, probe)
    certificate = merge(model, probe, untie) if adapted_layers(model) else None
    model.save_pretrained(folder, max_shard_bytes, dtype)
    again = from_pretrained(folder)
    written = {name: to_device(array, "cpu").astype(np.float32) for name, array in model.state_dict().items()}
    read = again.state_dict()
    other = [name for name in written.keys() | read.keys() if name not in read or name not in written or not np.array_equal(
        written[name], read[name], equal_nan=True)]
    gap = float(np.abs(_logits(again, probe) - before).max())
    if other and dtype in (None, "float32") or not np.isfinite(gap):
        raise RuntimeError(f"save_merged: {folder}: what was read back is not the model: "
                           f"{', '.join(sorted(other)[:4]) or 'its logits are not finite'}")
    return SavedModel(Path(folder), certificate, gap, float(np.abs(before).max()))


def _logits(model: Any, probe: Any) -> np.ndarray:
    with model.evaluating():
        return model(probe.to(model.device) if hasattr(probe, "to") else probe).numpy()


def untie(model: Any) -> None:
    """Gives a language model whose output matrix is the token embedding one of its own, `lm_head`, with the same numbers.

    It computes the same, and embedding and output can then be adapted, merged and trained apart; `save_pretrained` writes
    tie_word_embeddings false. Raises ValueError for a model that is not tied, or that has adapters on its embedding, and for
    one whose folders tie both, as BERT's do here.
    """
    if model.kind is not None or getattr(model.config, "tied", None) is None:
        raise ValueError(f"untie: a {type(model).__name__} is always tied here, or has no output matrix. LoRA on "
                         "token_embedding adapts both ends at once")
    if not model.config.tied:
        raise ValueError("untie: the output matrix is not the token embedding already")
    if any(name.startswith("token_embedding") for name in adapted_layers(model)):
        raise ValueError("untie: the token embedding has an adapter. Merge it first: tune.merge(model)")
    weight = model.token_embedding.weight
    with shapes_only():
        head = Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight = Parameter(weight.data.copy(), decays=True)
    head.weight.requires_grad, head.training = weight.requires_grad, model.training
    model.lm_head, model.config = head, replace(model.config, tied=False)
