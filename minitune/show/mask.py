"""What a model learns from an example, token by token."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Protocol

STYLES = {                                      # state: (in a terminal, in a notebook); both legible on light and on dark
    "supervised": ("\x1b[30;42m", "background:rgba(40,160,70,.4)"),
    "ignored": ("\x1b[2m", "background:rgba(128,128,128,.15)"),
    "truncated": ("\x1b[30;43;9m", "background:rgba(220,130,0,.35);text-decoration:line-through"),
    "padding": ("\x1b[2;3m", "border-style:dashed"),
}
PIECE = "border:1px solid rgba(128,128,128,.5);border-radius:3px;padding:0 1px"
SIGNS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {9: "⇥", 10: "↵\n"}     # nothing moves the cursor


class Tokens(Protocol):
    """An example cut into tokens: the text of each, and its state."""

    @property
    def tokens(self) -> list[str]: ...
    @property
    def states(self) -> list[str]: ...


def mask(example: Tokens, colour: bool = True) -> Mask:
    """Shows of every token whether it is "supervised", "ignored", "truncated" or "padding".

    `example` has `tokens`, the text of each, and `states`, one of the four words each. Printed, states are colours, or
    words in the margin with `colour=False` or where the environment variable NO_COLOR is set; in a notebook each token
    is a box. Spaces at a token's ends are written "·" in print, line breaks "↵", tabs "⇥"; padding is only counted.
    Raises TypeError for what has no tokens, ValueError for unequal lengths and unknown states.
    """
    if not hasattr(example, "tokens") or not hasattr(example, "states"):
        raise TypeError(f"mask: expected a row's tokens and states, got {type(example).__name__}. Tokens come from a "
                        "tokenizer: show.mask(ExampleSet([example], tokenizer, block_size).view(0))")
    tokens, states = list(example.tokens), list(example.states)
    if len(tokens) != len(states):
        raise ValueError(f"mask: expected one state for each token, got {len(tokens)} tokens and {len(states)} states")
    for i, (token, state) in enumerate(zip(tokens, states)):
        if state not in STYLES:
            raise ValueError(f"mask: states must be among {', '.join(STYLES)}, got {state!r} at token {i}")
        if not isinstance(token, str):
            raise ValueError(f"mask: tokens must be texts, got {token!r} at token {i}. Were ids given? Decode each by itself")
    return Mask(tokens, states, colour)


@dataclass(frozen=True, repr=False)
class Mask:
    """The tokens of an example and their states, as text or as HTML."""

    tokens: list[str]
    states: list[str]
    colour: bool

    def _runs(self) -> Iterator[tuple[str, int, list[str]]]:
        """(state, number of the first token, tokens) of neighbours in one state; padding is one token that counts it."""
        start = 0
        for state, run in groupby(zip(self.states, self.tokens), key=lambda pair: pair[0]):
            tokens = [token for _, token in run]
            yield state, start, [f"[padding x {len(tokens):,}]"] if state == "padding" else tokens
            start += len(tokens)

    def _legend(self) -> list[tuple[str, str]]:
        """(state, state and how many tokens are in it)"""
        counts = Counter(self.states)
        return [(state, f"{counts[state]:,} {state}") for state in STYLES]

    def __str__(self) -> str:
        coloured = self.colour and not os.environ.get("NO_COLOR")
        runs = [(state, "".join(_with_signs(token) for token in tokens)) for state, _, tokens in self._runs()]
        if coloured:
            return "".join(_paint(*run) for run in runs) + "\n\n" + "  ".join(_paint(*item) for item in self._legend())
        lines = [f"{'' if i else state:10} | {line}" for state, text in runs
                 for i, line in enumerate(text.removesuffix("\n").split("\n"))]
        return "\n".join([*lines, ", ".join(text for _, text in self._legend())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """What a notebook shows: a box a token, its number and state as tooltip, and a legend."""
        boxes = [f'<span title="token {start + i}: {state}" style="{PIECE};{STYLES[state][1]}">'
                 f'{escape(token.translate(SIGNS))}</span>'
                 for state, start, tokens in self._runs() for i, token in enumerate(tokens)]
        legend = " ".join(f'<span style="{PIECE};{STYLES[state][1]}">{text}</span>' for state, text in self._legend())
        return (f'<div style="font-family:monospace;white-space:pre-wrap;line-height:1.7">{"".join(boxes)}</div>'
                f'<div style="margin-top:.5em">{legend}</div>')


def _with_signs(token: str) -> str:
    """A token with its outer spaces and all control characters visible."""
    return re.sub("^ +| +$", lambda spaces: "·" * len(spaces[0]), token).translate(SIGNS)


def _paint(state: str, text: str) -> str:
    """The text in its state's colour, which ends with each line: a terminal would fill the rest of the line with it."""
    return "\n".join(f"{STYLES[state][0]}{line}\x1b[0m" if line else "" for line in text.split("\n"))
