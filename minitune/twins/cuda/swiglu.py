"""swiglu on a GPU in one pass over memory."""

from __future__ import annotations

from ...devices import array_module
from .kernel import Source, ceil_div, empty, not_for_a_gpu

_source = Source("swiglu")
_forward = _source.kernel("swiglu_forward", "gate:T[N] up:T[N] y:T[N] N:i64")
_backward = _source.kernel("swiglu_backward", "grad:T[N] gate:T[N] up:T[N] grad_gate:T[N] grad_up:T[N] N:i64")
THREADS = 256           # of a block, 16 bytes each


def _flat(a):
    return array_module(a).ascontiguousarray(a).reshape(-1)


def swiglu_unsupported(gate, up):
    alike = gate.dtype == up.dtype
    return not_for_a_gpu(gate, up) if alike else f"gate and up must have one dtype, got {gate.dtype} and {up.dtype}"


def swiglu_forward(gate, up, *, needs):
    flat = _flat(gate), _flat(up)
    y = empty(gate.shape, gate.dtype, gate)
    _forward(ceil_div(y.nbytes, 16 * THREADS), THREADS, *flat, y.reshape(-1))
    return y, flat


def swiglu_backward(grad, gate, up, *, needs):
    grad_gate, grad_up = empty(grad.shape, grad.dtype, grad), empty(grad.shape, grad.dtype, grad)
    _backward(ceil_div(grad.nbytes, 16 * THREADS), THREADS, _flat(grad), gate, up, grad_gate.reshape(-1), grad_up.reshape(-1))
    return grad_gate if needs.gate else None, grad_up if needs.up else None
