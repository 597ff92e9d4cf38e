"""erfc: the complement of the error function, which NumPy has not. gelu needs it."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.polynomial import Chebyshev

from ..backend import Array, array_module

END = 26.0              # further out erfc is below 1e-295


def erfc(x: Array) -> Array:
    """1 - erf(x) = 2 / sqrt(pi) * the integral of e^(-s^2) over s > x, of x's dtype.

    It is off by some 1e-15, and in its tail by some 1e-13 of itself. With z = |x| it is e^(-z^2) / (z + 3) times a factor that
    varies little, a polynomial in 1 / (z + 3); where x < 0 it is 2 - erfc(z).
    """
    xp = array_module(x)
    z = xp.minimum(abs(x.astype(np.float64)), 2 * END)                 # there e^(-z^2) is 0
    t = 1 / (xp.minimum(z, END) + 3)
    tail = xp.exp(-z * z) * t * _factor()(t)
    return xp.where(x < 0, 2 - tail, tail).astype(x.dtype)


@cache
def _factor() -> Chebyshev:
    """(z + 3) e^(z^2) erfc(z) for 0 <= z <= END as a polynomial in t = 1 / (z + 3), through its values at n points."""
    def factor(t):
        z = min(max(1 / t - 3, 0.0), END)
        near = round(z * 2**20) / 2**20                     # its square is exact, where e^(z * z) would lose three digits
        return math.erfc(z) * math.exp(near * near) * math.exp((z - near) * (z + near)) / t

    n, low, high = 22, 1 / (END + 3), 1 / 3
    j = np.arange(n)
    cosines = np.cos(np.outer(j, 2 * j + 1) % (4 * n) * (math.pi / (2 * n)))     # row j: the j-th polynomial at the n points
    values = np.vectorize(factor)(low + (high - low) * (cosines[1] + 1) / 2)
    coefficients = cosines @ values * (2 / n)
    coefficients[0] /= 2
    return Chebyshev(coefficients, [low, high])
