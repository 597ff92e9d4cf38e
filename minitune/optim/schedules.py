"""Learning rate schedules: functions from a step to a factor between 0 and 1 of the rate.

`schedule(step, steps)` gives the factor for step 0 .. steps - 1. A schedule is data: it can be called, plotted, stored
by name.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, floor, pi

Schedule = Callable[[int, int], float]


def _rise(step: int, steps: int, warmup: float) -> float | None:
    """The factor of a linear rise over the first `warmup` (share of all steps), or None after it."""
    rising = warmup * steps
    return (step + 1) / (rising + 1) if step < rising else None


def constant(step: int, steps: int, warmup: float = 0.1) -> float:
    """Rises linearly for the first tenth, then stays."""
    rise = _rise(step, steps, warmup)
    return 1.0 if rise is None else rise


def linear(step: int, steps: int, warmup: float = 0.1) -> float:
    """Rises linearly for the first tenth, then falls linearly to 0."""
    rise = _rise(step, steps, warmup)
    return (steps - step) / (steps - warmup * steps) if rise is None else rise


def cosine(step: int, steps: int, warmup: float = 0.1, lowest: float = 0.1) -> float:
    """Rises linearly for the first tenth, then falls along half a cosine to `lowest`.

    Source: Loshchilov and Hutter 2017, SGDR, equation 5, with the rise that Radford et al. 2018 put before it.
    """
    rise = _rise(step, steps, warmup)
    done = (step - warmup * steps) / max(1, steps - warmup * steps)
    return lowest + (1 - lowest) * (1 + cos(pi * done)) / 2 if rise is None else rise


def slanted_triangular(step: int, steps: int, cut_frac: float = 0.1, ratio: float = 32) -> float:
    """A short steep rise to 1 and a long fall, from and to 1 / ratio.

    cut = floor(T cut_frac); p = t / cut if t < cut else 1 - (t - cut) / (cut (1 / cut_frac - 1));
    factor = (1 + p (ratio - 1)) / ratio.
    Source: Howard and Ruder 2018, ULMFiT, equation 3.
    """
    cut = max(1, floor(steps * cut_frac + 1e-9))       # 100 steps * 0.29 is 28.999999999999996
    p = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / cut_frac - 1))
    return (1 + max(p, 0.0) * (ratio - 1)) / ratio


SCHEDULES: dict[str, Schedule] = {"constant": constant, "linear": linear, "cosine": cosine,
                                  "slanted_triangular": slanted_triangular}
