"""swiglu in one pass over memory."""

from __future__ import annotations

import numpy as np

from .compiled import by_rows, compiled, not_float32, sigmoid

ONE = np.float32(1)


@compiled
def _forward(gate, up, y):
    for i in range(gate.size):
        y[i] = gate[i] * sigmoid(gate[i]) * up[i]


@compiled
def _backward(grad, gate, up, grad_gate, grad_up):
    for i in range(gate.size):
        s = sigmoid(gate[i])
        grad_gate[i] = grad[i] * up[i] * s * (ONE + gate[i] * (ONE - s))
        grad_up[i] = grad[i] * gate[i] * s


def swiglu_unsupported(gate, up):
    return not_float32(gate, up)


def swiglu_forward(gate, up, *, needs):
    flat = [np.ascontiguousarray(a).reshape(-1) for a in (gate, up)]
    y = np.empty(gate.shape, np.float32)
    by_rows(_forward, (*flat, y.reshape(-1)))
    return y, tuple(flat)


def swiglu_backward(grad, gate, up, *, needs):
    grad_gate, grad_up = np.empty(grad.shape, np.float32), np.empty(grad.shape, np.float32)
    by_rows(_backward, (np.ascontiguousarray(grad).reshape(-1), gate, up, grad_gate.reshape(-1), grad_up.reshape(-1)))
    return grad_gate if needs.gate else None, grad_up if needs.up else None
