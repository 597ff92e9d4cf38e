"""rope in one pass over memory, with the angles of each position made once."""

from __future__ import annotations

import numpy as np

from .compiled import by_rows, compiled, not_float32


@compiled
def _turn(x, y, at, cos, sin):
    """x and y (N, H, D), at (N,): token i is turned by row at[i] of the tables cos and sin (positions, D / 2)."""
    N, H, D = x.shape
    for i in range(N):
        c, s = cos[at[i]], sin[at[i]]
        for h in range(H):
            for j in range(D // 2):
                x1, x2 = x[i, h, j], x[i, h, j + D // 2]
                y[i, h, j] = x1 * c[j] - x2 * s[j]
                y[i, h, j + D // 2] = x2 * c[j] + x1 * s[j]


def _turned(x, positions, frequencies):
    B, T, H, D = x.shape
    different, at = np.unique(positions, return_inverse=True)
    angles = different[:, None] * frequencies
    y = np.empty((B * T, H, D), np.float32)
    by_rows(_turn, (np.ascontiguousarray(x).reshape(B * T, H, D), y, at.reshape(-1)),
            np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    return y.reshape(x.shape)


def rope_unsupported(x, positions, *, frequencies):
    return not_float32(x)


def rope_forward(x, positions, *, frequencies, needs):
    return _turned(x, positions, frequencies), (positions, frequencies)


def rope_backward(grad, positions, frequencies, *, needs):
    return _turned(grad, positions, -frequencies), None
