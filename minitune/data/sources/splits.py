"""Splits of one's own data: equal texts found and kept together, classes shared out, a long text cut."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from ..dataset import Split


def equal_texts(splits: dict[str, Split]) -> list[list[tuple[str, int]]]:
    """The places (split, row) of each distinct text; case and white space make no difference.

    >>> equal_texts({"train": Split(["A film", "b"]), "test": Split(["a  FILM"])})
    [[('train', 0), ('test', 0)], [('train', 1)]]
    """
    places = defaultdict(list)
    for name, split in splits.items():
        for row, text in enumerate(split.texts):
            places[" ".join(text.casefold().split())].append((name, row))
    return list(places.values())


def duplicates(splits: dict[str, Split]) -> list[list[tuple[str, int]]]:
    """The places (split, row) of each text that stands at more than one; case and white space make no difference."""
    return [places for places in equal_texts(splits) if len(places) > 1]


def divide(split: Split, shares: dict[str, float], seed: int) -> dict[str, Split]:
    """`split` at random as "train" and, for each name in `shares`, about that share of its rows, in their old order.

    Equal texts (`equal_texts`) stay together. Each class is shared out by itself: train has a row of every class, the others
    have one where the class has enough rows. Texts that stand under several labels go to train. A split without rows is absent.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    labels = [0] * len(split) if split.labels is None else split.labels.tolist()
    parts: dict[str, list[int]] = {name: [] for name in ("train", *shares)}
    classes = defaultdict(list)
    for places in equal_texts({"": split}):
        rows = [row for _, row in places]
        if len({labels[row] for row in rows}) > 1:
            parts["train"] += rows
        else:
            classes[labels[rows[0]]].append(rows)
    for _, groups in sorted(classes.items()):
        size = sum(map(len, groups))
        goals = {name: max(1, round(share * size)) for name, share in shares.items()}
        goals = {"train": max(1, size - sum(goals.values())), **goals}
        taken = dict.fromkeys(goals, 0)
        # The largest groups come first, so that the many small ones even out what they leave.
        for group in sorted((groups[i] for i in random.permutation(len(groups))), key=len, reverse=True):
            fullness = {name: (taken[name] + len(group)) / goal for name, goal in goals.items()}
            name = min(fullness, key=fullness.__getitem__) if taken["train"] else "train"
            taken[name] += len(group)
            parts[name] += group
    return {name: split.subset(sorted(rows)) for name, rows in parts.items() if rows}


def cut(text: str, shares: dict[str, float]) -> dict[str, str]:
    """`text` as "train" and then, for each name in `shares`, about that share, cut after a paragraph, else a line, else a word.

    Raises ValueError where the text is too short for that.
    """
    sizes = {"train": 1 - sum(shares.values()), **shares}
    reach = (min(sizes.values()) * len(text) - 1) / 2       # so that no part is left without a character
    goals = np.cumsum([*sizes.values()]) * len(text)
    places = [0, *(_nearest_end(text, round(goal), reach) for goal in goals[:-1]), len(text)]
    return {name: text[start:stop] for name, start, stop in zip(sizes, places, places[1:])}


def _nearest_end(text: str, goal: int, reach: float) -> int:
    """The end of a paragraph, else of a line, else of a word, that is nearest to `goal` and less than `reach` away."""
    for mark in ("\n\n", "\n", " "):
        found = text.rfind(mark, 0, goal), text.find(mark, max(0, goal - len(mark)))
        near = min((place + len(mark) for place in found if place >= 0), key=lambda end: abs(end - goal), default=goal + reach)
        if abs(near - goal) < reach:
            return int(near)
    raise ValueError(f"a text of {len(text):,} characters, with no word that ends near character {goal:,}, is too short to be "
                     "cut into splits. Give more text, or pass valid=0 and test=0")
