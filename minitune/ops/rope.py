"""rope: pairs of channels of a query or key are turned by an angle that grows with its position."""

from __future__ import annotations

from ..backend import Array, array_module
from ..tensor import Tensor, apply
from .checks import check_integers


def rope(x: Tensor, positions: Array, frequencies: Array) -> Tensor:
    """Turns channels i and i + D / 2 of every head by the angle positions * frequencies[i], in radians.

    y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin, with x1, x2 the first and the second half of the channels. The product of a
    query and a key then depends on the distance of their positions alone.
    Shapes: x (B, T, H, D), positions integers (B, T), frequencies floats (D / 2,) -> (B, T, H, D)
    Raises ValueError where shapes do not fit.
    Source: Su et al. 2021, RoFormer: Enhanced Transformer with Rotary Position Embedding, equation 34 (which pairs channels
    2i and 2i + 1; halves are Llama's order).

    >>> x = Tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> rope(x, np.array([[1]]), np.array([np.pi / 2])).numpy().round(4).reshape(-1)
    array([0., 1.], dtype=float32)
    """
    if len(x.shape) != 4 or x.shape[3] % 2:
        raise ValueError(f"rope: x must be (B, T, H, D) with an even D, got {x.shape}. Are the heads an axis of their own?")
    check_integers("rope", "positions", positions, x.shape[:2], "(B, T) = ")
    if frequencies.shape != (x.shape[3] // 2,) or frequencies.dtype.kind != "f":
        raise ValueError(f"rope: frequencies must be floats (D / 2,) = {(x.shape[3] // 2,)}, "
                         f"got {frequencies.dtype} {frequencies.shape}")
    return apply(rope_forward, rope_backward, x, positions, frequencies=frequencies)


def rope_forward(x, positions, *, frequencies, needs):
    return _turned(x, positions, frequencies), (positions, frequencies)


def rope_backward(grad, positions, frequencies, *, needs):
    return _turned(grad, positions, -frequencies), None                     # a rotation's transpose turns back


def _turned(x, positions, frequencies):
    xp = array_module(x)
    angles = positions[..., None, None] * xp.asarray(frequencies)                       # (B, T, 1, D / 2)
    cos, sin = xp.cos(angles).astype(x.dtype), xp.sin(angles).astype(x.dtype)
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return xp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)
