"""WeightAverage: an exponential moving average of the weights, which often evaluates better than the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..backend import Array
from ..nn import Module


class WeightAverage:
    """average = d average + (1 - d) weight after every step, for what trains; d = min(decay, (1 + step) / (10 + step)).

    The smaller d at the start keeps the first, random weights from weighing long. A parameter that is unfrozen late begins
    with its weights then. Raises ValueError where decay is not in (0, 1).
    Source: Polyak and Juditsky 1992, Acceleration of stochastic approximation by averaging, in its exponential form.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"Trainer: ema must be between 0 and 1, such as 0.99, got {decay}")
        self.decay = decay
        self.weights: dict[str, Array] = {}

    def update(self, model: Module, step: int) -> None:
        """Takes the weights after step number `step`, counted from 1, into the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in model.named_parameters():
            if name in self.weights:            # also what is frozen by now: its average comes to what it is
                self.weights[name] += (1 - decay) * (p.data - self.weights[name])
            elif p.requires_grad:
                self.weights[name] = p.data.copy()

    @contextmanager
    def applied(self, model: Module) -> Iterator[None]:
        """Inside this block the model has the averaged weights."""
        own = dict(model.named_parameters())
        before = {name: own[name].data for name in self.weights}
        for name, array in self.weights.items():
            own[name].data = array
        try:
            yield
        finally:
            for name, array in before.items():
                own[name].data = array
