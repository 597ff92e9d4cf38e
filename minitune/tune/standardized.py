"""standardize: a classifier's head that reads each pooled feature with mean 0 and deviation 1."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..backend import Array, array_module, device_of
from ..devices import is_bfloat16, to_device, widened
from ..nn import Linear, Module, Parameter, shapes_only
from ..tensor import Tensor

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

    def _moments(self, beside: Array) -> list[Array]:
        """Mean and 1 / deviation where `beside` is, in its precision but for bfloat16, which would round them."""
        self.moments = [to_device(a, device_of(beside)) for a in self.moments]
        return self.moments if is_bfloat16(beside.dtype) else [a.astype(beside.dtype, copy=False) for a in self.moments]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in) -> (B, out)"""
        mean, inverse = self._moments(x.data)
        return ops.linear((x - mean) * inverse, self.standardized, self.bias)

    @property
    def weight(self) -> Tensor:
        """standardized / deviation, (out, in)."""
        return Tensor(self.standardized.data * self._moments(self.standardized.data)[1])


def standardize(model: Any, rows: Any, batch_size: int = 16) -> None:
    """Gives a classifier a head that reads its pooled features standardised over the texts of `rows`, a set of its kind.

    logits (B, outputs) = ((h - m) / s) W^T + b, with the mean m and the deviation s = sqrt(variance + 1e-5) of each pooled
    feature h over up to 256 of the texts, read `batch_size` at a time by the backbone as it is now. ULMFiT's head does it by
    batch normalisation; here the moments are taken once, before the training, and are the same in training and in use. W and b
    stay the Parameters that they were, so an optimizer that has them goes on with them. Where the texts do not differ, s is 1.
    `fold` makes the head a plain Linear again, which can be saved.
    Raises TypeError, with nothing changed, for a model without pooled features and where the head is no plain Linear;
    ValueError for an empty set.
    Source: Howard and Ruder 2018, ULMFiT, section 3.3; Ioffe and Szegedy 2015, Batch normalization, equation 3.
    """
    if not hasattr(model, "logits") or type(getattr(model, "head", None)) is not Linear:
        raise TypeError("standardize: expected a model with a Linear head on pooled features, such as a Classifier, got "
                        f"{type(model).__name__} with {type(getattr(model, 'head', None)).__name__}")
    if not len(rows):
        raise ValueError("standardize: expected texts to take the features' mean and deviation of, got none")
    linear, chosen = model.head, np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(int)
    found: list[Array] = []
    try:
        model.head = _Nothing()
        with model.evaluating():
            for start in range(0, len(chosen), batch_size):
                batch = rows.batch(chosen[start : start + batch_size]).to(model.device)
                found.append(widened(model.logits(model.features(batch), batch).data))
    finally:
        model.head = linear
    pooled = array_module(found[0]).concatenate(found)                      # (texts, in)
    variance = pooled.var(0)
    if float(variance.max()) < EPS:             # one text, or the same again and again: nothing to measure by
        variance = 1 + 0 * variance
    model.head = StandardizedLinear(linear, pooled.mean(0), (variance + EPS) ** 0.5)
    model.head.training = linear.training


def fold(model: Any) -> None:
    """Makes a standardised head the plain Linear that computes the same; any other model is left as it is.

    weight (outputs, in) = W / s, bias (outputs,) = b - weight m. They are new Parameters: an optimizer made before has the old
    ones. A head has a bias after it, also where it had none.
    """
    head = getattr(model, "head", None)
    if isinstance(head, StandardizedLinear):
        with shapes_only():                     # no random numbers are drawn for what is about to be filled
            linear = Linear(head.standardized.shape[1], head.standardized.shape[0])
        weight = head.weight.data
        mean, _ = head.moments
        linear.weight = Parameter(weight, decays=True)
        linear.bias = Parameter((0 if head.bias is None else head.bias.data) - weight @ mean)
        linear.weight.requires_grad = head.standardized.requires_grad
        linear.bias.requires_grad = (head.standardized if head.bias is None else head.bias).requires_grad
        linear.dtype, linear.training = model.dtype, head.training
        model.head = linear


def with_bias(head: Any) -> Any:
    """A Linear without a bias as one that has a bias of 0, which a folded head has; the weight is shared."""
    made = head.sharing_parameters()
    made.bias = Parameter(0 * head.weight.data[:, 0])
    return made


class _Nothing(Module):
    """A head that leaves the pooled features as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return x
