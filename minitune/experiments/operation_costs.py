"""What each operation makes, keeps, multiplies and moves: a rule an operation, of its compiled CPU twin where it has one.

A rule takes what forward takes and gives (result, kept, slopes): `kept` is what lives on until backward, `slopes(grad)` makes
the gradients. A test compares every rule with the operation itself. Letters: N rows, C channels, K what a product sums over.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from .shape_only import made, meter

Made = tuple[Any, tuple, Callable[[Any], tuple]]
RULES: dict[str, Callable[..., Made]] = {}
FOUR = 4                        # bytes of a float32
FEWEST, LOGITS = 512, 1 << 22   # of linear_cross_entropy's twin: rows, and logits, that are held at a time
QUERIES, SCORES, FEW = 64, 1 << 18, 1 << 20                     # of attention's twin: a block, its scores, and what is little


def _rule(*names: str) -> Callable:
    def add(function: Callable) -> Callable:
        RULES.update(dict.fromkeys(names, function))
        return function
    return add


def _shape(a: Any) -> tuple[int, ...]:
    return getattr(a, "shape", ())


def _work(**amounts: int) -> None:
    meter().work.update(amounts)


def _product(M: int, N: int, K: int, often: int = 1) -> None:
    meter().work[M, N, K] += often


def _rows(shape: tuple[int, ...]) -> int:
    return prod(shape[:-1])


def _grads(needs: Any, *shapes: Any) -> tuple:
    """A new gradient for each input that wants one; shapes may be missing at the end."""
    return tuple(made(shape) if need else None for need, shape in zip(needs, [*shapes, *[()] * len(needs)]))


# ---- Elementwise -----------------------------------------------------------------------------------------------------

def _unbroadcast(grad: Any, shape: tuple[int, ...], new: bool) -> Any:
    """The gradient of an operand that may have been repeated; `new` where it is not `grad` itself."""
    if grad.shape == shape:
        return made(shape) if new else grad
    if new:
        meter().beside(grad.nbytes)
    _work(bytes=grad.nbytes)
    return made(shape)


@_rule("add", "sub")
def _sum_of_two(needs: Any, a: Any, b: Any) -> Made:
    return _two(needs, a, b, (), False)


@_rule("mul")
def _mul(needs: Any, a: Any, b: Any) -> Made:
    return _two(needs, a, b, (a if needs.b else None, b if needs.a else None), True)


@_rule("div")
def _div(needs: Any, a: Any, b: Any) -> Made:
    return _two(needs, a, b, (a if needs.b else None, b), True)


def _two(needs: Any, a: Any, b: Any, kept: tuple, new: bool) -> Made:
    """An operation of two inputs; `new` says that a gradient of grad's shape is not grad itself."""
    shapes = _shape(a), _shape(b)
    result = made(np.broadcast_shapes(*shapes))
    _work(bytes=3 * result.nbytes)

    def slopes(grad: Any) -> tuple:
        _work(bytes=3 * grad.nbytes * sum(needs) * new)
        return tuple(_unbroadcast(grad, shape, new) if need else None for need, shape in zip(needs, shapes))

    return result, kept, slopes


def _one(loop: str, keeps: str = "x", beside: int = 0) -> Callable[..., Made]:
    """An operation of one input that keeps "x", its result "y" or nothing; `beside` arrays of its size are made on the way."""
    def rule(needs: Any, x: Any, **settings: Any) -> Made:
        shape, result = x.shape, made(x.shape)
        meter().work[loop] += x.size
        meter().beside(beside * x.nbytes)

        def slopes(grad: Any) -> tuple:
            meter().work[f"{loop} backward"] += grad.size
            meter().beside(beside * grad.nbytes)
            return (made(shape),)

        return result, ({"x": x, "y": result}.get(keeps),), slopes

    return rule


for _name, _keeps, _beside in (("neg", "", 0), ("pow", "x", 1), ("exp", "y", 0), ("log", "x", 0), ("sqrt", "y", 0),
                               ("tanh", "y", 1), ("sigmoid", "y", 1)):
    RULES[_name] = _one("elementwise", _keeps, _beside)
RULES["gelu"], RULES["gelu_erf"], RULES["softmax"] = _one("gelu"), _one("gelu_erf"), _one("softmax", "y")


@_rule("relu")
def _relu(needs: Any, x: Any) -> Made:
    result, _, slopes = _one("elementwise", "")(needs, x)
    return result, (made(x.shape, bool),), slopes


