"""gelu compiled by numba: one pass over memory instead of ten."""

from __future__ import annotations

from math import pi, sqrt

import numpy as np
from numba import njit

# a division by zero gives infinity as in NumPy: the check that raises would keep the loop from being vectorised;
# and every freedom that keeps NaN and infinity as they are: a loss that went wrong must show it
FAST = {"nsz", "arcp", "contract", "afn", "reassoc"}
SCALE, CUBIC = np.float32(sqrt(2 / pi)), np.float32(0.044715)
ONE, HALF = np.float32(1), np.float32(0.5)


@njit(fastmath=FAST, error_model="numpy", inline="always")
def _tanh(x):
    """Lambert's continued fraction, cut after the seventh term, at x / 4; then tanh 2y = 2 tanh y / (1 + tanh^2 y) twice.

    Beyond |x| = 10 float32 cannot tell tanh from 1. The comparisons let NaN through.
    """
    x = np.float32(-10) if x < np.float32(-10) else np.float32(10) if x > np.float32(10) else x
    y = np.float32(0.25) * x
    s = y * y
    top = y * (np.float32(135135) + s * (np.float32(17325) + s * (np.float32(378) + s)))
    bottom = np.float32(135135) + s * (np.float32(62370) + s * (np.float32(3150) + s * np.float32(28)))
    t = top / bottom
    t = (t + t) / (ONE + t * t)
    return (t + t) / (ONE + t * t)


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _forward(x, y):
    for i in range(x.size):
        v = x[i]
        y[i] = HALF * v * (ONE + _tanh(SCALE * v * (ONE + CUBIC * v * v)))


@njit(fastmath=FAST, error_model="numpy", cache=True)
def _backward(grad, x, grad_x):
    for i in range(x.size):
        v = x[i]
        t = _tanh(SCALE * v * (ONE + CUBIC * v * v))
        inner = SCALE * (ONE + np.float32(3) * CUBIC * v * v)
        grad_x[i] = grad[i] * (HALF * (ONE + t) + HALF * v * (ONE - t * t) * inner)


def gelu_unsupported(x):
    return None if x.dtype == np.float32 else f"the numba twin takes float32, got {x.dtype}"


def gelu_forward(x, *, needs):
    y = np.empty(x.shape, np.float32)
    _forward(x.reshape(-1), y.reshape(-1))
    return y, (x,)


def gelu_backward(grad, x, *, needs):
    grad_x = np.empty(x.shape, np.float32)
    _backward(grad.reshape(-1), x.reshape(-1), grad_x.reshape(-1))
    return (grad_x,)
