"""gradcheck: backward against central differences, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .tensor import Tensor


def gradcheck(function: Callable[..., Tensor], *arrays: Any, step: float = 1e-6, rtol: float = 1e-5,
              atol: float = 1e-7, seed: int = 0) -> None:
    """Compares the gradients of `function(*tensors)` with numerical ones, for every element of every float array.

    The function's output is multiplied by a random cotangent c and summed, L = sum(c * f(x)): a wrong scale or two
    swapped gradients cannot hide in a symmetric sum. Then dL/dx is (L(x + step) - L(x - step)) / (2 step).
    The function must be deterministic: fix the seed of a dropout. Integer arrays (ids, targets) are passed as they are.
    The tolerances fit float64: a central difference errs by about step^2 = 1e-12 for the curve that it ignores and by
    about 1e-16 / step = 1e-10 for rounding.
    Raises AssertionError that names the input, the element and both numbers; ValueError where there is nothing to check.

    >>> gradcheck(lambda x: x * x, np.array([1.0, 2.0]))
    """
    arrays = tuple(np.asarray(a) for a in arrays)
    inputs = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
    checked = [i for i, a in enumerate(inputs) if a.dtype.kind == "f" and a.size]
    if not checked:
        raise ValueError("gradcheck: expected at least one array of floats, got none")
    tensors = [Tensor(a.copy(), requires_grad=True) if i in checked else a for i, a in enumerate(inputs)]
    result = function(*tensors)
    cotangent = np.random.default_rng(seed).standard_normal(result.shape)
    if result.requires_grad:
        result.backward(cotangent)

    def loss() -> float:
        return float((function(*(Tensor(a) if i in checked else a for i, a in enumerate(inputs))).data * cotangent).sum())

    if loss() != float((result.data * cotangent).sum()):
        raise AssertionError("gradcheck: the function gives another result each time")
    for i in checked:
        expected = _central_differences(loss, inputs[i], step)
        grad = tensors[i].grad
        got = np.zeros_like(expected) if grad is None else grad
        _compare(i, got, expected, rtol, atol)


def _central_differences(loss: Callable[[], float], array: np.ndarray, step: float) -> np.ndarray:
    """d loss / d array, element by element; `array` is changed in place and put back."""
    slope = np.empty_like(array)
    for place in np.ndindex(array.shape):
        centre = array[place]
        array[place] = centre + step
        above = loss()
        array[place] = centre - step
        slope[place] = (above - loss()) / (2 * step)
        array[place] = centre
    return slope


def _compare(number: int, got: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> None:
    if got.shape != expected.shape:
        raise AssertionError(f"gradcheck: gradient {number} has shape {got.shape}, expected {expected.shape}")
    error = np.abs(got - expected)
    wrong = ~(error <= atol + rtol * np.abs(expected))      # written so that NaN is wrong
    if wrong.any():
        place = tuple(int(i) for i in np.unravel_index(np.argmax(np.where(wrong, error, -1)), error.shape))
        raise AssertionError(f"gradcheck: input {number}, element {place}: backward gives {got[place]:.8g}, "
                             f"central differences give {expected[place]:.8g}; {wrong.sum()} of {wrong.size} are wrong")