@_rule("swiglu")
def _swiglu(needs: Any, gate: Any, up: Any) -> Made:
    shape, result = gate.shape, made(gate.shape)
    _work(swiglu=gate.size)

    def slopes(grad: Any) -> tuple:
        meter().work["swiglu backward"] += grad.size
        both = made(shape), made(shape)         # whichever is wanted
        return tuple(g if need else None for g, need in zip(both, needs))

    return result, (gate, up), slopes


@_rule("dropout")
def _dropout(needs: Any, x: Any, *, p: float, place: Any) -> Made:
    shape = x.shape
    kept, result = made(shape, bool), made(shape)
    _work(dropout=x.size)

    def slopes(grad: Any) -> tuple:
        _work(bytes=2 * grad.nbytes)
        return (made(shape),)

    return result, (kept,), slopes


@_rule("cast")
def _cast(needs: Any, x: Any, *, dtype: Any) -> Made:
    before = x.dtype
    _work(bytes=2 * x.nbytes)
    return made(x.shape, dtype), (), lambda grad: (made(grad.shape, before),)


# ---- Moved, and summed -----------------------------------------------------------------------------------------------

@_rule("reshape", "transpose")
def _moved(needs: Any, x: Any, *, shape: Any = None, axes: Any = None) -> Made:
    before = x.shape
    if shape is None:
        shape = tuple(before[axis] for axis in axes)
    elif -1 in shape:
        shape = tuple(x.size // -prod(shape) if n == -1 else n for n in shape)
    return x.view(shape), (), lambda grad: (grad.view(before),)


@_rule("getitem")
def _getitem(needs: Any, x: Any, *, index: Any) -> Made:
    shape, parts = x.shape, index if isinstance(index, tuple) else (index,)
    plain = all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in parts)
    found = np.broadcast_to(np.zeros((), bool), shape)[index].shape
    result = x.view(found) if plain else made(found)
    _work(bytes=0 if plain else 2 * result.nbytes)

    def slopes(grad: Any) -> tuple:
        _work(bytes=2 * grad.nbytes)
        return (made(shape),)

    return result, (), slopes


@_rule("concat")
def _concat(needs: Any, *arrays: Any, axis: int) -> Made:
    shapes = [a.shape for a in arrays]
    whole = list(shapes[0])
    whole[axis] = sum(shape[axis] for shape in shapes)
    result = made(tuple(whole))
    _work(bytes=2 * result.nbytes)
    return result, (), lambda grad: tuple(grad.view(shape) if need else None for shape, need in zip(shapes, needs))


@_rule("sum", "mean")
def _sum(needs: Any, x: Any, *, axes: tuple[int, ...], keepdims: bool) -> Made:
    shape = x.shape
    _work(bytes=x.nbytes)
    return made(_reduced(shape, axes, keepdims)), (), lambda grad: (grad.view(shape),)      # one number seen many times


@_rule("max")
def _max(needs: Any, x: Any, *, axes: tuple[int, ...], keepdims: bool) -> Made:
    shape = x.shape
    _work(bytes=3 * x.nbytes)
    result = made(_reduced(shape, axes, keepdims))

    def slopes(grad: Any) -> tuple:
        _work(bytes=5 * FOUR * prod(shape))
        share, grad_x = made(shape), made(shape)
        del share
        return (grad_x,)

    return result, (made(shape, bool),), slopes


