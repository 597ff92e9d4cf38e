"""rope on a GPU in one pass over memory, with angles as 64-bit fractions of a turn."""

from __future__ import annotations

from functools import lru_cache
from math import pi

import numpy as np

from ...devices import array_module, device_of, to_device
from .kernel import Source, ceil_div, empty, gpu_of, not_for_a_gpu

_source = Source("rope")
_turn = _source.kernel("rope_turn", "x:T[N,H,D] positions:i32[N] turns:i64[P] y:T[N,H,D] N:i32 H:i32 D:i32 P:i32 direction:f32")
THREADS, HEADS = 256, 8     # of a block: threads, each for 16 bytes of both halves of a head, and the heads they go through


@lru_cache(maxsize=16)
def _turns(frequencies, dtype, gpu):
    """The bytes of frequencies in radians as fractions of a turn, in units of 2^-64: (D / 2,) int64 on the GPU, if any.

    A model calls with the same ones in every layer, and a copy to the device costs more than the kernel.
    """
    turns = np.frombuffer(frequencies, dtype).astype(np.float64) / (2 * pi)
    quarters = (turns - np.rint(turns)) * 2.0**62                           # from -2^61 to 2^61, half a turn
    turns = quarters.astype(np.int64) * 4                                   # 2^63 wraps around to -2^63, half a turn too
    return turns if gpu is None else to_device(turns, "cuda")


def _turned(x, positions, turns, direction):
    B, T, H, D = x.shape
    y = empty((B * T, H, D), x.dtype, x)
    threads = B * T * ceil_div(D // 2 * x.dtype.itemsize, 16)
    flat = array_module(x).ascontiguousarray(x).reshape(B * T, H, D)
    _turn((ceil_div(threads, THREADS), ceil_div(H, HEADS)), THREADS, flat, positions, turns, y, direction)
    return y.reshape(x.shape)


def rope_unsupported(x, positions, *, frequencies):
    if device_of(frequencies) != "cpu":
        return "frequencies lie on the GPU, and its table is made from a NumPy array"
    if not np.isfinite(frequencies).all():
        return "some frequencies are NaN or infinite"
    return not_for_a_gpu(x)


def rope_forward(x, positions, *, frequencies, needs):
    positions = array_module(x).ascontiguousarray(positions, dtype=np.int32).reshape(-1)
    turns = _turns(frequencies.tobytes(), frequencies.dtype.str, gpu_of(x))
    return _turned(x, positions, turns, 1), (positions, turns)


def rope_backward(grad, positions, turns, *, needs):
    return _turned(grad, positions, turns, -1), None
