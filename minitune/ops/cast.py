"""cast: the same numbers in another float dtype."""

from __future__ import annotations

from typing import Any

from ..devices import float_dtype, moves
from ..tensor import Tensor, apply


def cast(x: Tensor, dtype: Any) -> Tensor:
    """x as "float32", "bfloat16" or "float64", rounded to the nearest; None: as it is. Its gradient comes in x's own dtype.

    A model in bfloat16 casts once, where its activations begin. Raises ValueError for another dtype.

    >>> cast(Tensor([1.0, 2.0]), "float64").dtype
    dtype('float64')
    """
    dtype = x.dtype if dtype is None else float_dtype(dtype)
    return x if x.dtype == dtype else apply(cast_forward, cast_backward, x, dtype=dtype)


@moves
def cast_forward(x, *, dtype, needs):
    return x.astype(dtype), (x.dtype,)


def cast_backward(grad, dtype, *, needs):
    return (grad.astype(dtype),)
