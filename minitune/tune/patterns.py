"""Patterns: which layers or parameters a user means by "query", "blocks.*.attention" or "all-linear"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from ..nn import Linear, Module, Parameter

Patterns = str | Sequence[str]


def backbone_of(model: Any) -> Any:
    """The pre-trained part: a classifier's backbone, or the model itself where it has no head of its own."""
    return getattr(model, "backbone", model)


def new_parts(model: Module) -> list[Module | Parameter]:
    """The parts that are new and therefore always train: everything beside the backbone."""
    backbone = backbone_of(model)
    parts = [part for part in vars(model).values() if isinstance(part, (Module, Parameter)) and part is not backbone]
    return [] if backbone is model else parts


def match(names: Iterable[str], patterns: Patterns, caller: str) -> list[str]:
    """The names that at least one pattern means, in their own order.

    A pattern is a name, or the end of one ("query"), in which `*` stands for one step of the path ("blocks.*.mlp"). What
    holds other signs is a regular expression for such a name (".*(query|value)").
    Raises ValueError for a pattern that matches nothing, with the nearest names.
    """
    names, chosen = list(names), set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        is_path = re.fullmatch(r"[\w*]+(\.[\w*]+)*", pattern)       # "blocks.1.*" must not mean blocks 10 and 11 as well
        found = _ending(names, pattern.replace(".", r"\.").replace("*", r"[^.]+") if is_path else pattern, caller)
        if not found:
            ends = {name.split(".", i)[-1] for name in names for i in range(name.count(".") + 1)} - {""}
            near = get_close_matches(pattern, sorted(ends), n=4, cutoff=0.4)
            raise ValueError(f"{caller}: {pattern!r} matches nothing" +
                             (f". Did you mean {' or '.join(map(repr, near))}?" if near else f" among {names[:6]} ..."))
        chosen |= found
    if not chosen:
        raise ValueError(f"{caller}: expected at least one pattern, got {patterns!r}")
    return [name for name in names if name in chosen]


def _ending(names: list[str], expression: str, caller: str) -> set[str]:
    """The names that end, after any dot, in what a regular expression means."""
    try:
        whole = re.compile(expression)
    except re.error as wrong:
        raise ValueError(f"{caller}: {expression!r} is neither a name nor a regular expression ({wrong})") from wrong
    return {name for name in names if any(whole.fullmatch(name.split(".", i)[-1]) for i in range(name.count(".") + 1))}


def inside(name: str, others: Iterable[str]) -> bool:
    """Whether `name` is one of the others, or a part of one of them."""
    return any(name == other or name.startswith(f"{other}.") for other in others)


def match_linear(model: Module, patterns: Patterns, caller: str, kinds: tuple[type[Module], ...] = (Linear,)) -> dict[str, Any]:
    """{name in the model: layer} of the backbone's linear layers that the patterns mean.

    "all-linear" means each of them, a layer that holds others ("blocks.1.mlp") the linear layers in it. Layers of other `kinds`
    are meant by their own names alone. Raises ValueError for a pattern that means none.
    """
    ours = {id(part) for _, part in backbone_of(model).named_modules()}
    names = [name for name, part in model.named_modules() if id(part) in ours and name]
    layers = {name: part for name, part in model.named_modules() if isinstance(part, kinds) and id(part) in ours}
    linear = {name: layer for name, layer in layers.items() if isinstance(layer, Linear)}
    if not (linear if patterns == "all-linear" else layers):
        raise ValueError(f"{caller}: the backbone has no linear layers")
    if patterns == "all-linear":                # but the output matrix, as in PEFT
        return {name: layer for name, layer in linear.items() if layer is not getattr(backbone_of(model), "lm_head", None)}
    chosen = set(match(names, patterns, caller)) & set(layers)
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        meant = match(names, pattern, caller)
        found = {name for name in layers if name in meant or name in linear and inside(name, meant)}
        if not found:
            raise ValueError(f"{caller}: {pattern!r} means no linear layer; there are {', '.join(list(layers)[:4])} ...")
        chosen |= found
    return {name: layer for name, layer in layers.items() if name in chosen}
