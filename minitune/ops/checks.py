"""What several operations and layers ask of their integers."""

from __future__ import annotations

from numbers import Integral
from typing import Any

BOTH = " for both axes"


def check_integers(caller: str, name: str, a: Any, shape: tuple[int, ...], letters: str = "") -> None:
    """Raises ValueError where `a` is no array of integers of this shape, which `letters` name."""
    if not hasattr(a, "dtype"):
        raise ValueError(f"{caller}: {name} must be an array of integers {letters}{shape}, got a {type(a).__name__}. Write "
                         f"np.array({name})")
    if a.shape != shape or a.dtype.kind not in "iu":
        repair = f". Convert them: {name}.astype(int)" if a.shape == shape and a.dtype.kind in "fb" else ""
        raise ValueError(f"{caller}: {name} must be integers {letters}{shape}, got {a.dtype} {a.shape}{repair}")


def check_int(caller: str, name: str, value: Any, least: int = 1, use: str = "") -> None:
    """Raises ValueError where `value` is no int of at least `least`; `use` is BOTH for what is one number in PyTorch or two."""
    if not isinstance(value, Integral) or value < least:            # type: ignore[operator]
        raise ValueError(f"{caller}: {name} must be an int{use} of at least {least}, got {value!r}")