def _reduced(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    return tuple(1 if axis in axes else n for axis, n in enumerate(shape) if keepdims or axis not in axes)


# ---- Norms and tables ------------------------------------------------------------------------------------------------

@_rule("layer_norm", "rms_norm")
def _norm(needs: Any, x: Any, weight: Any, *rest: Any, eps: float) -> Made:
    shape, loop = x.shape, "layer_norm" if rest else "rms_norm"
    shapes = [shape, weight.shape, weight.shape][: len(needs)]
    result, rows = made(shape), made((_rows(shape),) if not rest else (2, _rows(shape)))
    meter().work[loop] += x.size

    def slopes(grad: Any) -> tuple:
        meter().work[f"{loop} backward"] += grad.size
        grad_x = made(shape)                    # made whether it is wanted or not
        return grad_x if needs.x else None, *_grads(needs[1:], *shapes[1:])

    wanted = not rest or needs.x or needs.weight
    return result, (x, rows) if wanted else (), slopes


@_rule("embedding")
def _embedding(needs: Any, weight: Any, ids: Any) -> Made:
    shape = weight.shape
    result = made((*np.shape(ids), shape[1]))
    _work(bytes=2 * result.nbytes)

    def slopes(grad: Any) -> tuple:
        _work(bytes=3 * grad.nbytes + FOUR * prod(shape))
        return made(shape), None

    return result, (), slopes


@_rule("rope")
def _rope(needs: Any, x: Any, positions: Any, *, frequencies: Any) -> Made:
    shape = x.shape
    _work(rope=x.size)

    def slopes(grad: Any) -> tuple:
        _work(rope=grad.size)
        return made(shape), None

    return made(shape), (), slopes


# ---- Products --------------------------------------------------------------------------------------------------------

@_rule("matmul")
def _matmul(needs: Any, a: Any, b: Any) -> Made:
    shapes, K = (a.shape, b.shape), a.shape[-1]
    stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    M, N = a.shape[-2], b.shape[-1]
    _product(M, N, K, prod(stack))

    def slopes(grad: Any) -> tuple:
        for need, sizes in zip(needs, ((M, K, N), (K, N, M))):
            _product(*sizes, often=prod(stack) * need)
        return _grads(needs, *shapes)

    return made((*stack, M, N)), (a if needs.b else None, b if needs.a else None), slopes


@_rule("linear")
def _linear(needs: Any, x: Any, weight: Any, bias: Any, residual: Any) -> Made:
    (out, inputs), N, shape = weight.shape, _rows(x.shape), x.shape
    _product(N, out, inputs)
    result = made((*shape[:-1], out))
    _work(bytes=(2 * (bias is not None or residual is not None) + (residual is not None)) * result.nbytes)

    def slopes(grad: Any) -> tuple:
        _product(N, inputs, out, needs.x)
        _product(out, inputs, N, needs.weight)
        _work(bytes=grad.nbytes * needs.bias)
        return *_grads(needs[:3], shape, (out, inputs), (out,)), grad if needs.residual else None

    return result, (x if needs.weight else None,), slopes


@_rule("lora_linear")
def _lora_linear(needs: Any, x: Any, weight: Any, bias: Any, A: Any, B: Any, residual: Any, *, scale: float) -> Made:
    (out, inputs), N, R = weight.shape, _rows(x.shape), len(A)
    summed, whole = N >= inputs, FOUR * out * inputs            # the update is added to the weight, or to the output
    _product(out if summed else N, inputs if summed else out, R)
    _product(N, R, inputs, not summed)
    _work(bytes=2 * whole * summed)
    meter().take(whole * summed)
    result, _, plain = _linear(needs, x, weight, bias, residual)
    meter().take(-whole * summed)
    meter().beside(0 if summed else result.nbytes + FOUR * N * R)

    def slopes(grad: Any) -> tuple:
        beside = FOUR * N * R + whole * (summed and needs.x)
        meter().take(beside)
        _product(N, R, out, needs.x or needs.A)
        _product(out, inputs, R, summed and needs.x)
        _product(N, inputs, R, needs.x and not summed)
        grads = plain(grad)
        _product(R, inputs, N, needs.A)
        _product(N, R, inputs, needs.B)
        _product(out, R, N, needs.B)
        meter().beside(FOUR * N * inputs * (needs.x and not summed))
        meter().take(-beside)
        return *grads[:3], *_grads((needs.A, needs.B), (R, inputs), (out, R)), grads[3]

    return result, (x if needs.weight or needs.A or needs.B else None,), slopes


@_rule("nf4_linear")
def _nf4_linear(needs: Any, x: Any, bias: Any, residual: Any, *, weight: Any) -> Made:
    """`weight` makes W from its codes: the two halves of each byte, what they stand for and the scales, then their product."""
    (out, inputs), N, shape = weight.__self__.shape, _rows(x.shape), x.shape
    beside = out * inputs * (1 + 3 * FOUR)
    meter().beside(beside)
    _product(N, out, inputs)
    _work(bytes=2 * beside)
    meter().take(FOUR * out * inputs)
    result = made((*shape[:-1], out))
    meter().take(-FOUR * out * inputs)

    def slopes(grad: Any) -> tuple:
        _product(N, inputs, out, needs.x)
        _work(bytes=2 * beside * needs.x)
        meter().beside(beside * needs.x)
        return *_grads(needs[:2], shape, (out,)), grad if needs.residual else None

    return result, (), slopes


@_rule("attention")
def _attention(needs: Any, q: Any, k: Any, v: Any, first: Any, last: Any) -> Made:
    shapes, (B, T, H, D), G = (q.shape, k.shape, v.shape), q.shape, k.shape[2]
    n, S = H // G, k.shape[1]
    rows = T * n
    size = rows if rows <= 2 * QUERIES else QUERIES
    together = G
    if B * rows * G * D * S > FEW:
        together = max(1, min(G, SCORES // (size * S), B * G // 8))
    scores = G * _seen(np.repeat(first, n, 1), np.repeat(last, n, 1), S, size)
    block = FOUR * together * size * S
    y = made(q.shape)
    copied = n > 1 and G > 1 and T > 1          # else queries that share a head of keys stand side by side already
    kept = (made(q.shape) if copied else q, k, v, y, made((2, B, G, rows)), made((2, B, rows), np.int64))
    meter().work.update({"score": scores, "score channel": scores * D * 2})
    several = B * G > together or rows > size   # a block's scores are made while those before it are still held
    meter().beside(block * (1 + several), y.nbytes * copied)

    def slopes(grad: Any) -> tuple:
        often = 2 + needs.v + needs.q + needs.k
        meter().work.update({"score backward": scores, "score channel backward": scores * D * often})
        grads = _grads(needs, *shapes)
        meter().beside(block * (2 + several), FOUR * B * T * H * (1 + D * copied))
        return grads

    return y, kept, slopes


def _seen(first: np.ndarray, last: np.ndarray, S: int, size: int) -> int:
    """How many scores the blocks of queries make: each multiplies with all keys from the first to the last that it sees."""
    starts = np.arange(0, first.shape[1], size)
    sees = first <= last
    low = np.minimum.reduceat(np.where(sees, first, S), starts, 1)
    high = np.maximum.reduceat(np.where(sees, last + 1, 0), starts, 1)
    lengths = np.minimum(starts + size, first.shape[1]) - starts
    return int((lengths * np.maximum(high - low, 0)).sum())


# ---- Losses ----------------------------------------------------------------------------------------------------------

@_rule("linear_cross_entropy")
def _linear_cross_entropy(needs: Any, x: Any, weight: Any, targets: Any, bias: Any) -> Made:
    shape, (V, C) = x.shape, weight.shape
    rows, supervised = targets.size, int((targets != -100).sum())
    step = min(supervised, max(FEWEST, LOGITS // V))
    chunks = -(-supervised // step) if step else 0
    kept = _grads((needs.x, needs.weight, needs.bias), shape, (V, C), (V,))
    part = FOUR * step * C * (supervised < rows)
    slope = FOUR * step * C * needs.x           # of a chunk, before it is put in its place
    logits = min(supervised, 2 * step)          # a chunk's are made while those before it are still held
    meter().beside(FOUR * logits * V, part)
    meter().beside(FOUR * step * V, part, max(slope, FOUR * V * C * needs.weight * (chunks > 1)))
    for sizes, often in (((step, V, C), chunks), ((step, C, V), chunks * needs.x), ((V, C, step), chunks * needs.weight)):
        _product(*sizes, often=often)
    _work(softmax=supervised * V, bytes=3 * FOUR * V * C * max(0, chunks - 1) * needs.weight)

    def slopes(grad: Any) -> tuple:
        grads = _grads((needs.x, needs.weight, False, needs.bias), shape, (V, C), (), (V,))
        _work(bytes=2 * sum(g.nbytes for g in grads if g is not None))
        return grads

    return made(()), kept, slopes


@_rule("cross_entropy")
def _cross_entropy(needs: Any, logits: Any, targets: Any) -> Made:
    shape, N = logits.shape, int((targets != -100).sum())
    _work(bytes=8 * logits.nbytes)
    meter().beside(3 * logits.nbytes)

    def slopes(grad: Any) -> tuple:
        meter().beside(3 * FOUR * prod(shape))
        return made(shape), None

    places = made((2 if N == targets.size else 3, N), np.int64)             # of targets among logits; of the rows, if not all
    return made(()), (made((N, shape[-1])), made((N,), bool), places), slopes


@_rule("binary_cross_entropy")
def _binary_cross_entropy(needs: Any, logits: Any, targets: Any) -> Made:
    shape = logits.shape
    meter().beside(4 * logits.nbytes)
    return made(()), (made(shape),), lambda grad: (made(shape), None)
