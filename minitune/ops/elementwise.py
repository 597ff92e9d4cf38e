"""Operations that treat every element alike. Shapes are broadcast as NumPy does."""

from __future__ import annotations

from math import pi
from math import sqrt as square_root
from typing import Any

import numpy as np

from ..backend import Array, array_module
from ..tensor import Tensor, apply
from .erf import erfc

GELU_SCALE, GELU_CUBIC = square_root(2 / pi), 0.044715


def unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """Sums `grad` over the axes along which an input of `shape` was repeated."""
    if grad.shape == shape:
        return grad
    grad = grad.sum(tuple(range(grad.ndim - len(shape))))
    repeated = tuple(axis for axis, length in enumerate(shape) if length == 1 and grad.shape[axis] != 1)
    return grad.sum(repeated, keepdims=True) if repeated else grad


def shape_of(a: Any) -> tuple[int, ...]:
    """The shape of an array or Tensor; () for a Python number."""
    return getattr(a, "shape", ())


def _operands(operation: str, a: Any, b: Any) -> tuple[Any, Any]:
    """Two operands whose shapes fit: from the right, lengths are equal or one of them is 1.

    Arrays and lists beside a Tensor become Tensors, NumPy's numbers Python numbers, which take the other's dtype.
    """
    a, b = (_operand(operand) for operand in (a, b))
    for length_a, length_b in zip(reversed(shape_of(a)), reversed(shape_of(b)), strict=False):
        if length_a != length_b and 1 not in (length_a, length_b):
            raise ValueError(f"{operation}: shapes {shape_of(a)} and {shape_of(b)} do not broadcast: "
                             f"{length_a} against {length_b}. Is an axis missing or out of order?")
    return a, b


def _operand(a: Any) -> Any:
    if isinstance(a, np.generic):
        return a.item()
    return a if isinstance(a, (Tensor, bool, int, float)) else Tensor(a)


# ---- Two inputs --------------------------------------------------------------------------------------------------

def add(a: Any, b: Any) -> Tensor:
    """y = a + b.

    >>> add(Tensor([1.0, 2.0]), 1).numpy()
    array([2., 3.], dtype=float32)
    """
    return apply(add_forward, add_backward, *_operands("add", a, b))


def add_forward(a, b, *, needs):
    return a + b, (shape_of(a), shape_of(b))


def add_backward(grad, a_shape, b_shape, *, needs):
    return unbroadcast(grad, a_shape) if needs.a else None, unbroadcast(grad, b_shape) if needs.b else None


def sub(a: Any, b: Any) -> Tensor:
    """y = a - b."""
    return apply(sub_forward, sub_backward, *_operands("sub", a, b))


def sub_forward(a, b, *, needs):
    return a - b, (shape_of(a), shape_of(b))


def sub_backward(grad, a_shape, b_shape, *, needs):
    return unbroadcast(grad, a_shape) if needs.a else None, unbroadcast(-grad, b_shape) if needs.b else None


def mul(a: Any, b: Any) -> Tensor:
    """y = a * b, element by element."""
    return apply(mul_forward, mul_backward, *_operands("mul", a, b))


def mul_forward(a, b, *, needs):
    return a * b, (a if needs.b else None, b if needs.a else None, shape_of(a), shape_of(b))


def mul_backward(grad, a, b, a_shape, b_shape, *, needs):
    return unbroadcast(grad * b, a_shape) if needs.a else None, unbroadcast(grad * a, b_shape) if needs.b else None


def div(a: Any, b: Any) -> Tensor:
    """y = a / b, element by element."""
    return apply(div_forward, div_backward, *_operands("div", a, b))


def div_forward(a, b, *, needs):
    return a / b, (a if needs.b else None, b, shape_of(a), shape_of(b))


def div_backward(grad, a, b, a_shape, b_shape, *, needs):
    grad_a = unbroadcast(grad / b, a_shape) if needs.a else None
    grad_b = unbroadcast(-grad * a / b / b, b_shape) if needs.b else None       # b * b could underflow
    return grad_a, grad_b


# ---- One input ---------------------------------------------------------------------------------------------------

def neg(x: Tensor) -> Tensor:
    """y = -x."""
    return apply(neg_forward, neg_backward, x)


def neg_forward(x, *, needs):
    return -x, ()


def neg_backward(grad, *, needs):
    return (-grad,)


