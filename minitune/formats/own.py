"""Models that Hugging Face has not: config.json holds the config's fields, model.safetensors the names as they are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .family import Arrays, Stored, absurd, kind_of, no_place, own_type, settings_from_config, settings_to_config


@dataclass(frozen=True)
class OwnFamily:
    """The folders of a model of minitune's own, model type minitune_<name>, or minitune_<name>_<kind> with a head on it."""

    name: str

    def write(self, config: Any, state: Arrays, kind: str | None = None,
              settings: dict[str, Any] | None = None) -> tuple[dict[str, Any], Arrays]:
        """(config.json, tensors); raises ValueError where adapters are still in the model."""
        adapted = [name for name in state if {"base", "standardized"} & {*name.split(".")}]
        if adapted:
            raise ValueError(no_place(self.name, adapted))
        return own_type(self.name, kind) | asdict(config) | settings_to_config(settings or {}), state

    def read(self, config: dict[str, Any], tensors: Arrays) -> Stored:
        """What a folder holds, every key of config.json as a field. Raises ValueError, with all reasons, for absurd sizes."""
        kind = kind_of(self.name, config)
        settings, wrong = settings_from_config(config, kind, tensors, {})
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
        wrong += absurd(fields, tensors)
        if wrong:
            raise ValueError(f"from_pretrained: not a {self.name} model that minitune computes: " + "; ".join(wrong))
        misfits = [f"{name}: {array.dtype} numbers, expected floating point" for name, array in tensors.items()
                   if array.dtype.kind != "f"]
        return Stored(fields, tensors, kind, settings, misfits)
