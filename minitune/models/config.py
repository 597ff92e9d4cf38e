"""What the configs of all models check."""

from __future__ import annotations

from dataclasses import asdict
from math import inf
from typing import Any

Groups = list[tuple[str, list[Any]]]           # layer groups: name, modules and parameters


def check_sizes(config: Any) -> None:
    """Raises ValueError, with all that is wrong: a size that is no positive integer, `eps` or `rope_base` not above 0, or a
    dropout outside [0, 1).

    Sizes are the fields annotated as int, or as int or None, which may be None; dropouts those with "dropout" in their names.
    """
    kinds, wrong = type(config).__annotations__, []
    for name, value in asdict(config).items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if kinds[name] in ("int", "int | None") and not (whole and value > 0) and not (value is None and "None" in kinds[name]):
            wrong.append(f"{name} must be a positive integer, got {value!r}")
        if name in ("eps", "rope_base") and not (isinstance(value, (int, float)) and 0 < value < inf):
            wrong.append(f"{name} must be a number above 0, got {value!r}")
        if "dropout" in name and not (isinstance(value, (int, float)) and 0 <= value < 1):
            wrong.append(f"{name} must be in [0, 1), got {value!r}")
    if wrong:
        raise ValueError(f"{type(config).__name__}: " + "; ".join(wrong))


def check_heads(config: Any) -> None:
    """Raises ValueError where the heads do not divide the channels, or the key heads the heads."""
    if getattr(config, "head_size", None) is None and config.n_embd % config.n_head:
        raise ValueError(f"{type(config).__name__}: n_head must divide n_embd, got {config.n_head} and {config.n_embd}")
    shared = getattr(config, "n_kv_head", None)
    if shared and config.n_head % shared:
        raise ValueError(f"{type(config).__name__}: n_kv_head must divide n_head, got {shared} and {config.n_head}")
