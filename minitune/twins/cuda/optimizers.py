"""AdamW and gradient norms on a GPU: all parameters in one launch, and nothing that the CPU waits for.

What a kernel needs of a parameter is a row of a table. The table is made anew each step, since every backward pass leaves its
gradients elsewhere: 56 bytes a parameter in one asynchronous copy. How parameters are cut into pieces follows from their sizes
alone and is kept.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ...devices import Array, array_module, device_of, to_device
from .kernel import Source, ceil_div, empty, gpu_of

_source = Source("optimizers")
_squares = _source.kernel("sum_of_squares", "table:i64[P,W] chunks:i32[K,2] partial:f32[K]")
_finish = _source.kernel("finish_norm", "partial:f32[K] loss:f32[1] result:f32[3] K:i32 max_norm:f32")
_adamw = _source.kernel("adamw", "table:i64[P,W] chunks:i32[K,2] norm:f32[3]? beta1:f32 rest1:f32 beta2:f32 rest2:f32")
CHUNK, THREADS = 16384, 256     # as in the kernels
ROW = np.dtype([(name, np.int64) for name in ("p", "grad", "m", "v", "size")]
               + [(name, np.float32) for name in ("decay", "eps", "step", "unused")])


def clip_all(optimizer: Any, max_norm: float, loss: Any) -> Any:
    """What `Optimizer.clip` says, of an AdamW: the gradients stay as they are, `adamw_all` scales them on the way."""
    grads = [p.grad for p in optimizer.parameters() if p.requires_grad and p.grad is not None]
    optimizer.clipping = clipping(grads, max_norm, loss) if grads else None
    return optimizer.clipping[0] if grads else 0.0


def adamw_all(optimizer: Any) -> None:
    """AdamW's step."""
    rows = [(p.data, p.grad, *optimizer.state(p, *how)) for p, *how in optimizer.due()]     # p, grad, m, v, and three numbers
    if rows:
        table, chunks = _tables([grad for _, grad, *_ in rows],
                                [(*map(_address, row[:4]), row[0].size, *row[4:], 0) for row in rows])
        beta1, beta2 = optimizer.betas
        _adamw(len(chunks), THREADS, table, chunks, optimizer.clipping, beta1, 1 - beta1, beta2, 1 - beta2)
    optimizer.clipping = None


def clipping(grads: list[Array], max_norm: float, loss: Any = 0.0) -> Array:
    """(3,): the joint norm of the gradients; what they are to be multiplied with so that it is at most `max_norm`; and 1 where
    norm and loss are finite, else 0."""
    table, chunks = _tables(grads, [(0, _address(grad), 0, 0, grad.size, 0, 0, 0, 0) for grad in grads])
    partial, result = empty(len(chunks), np.float32, table), empty(3, np.float32, table)
    _squares(len(chunks), THREADS, table, chunks, partial)
    _finish(1, THREADS, partial, array_module(table).asarray(loss, np.float32).reshape(1), result, max_norm)
    return result


def clip(grads: list[Array], max_norm: float) -> Array:
    """Scales the gradients, in place, so that their joint norm is at most `max_norm`; returns the norm before, ()."""
    norm, factor, _ = clipping(grads, max_norm)
    for grad in grads:
        grad *= factor
    return norm


def _tables(grads: list[Array], rows: list[tuple]) -> tuple[Array, Array]:
    """The rows as a kernel reads them, (P, 7), and the pieces that blocks work on, (K, 2), on the device."""
    xp = array_module(grads[0])
    table = np.array(rows, ROW).view(np.int64).reshape(len(rows), -1)
    return xp.asarray(table), _chunks(tuple(grad.size for grad in grads), gpu_of(grads[0]))


@lru_cache(maxsize=8)
def _chunks(sizes: tuple[int, ...], gpu: int | None) -> Array:
    """(K, 2) on the GPU, if any: the row of each piece, and which piece of it."""
    counts = [ceil_div(size, CHUNK) for size in sizes]
    rows, pieces = np.repeat(np.arange(len(sizes)), counts), np.concatenate([np.arange(count) for count in counts])
    chunks = np.stack([rows, pieces], 1).astype(np.int32)
    return chunks if gpu is None else to_device(chunks, "cuda")


def _address(array: Array) -> int:
    return array.ctypes.data if device_of(array) == "cpu" else array.data.ptr
