"""Saving models as folders that Hugging Face's tools read: config.json, model.safetensors, tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..data import Tokenizer
from ..formats.folder import write_model


class Pretrained:
    """Gives a model `save_pretrained` and `tokenizer`, the Tokenizer that is saved beside its weights (or None)."""

    tokenizer: Tokenizer | None = None

    def to_hugging_face(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(config, tensors) in Hugging Face's names; each model defines its own."""
        raise NotImplementedError(f"{type(self).__name__} has no form on disk yet")

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json, model.safetensors and, where the model has one, tokenizer.json.

        The files are written under temporary names and renamed when all are whole.
        Raises ValueError for a model with adapters in it: merge or remove them first.
        """
        config, tensors = self.to_hugging_face()
        end, pad = (self.tokenizer.end, self.tokenizer.pad) if self.tokenizer else (None, None)
        config |= {"bos_token_id": end, "eos_token_id": end, "pad_token_id": pad}
        write_model(folder, config, tensors, {"tokenizer.json": self.tokenizer.save} if self.tokenizer else {})
