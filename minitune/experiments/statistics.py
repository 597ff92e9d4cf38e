"""Intervals by the bootstrap, paired over seeds and test texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
Interval = tuple[float, float]


class Bootstrap:
    """Draws seeds and test texts anew, with replacement, the same draws for every method: so differences are paired.

    Texts that come from one thing (`groups`: a class's docstrings) are drawn together, since they are alike.
    `wrong` of a method is (S, N): whether the run of seed s put text n into a wrong class.
    A mean of S seeds drawn with replacement spreads too little: its variance is (S - 1) / S of the unbiased one. So each draw's
    distance from equal shares is stretched by sqrt(S / (S - 1)). One seed says nothing of how seeds differ: its interval is of
    the texts alone.
    Source: Efron and Tibshirani 1993, An introduction to the bootstrap, section 13.3 (percentile interval); Hesterberg 2015,
    What teachers should know about the bootstrap (the narrowness of small samples).
    """

    def __init__(self, groups: Sequence[str] | int, resamples: int = RESAMPLES) -> None:
        of = np.arange(groups) if isinstance(groups, int) else np.unique(groups, return_inverse=True)[1]
        count = int(of.max()) + 1
        drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), resamples)[:, of]        # (R, N)
        self.texts = drawn / drawn.sum(1, keepdims=True)

    def errors(self, wrong: np.ndarray) -> np.ndarray:
        """The error of every resample: (R,). As many seeds are always drawn alike."""
        seeds, resamples = len(wrong), len(self.texts)
        drawn = np.random.default_rng(seeds).multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds   # (R, S)
        if seeds > 1:
            drawn = 1 / seeds + np.sqrt(seeds / (seeds - 1)) * (drawn - 1 / seeds)
        return ((self.texts @ wrong.T.astype(float)) * drawn).sum(1)


def interval(values: np.ndarray) -> Interval:
    """The middle 95 % of the values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def labels_needed(error: np.ndarray, sizes: Sequence[int], curve: np.ndarray) -> np.ndarray:
    """How many labels a curve needs to reach an error: infinity where it never does, 0 where its first point is lower.

    The curve is read along straight lines in log(labels), after the smallest error so far (more labels never hurt).
    Shapes: error (R,), curve (R, len(sizes)) -> (R,)
    """
    falling = np.minimum.accumulate(curve, 1)
    logs = np.log(np.asarray(sizes, float))
    needed = np.full(len(error), np.inf)
    for left in reversed(range(len(sizes) - 1)):
        above, below = falling[:, left], falling[:, left + 1]
        inside = (below <= error) & (error < above)
        share = (above - error)[inside] / (above - below)[inside]
        needed[inside] = np.exp(logs[left] + share * (logs[left + 1] - logs[left]))
    needed[falling[:, 0] == error] = sizes[0]
    needed[falling[:, 0] < error] = 0
    return needed
