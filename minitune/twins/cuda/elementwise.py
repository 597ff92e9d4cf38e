"""gelu, by tanh and exact, and sums in bfloat16 on a GPU: each in one pass over memory."""

from __future__ import annotations

from ...devices import array_module, is_bfloat16
from .kernel import Source, ceil_div, empty, not_for_a_gpu

_source = Source("elementwise")
_gelu = _source.kernel("gelu_forward", "x:T[N] y:T[N] N:i64")
_gelu_slope = _source.kernel("gelu_backward", "grad:T[N] x:T[N] grad_x:T[N] N:i64")
_gelu_erf = _source.kernel("gelu_erf_forward", "x:T[N] y:T[N] N:i64")
_gelu_erf_slope = _source.kernel("gelu_erf_backward", "grad:T[N] x:T[N] grad_x:T[N] N:i64")
_add = _source.kernel("add_forward", "a:T[N] b:T[N] y:T[N] N:i64")
THREADS = 256           # of a block, 16 bytes each


def _flat(a):
    return array_module(a).ascontiguousarray(a).reshape(-1)


def _run(kernel, *flat):
    """A new flat array that the kernel makes of these."""
    y = empty(flat[0].size, flat[0].dtype, flat[0])
    kernel(ceil_div(y.nbytes, 16 * THREADS), THREADS, *flat, y)
    return y


# ---- gelu by tanh ------------------------------------------------------------------------------------------------

def gelu_unsupported(x):
    return not_for_a_gpu(x)


def gelu_forward(x, *, needs):
    flat = _flat(x)
    return _run(_gelu, flat).reshape(x.shape), (flat,)


def gelu_backward(grad, x, *, needs):
    return (_run(_gelu_slope, _flat(grad), x).reshape(grad.shape),)


# ---- gelu as it is defined, by the normal distribution ---------------------------------------------------------------

def gelu_erf_unsupported(x):
    return not_for_a_gpu(x)


def gelu_erf_forward(x, *, needs):
    flat = _flat(x)
    return _run(_gelu_erf, flat).reshape(x.shape), (flat,)


def gelu_erf_backward(grad, x, *, needs):
    return (_run(_gelu_erf_slope, _flat(grad), x).reshape(grad.shape),)


# ---- Sums --------------------------------------------------------------------------------------------------------

def add_unsupported(a, b):
    # In float32 the reference is one kernel too. In bfloat16 it is four, since it computes in float32 around the sum.
    half = all(hasattr(x, "dtype") and is_bfloat16(x.dtype) and x.ndim for x in (a, b))
    return None if half and a.shape == b.shape else ""


def add_forward(a, b, *, needs):
    return _run(_add, _flat(a), _flat(b)).reshape(a.shape), ()


def add_backward(grad, *, needs):
    return grad if needs.a else None, grad if needs.b else None