def pow(x: Tensor, exponent: float) -> Tensor:
    """y = x ** exponent, for a Python number as exponent; tanh and products are faster than cubes by pow.

    Raises TypeError where `exponent` is not a number: write exp(b * log(a)) for a tensor.
    """
    if not isinstance(exponent, (int, float)):
        raise TypeError(f"pow: exponent must be a Python number, got {type(exponent).__name__}. "
                        "For a tensor as exponent write exp(exponent * log(x))")
    exponent = float(exponent) if isinstance(exponent, float) else exponent     # np.float64 would widen float32
    return apply(pow_forward, pow_backward, x, exponent=exponent)


def pow_forward(x, *, exponent, needs):
    return x**exponent, (x, exponent)


def pow_backward(grad, x, exponent, *, needs):
    return (grad * exponent * x ** (exponent - 1) if exponent else grad * 0,)   # x^0 has slope 0 even at x = 0


def exp(x: Tensor) -> Tensor:
    """y = e^x."""
    return apply(exp_forward, exp_backward, x)


def exp_forward(x, *, needs):
    y = array_module(x).exp(x)
    return y, (y,)


def exp_backward(grad, y, *, needs):
    return (grad * y,)


def log(x: Tensor) -> Tensor:
    """y = natural logarithm of x."""
    return apply(log_forward, log_backward, x)


def log_forward(x, *, needs):
    return array_module(x).log(x), (x,)


def log_backward(grad, x, *, needs):
    return (grad / x,)


def sqrt(x: Tensor) -> Tensor:
    """y = square root of x."""
    return apply(sqrt_forward, sqrt_backward, x)


def sqrt_forward(x, *, needs):
    y = array_module(x).sqrt(x)
    return y, (y,)


def sqrt_backward(grad, y, *, needs):
    return (grad / (2 * y),)


def tanh(x: Tensor) -> Tensor:
    """y = hyperbolic tangent of x."""
    return apply(tanh_forward, tanh_backward, x)


def tanh_forward(x, *, needs):
    y = array_module(x).tanh(x)
    return y, (y,)


def tanh_backward(grad, y, *, needs):
    return (grad * (1 - y * y),)


def sigmoid(x: Tensor) -> Tensor:
    """y = 1 / (1 + e^-x)."""
    return apply(sigmoid_forward, sigmoid_backward, x)


def sigmoid_forward(x, *, needs):
    xp = array_module(x)
    e = xp.exp(-abs(x))                                     # cannot overflow, and keeps the digits of what is nearly 0
    y = xp.where(x < 0, e, 1) / (1 + e)
    return y, (y,)


def sigmoid_backward(grad, y, *, needs):
    return (grad * y * (1 - y),)


def relu(x: Tensor) -> Tensor:
    """y = max(x, 0), with slope 0 at x = 0."""
    return apply(relu_forward, relu_backward, x)


def relu_forward(x, *, needs):
    return array_module(x).maximum(x, 0), (x > 0,)            # and not x * (x > 0): -inf * 0 is NaN


def relu_backward(grad, positive, *, needs):
    return (grad * positive,)


def gelu(x: Tensor, approximate: str = "tanh") -> Tensor:
    """y = x times the probability that a standard normal number is below x, or an approximation of it by tanh.

    approximate="none": y = x / 2 * (1 + erf(x / sqrt(2))), as in BERT and ViT;
    approximate="tanh": y = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), as in GPT-2.
    Raises ValueError where `approximate` is neither.
    Source: Hendrycks and Gimpel 2016, Gaussian Error Linear Units, section 2.

    >>> gelu(Tensor([0.0, 1.0])).numpy().round(4)
    array([0.    , 0.8412], dtype=float32)
    >>> gelu(Tensor([0.0, 1.0]), approximate="none").numpy().round(4)
    array([0.    , 0.8413], dtype=float32)
    """
    if approximate == "none":
        return apply(gelu_erf_forward, gelu_erf_backward, x)
    if approximate != "tanh":
        raise ValueError(f"gelu: approximate must be 'tanh' or 'none', got {approximate!r}")
    return apply(gelu_forward, gelu_backward, x)


def gelu_forward(x, *, needs):
    t = array_module(x).tanh(GELU_SCALE * x * (1 + GELU_CUBIC * x * x))
    return 0.5 * x * (1 + t), (x, t)


def gelu_backward(grad, x, t, *, needs):
    inner = GELU_SCALE * (1 + 3 * GELU_CUBIC * x * x)                       # d (tanh's argument) / d x
    return (grad * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner),)


def gelu_erf_forward(x, *, needs):
    return 0.5 * x * erfc(x * -square_root(0.5)), (x,)                      # 1 + erf(z) = erfc(-z), and no digits are lost


def gelu_erf_backward(grad, x, *, needs):
    density = array_module(x).exp(-0.5 * x * x) * (1 / square_root(2 * pi))
    return (grad * (0.5 * erfc(x * -square_root(0.5)) + x * density),)
