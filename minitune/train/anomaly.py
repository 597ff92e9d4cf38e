"""What made a loss that is no number: the operation, and the layer it ran in."""

from __future__ import annotations

from collections.abc import Callable
from traceback import walk_tb

from ..backend import array_module
from ..nn import Module
from ..tensor import detect_anomaly


def not_finite(model: Module) -> str:
    """The names of the first parameters that hold NaN or infinity, "" where none does."""
    return ", ".join([name for name, p in model.named_parameters() if not array_module(p.data).isfinite(p.data).all()][:4])


def what_went_wrong(model: Module, step: Callable[[], object]) -> str:
    """A sentence on where the first number that is not finite comes from, found by doing the step again."""
    bad = not_finite(model)
    if bad:
        return f"The weights hold NaN or infinity already, in {bad}"
    try:
        with detect_anomaly():
            step()
    except FloatingPointError as error:
        names = {id(part): name for name, part in model.named_modules()}
        frames = [frame for frame, _ in walk_tb(error.__traceback__)]
        layers = [names[id(own)] for own in (frame.f_locals.get("self") for frame in frames) if id(own) in names]
        return f"It began in {error}" + (f", in layer {layers[-1]!r}" if layers and layers[-1] else "")
    return "Done again, the step was finite: the sum over its batches overflowed"
