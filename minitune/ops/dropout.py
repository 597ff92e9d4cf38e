"""dropout: y = x / (1 - p) where a counted random number is at least p, else 0."""

from __future__ import annotations

from ..backend import array_module, philox, random, unit_interval
from ..tensor import Tensor, apply


def dropout(x: Tensor, p: float) -> Tensor:
    """Sets each element to 0 with probability `p` and scales the others by 1 / (1 - p), so the mean stays.

    The mask comes from the stream "dropout" of `minitune.seed`.
    Raises ValueError where p is not in [0, 1).
    Source: Srivastava et al. 2014, Dropout, section 4 (here in its inverted form).
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must be in [0, 1), got {p}. Is it a percentage?")
    return apply(dropout_forward, dropout_backward, x, p=float(p), place=random.reserve("dropout", x.size)) if p else x


def dropout_forward(x, *, p, place, needs):
    """`place` is the (seed, stream, counter) at which the mask's random numbers start."""
    uniform = unit_interval(philox(*place, x.size)).reshape(x.shape)
    kept = array_module(x).asarray(uniform >= p)
    return x * kept * (1 / (1 - p)), (kept, p)


def dropout_backward(grad, kept, p, *, needs):
    return (grad * kept * (1 / (1 - p)),)
