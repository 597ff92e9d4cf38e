"""swiglu: y = gate * sigmoid(gate) * up, for two projections gate and up of the same input."""

from __future__ import annotations

from ..tensor import Tensor, apply
from .elementwise import sigmoid_forward


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """y = gate * sigmoid(gate) * up: the activation of a gated perceptron. Shapes: gate (...), up the same -> the same

    Raises ValueError where the shapes differ.
    Source: Shazeer 2020, GLU variants improve Transformer, equation 5 (gate = x W, up = x V; beta = 1).

    >>> swiglu(Tensor([0.0, 10.0]), Tensor([3.0, 3.0])).numpy().round(2)
    array([ 0., 30.], dtype=float32)
    """
    if gate.shape != up.shape:
        raise ValueError(f"swiglu: gate and up must have one shape, got {gate.shape} and {up.shape}. Is one of them the input?")
    return apply(swiglu_forward, swiglu_backward, gate, up)


def swiglu_forward(gate, up, *, needs):
    s, _ = sigmoid_forward(gate, needs=needs)
    return gate * s * up, (gate, up if needs.gate else None)


def swiglu_backward(grad, gate, up, *, needs):
    s, _ = sigmoid_forward(gate, needs=needs)                               # made again: cheaper than kept
    grad_gate = grad * up * s * (1 + gate * (1 - s)) if needs.gate else None
    return grad_gate, grad * gate * s if needs.up else None
