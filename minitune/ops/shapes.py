"""Operations that only move numbers: reshape, transpose, getitem, concat, split."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import Any

from ..backend import array_module
from ..devices import moves
from ..tensor import Tensor, apply


def reshape(x: Tensor, *shape: Any) -> Tensor:
    """The same numbers in another shape; one length may be -1.

    >>> reshape(Tensor([[1.0, 2.0], [3.0, 4.0]]), 4).shape
    (4,)
    """
    lengths = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    known = prod(n for n in lengths if n != -1)
    fits = x.size == known if -1 not in lengths else known > 0 and x.size % known == 0 and lengths.count(-1) == 1
    if not fits:
        raise ValueError(f"reshape: {x.size} numbers of shape {x.shape} do not fit in {lengths}")
    return apply(reshape_forward, reshape_backward, x, shape=lengths)


@moves
def reshape_forward(x, *, shape, needs):
    return x.reshape(shape), (x.shape,)


def reshape_backward(grad, shape, *, needs):
    return (grad.reshape(shape),)


def transpose(x: Tensor, *axes: Any) -> Tensor:
    """The axes in another order: transpose(x, 0, 2, 1); without axes, in reversed order."""
    order = tuple(axes[0]) if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes
    order = order or tuple(reversed(range(x.ndim)))
    if sorted(a % x.ndim if -x.ndim <= a < x.ndim else x.ndim for a in order) != list(range(x.ndim)):
        raise ValueError(f"transpose: axes must name each of the {x.ndim} axes of {x.shape} once, got {order}")
    return apply(transpose_forward, transpose_backward, x, axes=tuple(a % x.ndim for a in order))


@moves
def transpose_forward(x, *, axes, needs):
    return x.transpose(axes), (axes,)


def transpose_backward(grad, axes, *, needs):
    return (grad.transpose(sorted(range(len(axes)), key=axes.__getitem__)),)


def getitem(x: Tensor, index: Any) -> Tensor:
    """y = x[index], with slices, numbers, None, arrays of integers or booleans, as NumPy takes them."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, Tensor) for part in parts):
        index = tuple(part.data if isinstance(part, Tensor) else part for part in parts)
    return apply(getitem_forward, getitem_backward, x, index=index)


def getitem_forward(x, *, index, needs):
    return x[index], (x.shape, index)


def getitem_backward(grad, shape, index, *, needs):
    xp = array_module(grad)
    grad_x = xp.zeros(shape, grad.dtype)
    if all(part is None or part is Ellipsis or isinstance(part, (int, slice))
           for part in (index if isinstance(index, tuple) else (index,))):
        grad_x[index] = grad                                # a slice names no element twice
    else:
        xp.add.at(grad_x, index, grad)                      # an array of indices may
    return (grad_x,)


def concat(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """The tensors one after another along `axis`; all their other axes must agree.

    >>> concat([Tensor([1.0]), Tensor([2.0, 3.0])]).numpy()
    array([1., 2., 3.], dtype=float32)
    """
    if not tensors:
        raise ValueError("concat: expected at least one tensor, got none")
    first = tensors[0].shape
    if not -len(first) <= axis < len(first):
        raise ValueError(f"concat: axis must be one of the {len(first)} axes of {first}, got {axis}")
    axis %= len(first)
    for t in tensors[1:]:
        if t.shape[:axis] + t.shape[axis + 1 :] != first[:axis] + first[axis + 1 :]:
            raise ValueError(f"concat: shapes must agree except along axis {axis}, got {first} and {t.shape}")
    return apply(concat_forward, concat_backward, *tensors, axis=axis)


@moves
def concat_forward(*arrays, axis, needs):
    return array_module(arrays[0]).concatenate(arrays, axis), ([a.shape[axis] for a in arrays], axis)


def concat_backward(grad, lengths, axis, *, needs):
    return tuple(grad[part] if need else None for part, need in zip(_parts(lengths, axis), needs, strict=True))


def _parts(lengths: Sequence[int], axis: int) -> list[tuple[slice, ...]]:
    """The indices of parts of these lengths, one after another along `axis`."""
    before = (slice(None),) * axis
    return [(*before, slice(end - length, end)) for length, end in zip(lengths, accumulate(lengths), strict=True)]


def split(x: Tensor, lengths: Sequence[int], axis: int = 0) -> list[Tensor]:
    """Cuts `x` along `axis` into parts of the given lengths, which must add up to the axis."""
    if sum(lengths) != x.shape[axis]:
        raise ValueError(f"split: lengths {list(lengths)} must add up to {x.shape[axis]}, axis {axis} of {x.shape}")
    return [getitem(x, part) for part in _parts(lengths, axis % x.ndim)]
