"""standardize: a classifier's head that reads each pooled feature with mean 0 and deviation 1."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..backend import Array, array_module, device_of
from ..devices import to_device, widened
from ..nn import Linear, Module, Parameter
from ..tensor import Tensor, no_grad

ROWS = 256              # texts that the moments are taken over, at most
EPS = 1e-5              # added to the variance, as batch normalisation does


class StandardizedLinear(Module):
    """y = ((x - mean) / deviation) standardized^T + bias, with a fixed mean and deviation (in,) of x. standardized (out, in).

    The Parameters are those of the Linear that it is made of: an optimizer that has them goes on with them. `weight` is the
    matrix that x itself is multiplied with.
    """

    def __init__(self, linear: Linear, mean: Array, deviation: Array) -> None:
        self.standardized, self.bias = linear.weight, linear.bias
        self.moments = [mean, 1 / deviation]

    def _moments(self, device: str) -> list[Array]:
        self.moments = [to_device(a, device) for a in self.moments]
        return self.moments

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in) -> (B, out)"""
        mean, inverse = self._moments(device_of(x.data))
        return ops.linear((x - mean) * inverse, self.standardized, self.bias)

    @property
    def weight(self) -> Tensor:
        """standardized / deviation, (out, in)."""
        return Tensor(self.standardized.data * self._moments(device_of(self.standardized.data))[1])


def standardize(model: Any, rows: Any, batch_size: int = 16) -> None:
    """Gives a classifier a head that reads its pooled features standardised over the texts of `rows`, a set of its kind.

    What the ULMFiT paper's head does by batch normalisation, here with the moments of up to 256 of the training texts, taken
    once, before the training: they are the same in training and in use. Call it on a head that has not been trained, before its
    optimizer is made or after; `fold` makes the head a plain Linear again, which can be saved.
    Raises TypeError where the head is no plain Linear, ValueError for an empty set.
    Source: Howard and Ruder 2018, ULMFiT, section 3.3; Ioffe and Szegedy 2015, Batch normalization, equation 3.
    """
    if type(model.head) is not Linear:
        raise TypeError(f"standardize: expected a head that is a Linear, got {type(model.head).__name__}")
    if not len(rows):
        raise ValueError("standardize: expected texts to take the features' mean and deviation of, got none")
    linear, training, chosen = model.head, model.training, np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(int)
    model.head, found = _Nothing(), []
    model.eval()
    with no_grad():
        for start in range(0, len(chosen), batch_size):
            batch = rows.batch(chosen[start : start + batch_size]).to(model.device)
            found.append(widened(model.logits(model.features(batch), batch).data))
    model.train(training)
    pooled = array_module(found[0]).concatenate(found)                      # (texts, in)
    model.head = StandardizedLinear(linear, pooled.mean(0), (pooled.var(0) + EPS) ** 0.5)
    model.head.train(training)


def fold(model: Any) -> None:
    """Makes a standardised head the plain Linear that computes the same; any other is left as it is.

    weight = standardized / deviation; bias = bias - weight mean.
    """
    head = model.head
    if isinstance(head, StandardizedLinear):
        linear = Linear(head.standardized.shape[1], len(head.standardized.data)).to(model.device, model.dtype)
        linear.weight = Parameter(head.weight.data, decays=True)
        mean, _ = head.moments
        start = 0 if head.bias is None else head.bias.data
        linear.bias = Parameter(start - linear.weight.data @ mean)
        for p, own in ((linear.weight, head.standardized), (linear.bias, head.bias)):
            p.requires_grad = own is not None and own.requires_grad
        model.head = linear


class _Nothing(Module):
    """A head that leaves the pooled features as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return x
