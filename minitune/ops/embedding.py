"""embedding: y = weight[ids], a row of the table for every id."""

from __future__ import annotations

from ..backend import Array, array_module, device_of
from ..tensor import Tensor, apply


def embedding(weight: Tensor, ids: Array) -> Tensor:
    """y = weight[ids]. Shapes: weight (V, C), ids integers (...) -> (..., C)

    Raises TypeError where ids are not integers, IndexError where one lies outside 0 .. V - 1; on a GPU, which a look at the
    numbers would have to wait for, its row is NaN instead.

    >>> embedding(Tensor([[1.0], [2.0], [3.0]]), [2, 0]).numpy()
    array([[3.],
           [1.]], dtype=float32)
    """
    ids = ids.data if isinstance(ids, Tensor) else array_module(weight.data).asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"embedding: ids must be integers, got {ids.dtype}. Are these vectors already?")
    if ids.size and device_of(ids) == "cpu" and not (0 <= ids.min() and ids.max() < weight.shape[0]):
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise IndexError(f"embedding: ids must lie in 0 .. {weight.shape[0] - 1}, got {wrong}. "
                         "Was the text encoded with another tokenizer?")
    return apply(embedding_forward, embedding_backward, weight, ids)


def embedding_forward(weight, ids, *, needs):
    return weight[ids], (ids, weight.shape)


def embedding_backward(grad, ids, shape, *, needs):
    """Rows of one id are brought together by sorting and summed in order: the same sum on every run."""
    xp = array_module(grad)
    grad_weight = xp.zeros(shape, grad.dtype)
    order = ids.reshape(-1).argsort(kind="stable")
    if order.size:
        used, starts = xp.unique(ids.reshape(-1)[order], return_index=True)
        grad_weight[used] = xp.add.reduceat(grad.reshape(-1, shape[1])[order], starts, axis=0)
    return grad_weight, None
