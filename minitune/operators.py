"""Which operation stands behind each operator and method of Tensor: one table."""

from typing import Any

from . import ops
from .tensor import Tensor

OPERATORS: dict[str, Any] = {
    "__add__": ops.add, "__radd__": lambda self, other: ops.add(other, self),
    "__sub__": ops.sub, "__rsub__": lambda self, other: ops.sub(other, self),
    "__mul__": ops.mul, "__rmul__": lambda self, other: ops.mul(other, self),
    "__truediv__": ops.div, "__rtruediv__": lambda self, other: ops.div(other, self),
    "__matmul__": ops.matmul, "__rmatmul__": lambda self, other: ops.matmul(other, self),
    "__neg__": ops.neg, "__pow__": ops.pow, "__getitem__": ops.getitem,
    "exp": ops.exp, "log": ops.log, "sqrt": ops.sqrt, "tanh": ops.tanh,
    "sum": ops.sum, "mean": ops.mean, "max": ops.max,
    "reshape": ops.reshape, "transpose": ops.transpose,
}

for name, operation in OPERATORS.items():
    setattr(Tensor, name, operation)
