"""rehearse: a training step on shapes alone. The model and the engine run as they are; arrays are there without their numbers.

A shape counts as memory for as long as something refers to it, as an array would: so the highest count is the step's peak.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import tensor as engine
from ..backend import Twin, random
from ..tune import NF4Linear
from .operation_costs import RULES
from .shape_only import Shape, counting, made, meter

RECORD = 1100                   # bytes of Python's objects for a recorded operation: its node, tensor and tuples, as measured


@dataclass
class Bill:
    """What a step takes.

    Bytes: `activations` are what forward keeps for backward, `gradients` those of all parameters that train, `peak` the most
    that forward and backward hold at once, gradients included, weights and moments not. `work` is {(M, N, K) of a matrix
    product, or the name of a loop: how often, or how many numbers}.
    """

    activations: int
    gradients: int
    peak: int
    work: Counter[Any] = field(repr=False)


def rehearse(model: Any, batch: Any) -> Bill:
    """Runs forward and backward of a model that `shapes_of` made on a batch, whose arrays are real.

    Nothing is computed, and random streams stay where they are.
    Raises NotImplementedError for an operation of which no rule says what it makes.
    """
    with on_shapes(), counting() as count, random_streams_kept():
        counts = model.counts(batch)
        parts = [loss * (weight / max(counts[term], 1)) for term, (loss, _, weight) in model.loss(batch).items()]
        loss = sum(parts[1:], start=parts[0])
        del parts
        activations = count.live
        loss.backward()
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    return Bill(activations, gradients, count.peak, count.work)


@contextmanager
def random_streams_kept() -> Iterator[None]:
    """After this block random streams go on where they were before it."""
    counters = dict(random.counters)
    try:
        yield
    finally:
        random.counters.clear()
        random.counters.update(counters)


def shapes_of(model: Any, array: Callable[[Any], Any] = lambda p: Shape(p.shape, p.dtype)) -> Any:
    """A copy of a model whose parameters have shapes and no numbers; ties, frozen parts and settings stay.

    `array` makes what stands in the place of a parameter's array, or of the codes of a weight in four bits.
    """
    memo: dict[int, Any] = {id(part.tokenizer): part.tokenizer for part in model.modules()
                            if getattr(part, "tokenizer", None) is not None}
    for part in model.modules():
        if isinstance(part, NF4Linear):
            memo[id(part.codes)] = [array(a) for a in part.codes]
    for p in model.parameters():
        copy = memo[id(p)] = object.__new__(type(p))
        copy.data, copy.requires_grad, copy.decays = array(p), p.requires_grad, p.decays
        copy.node = copy.grad = None
    return deepcopy(model, memo)


@contextmanager
def on_shapes() -> Iterator[None]:
    """Inside this block an operation that is given shapes follows its rule; one that is given arrays computes."""
    choose = engine.choose

    def chosen(forward: Callable, backward: Callable, arrays: list[Any], settings: dict[str, Any]) -> Twin:
        if not any(isinstance(a, Shape) for a in arrays):
            return choose(forward, backward, arrays, settings)
        name = forward.__name__.removesuffix("_forward")
        if name not in RULES:
            raise NotImplementedError(f"plan: there is no rule for what {name} makes and keeps. What can be planned are "
                                      "transformers that read texts")

        def by_rule(*arrays: Any, needs: Any, **settings: Any) -> tuple[Any, tuple]:
            result, kept, slopes = RULES[name](needs, *arrays, **settings)
            meter().work["call"] += 1
            return result, (slopes, *kept, made((RECORD * any(needs),), np.uint8))

        return Twin(by_rule, _backward)

    engine.choose = chosen                      # type: ignore[assignment]
    try:
        yield
    finally:
        engine.choose = choose                  # type: ignore[assignment]


def _backward(grad: Any, slopes: Callable, *kept: Any, needs: Any) -> tuple:
    meter().work["call backward"] += 1
    return slopes(grad)
