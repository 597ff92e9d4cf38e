"""Patterns: which layers or parameters a user means by "query", "blocks.*.attention" or "all-linear"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from ..nn import Linear, Module

Patterns = str | Sequence[str]


def backbone_of(model: Module) -> Module:
    """The pre-trained part: a classifier's backbone, or the model itself where it has no head of its own."""
    return getattr(model, "backbone", model)


def new_parts(model: Module) -> list[Module]:
    """The parts that are new and therefore always train: everything beside the backbone."""
    return [] if backbone_of(model) is model else [part for _, part in model.children() if part is not backbone_of(model)]


def match(names: Iterable[str], patterns: Patterns, caller: str) -> list[str]:
    """The names that at least one pattern means, in their own order.

    A pattern is a name, or the end of one ("query"), in which `*` stands for one step of the path ("blocks.*.mlp"); or
    any regular expression for such a name. Raises ValueError for a pattern that matches nothing, with the nearest names.
    """
    names, chosen = list(names), set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = {name for name in names if _means(pattern, name)}
        if not found:
            ends = {name.split(".", i)[-1] for name in names for i in range(name.count(".") + 1)} - {""}
            near = get_close_matches(pattern, sorted(ends), n=4, cutoff=0.4)
            raise ValueError(f"{caller}: {pattern!r} matches nothing" +
                             (f". Did you mean {' or '.join(map(repr, near))}?" if near else f" among {names[:6]} ..."))
        chosen |= found
    if not chosen:
        raise ValueError(f"{caller}: expected at least one pattern, got {patterns!r}")
    return [name for name in names if name in chosen]


def _means(pattern: str, name: str) -> bool:
    ends = [name.split(".", i)[-1] for i in range(name.count(".") + 1)]
    steps = re.escape(pattern).replace(r"\*", r"[^.]+")
    if any(re.fullmatch(steps, end) for end in ends):
        return True
    try:
        return any(re.fullmatch(pattern, end) for end in ends)
    except re.error:                            # "*.query" is a path with a star, and no regular expression
        return False


def match_linear(model: Module, patterns: Patterns, caller: str) -> dict[str, Linear]:
    """{name in the model: Linear} of the backbone's linear layers that the patterns mean; "all-linear" means each."""
    ours = {id(part) for _, part in backbone_of(model).named_modules()}
    linear = {name: part for name, part in model.named_modules() if isinstance(part, Linear) and id(part) in ours}
    if not linear:
        raise ValueError(f"{caller}: the backbone has no linear layers")
    return linear if patterns == "all-linear" else {name: linear[name] for name in match(linear, patterns, caller)}
