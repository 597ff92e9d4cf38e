"""Saving models as folders that Hugging Face's tools read: config.json, model.safetensors, tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..data import Tokenizer
from ..devices import to_device
from ..formats.family import Family
from ..formats.folder import write_model
from ..formats.own import OwnFamily

SPECIAL_IDS = "bos_token_id", "eos_token_id", "pad_token_id"


class Pretrained:
    """Gives a model `save_pretrained` and `tokenizer`, the Tokenizer that is saved beside its weights (or None).

    A backbone names its `family`, the form on disk; a head its `kind` and, in `settings`, what its constructor takes
    beside the backbone. A backbone that was read keeps the `special_ids` of its config.json, a model without tokenizer too.
    """

    tokenizer: Tokenizer | None = None
    special_ids: dict[str, Any] = {}
    family: Family | OwnFamily
    kind: str | None = None

    def settings(self) -> dict[str, Any]:
        """The arguments that make this head, beside the backbone; a backbone has none."""
        return {}

    def to_hugging_face(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(config, tensors) in Hugging Face's names, or in minitune's where Hugging Face has no such model.

        Raises ValueError for a model with adapters in it: merge or remove them first.
        """
        backbone: Any = getattr(self, "backbone", self)
        state = {name: to_device(array, "cpu") for name, array in self.state_dict().items()}     # type: ignore[attr-defined]
        return backbone.family.write(backbone.config, state, self.kind, self.settings())

    def save_pretrained(self, folder: str | Path, max_shard_bytes: int | None = None, dtype: str | None = None) -> None:
        """Writes config.json, model.safetensors and, where the model has one, tokenizer.json.

        Weights are written as they are, or rounded to `dtype`: "float16" makes the file half as large. config.json has the key
        "reads_backward" where the tokenizer gives texts from their ends (`Tokenizer.backward`). Weights of more than
        `max_shard_bytes` go into several files with an index. All files are written under temporary names and renamed when
        they are whole. Raises ValueError as `to_hugging_face`, and for weights that are too large for the dtype.
        """
        config, tensors = self.to_hugging_face()
        others = {"tokenizer.json": self.tokenizer.save} if self.tokenizer else {}
        backward = {"reads_backward": True} if self.tokenizer and self.tokenizer.backward else {}
        write_model(folder, config | self._special_ids() | backward, tensors, others, max_shard_bytes, dtype)

    def _special_ids(self) -> dict[str, Any]:
        """For config.json: the tokenizer's, where it has them, else those that were read."""
        ids = dict.fromkeys(SPECIAL_IDS) | getattr(self, "backbone", self).special_ids
        if self.tokenizer is not None:
            start, end, pad = self.tokenizer.start, self.tokenizer.end, self.tokenizer.pad
            several = isinstance(ids["eos_token_id"], list) and end in ids["eos_token_id"]      # a tokenizer has the first
            own = start, None if several else end, pad
            ids |= {key: value for key, value in zip(SPECIAL_IDS, own) if value is not None}
            ids["bos_token_id"] = end if ids["bos_token_id"] is None else ids["bos_token_id"]       # as GPT-2's
        return ids
