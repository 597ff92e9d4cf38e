"""The engine: Tensor, the record of how it was made, and the backward walk. It knows no operation and no layer."""

from __future__ import annotations

import heapq
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from inspect import signature
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Array, array_module, as_array, choose, device_of, mode
from .cores import added
from .devices import is_bfloat16, is_float, to_device, widened

_numbers = count()


class Tensor:
    """An array and how it was made.

    `data` is the array, `grad` the gradient that `backward()` left (an array, or None), `node` the record of the
    operation that made it; a leaf, an input or a parameter, has none.

    >>> x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([2., 4., 6.], dtype=float32)
    """

    __slots__ = ("data", "requires_grad", "grad", "node", "__weakref__")
    __array_ufunc__ = None                      # array + Tensor asks Tensor, instead of making an array of objects

    def __init__(self, data: Any, requires_grad: bool = False, node: Node | None = None) -> None:
        if isinstance(data, Tensor):
            raise TypeError("Tensor: got a Tensor. Use tensor.detach() for one without its history")
        self.data: Array = as_array(data)
        if requires_grad and not is_float(self.data.dtype):
            raise TypeError(f"Tensor: only floats have gradients, got {self.data.dtype}. Convert with .astype(float)?")
        self.requires_grad, self.node = requires_grad, node
        self.grad: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        made = f", made by {self.node.name}" if self.node else ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({self.data!r}{made})"

    def __bool__(self) -> bool:
        raise TypeError("Tensor: has no truth value. Compare its numbers: tensor.numpy() > 0, or tensor.item() > 0")

    def __eq__(self, other: object) -> bool:
        raise TypeError("Tensor: == is not defined. Compare the numbers, tensor.numpy() == other, or ask `is`")

    __hash__ = object.__hash__

    def numpy(self) -> np.ndarray:
        """The numbers as a NumPy array; from a GPU they are copied, and bfloat16 comes as float32."""
        return widened(to_device(self.data, "cpu"))

    def item(self) -> float | int:
        """The one number of a tensor of size 1, as a Python number."""
        return self.data.item()

    def detach(self) -> Tensor:
        """The same array without its history."""
        return Tensor(self.data)

    def backward(self, grad: Array | None = None) -> None:
        """Adds d self / d leaf to `.grad` of every leaf that requires it.

        `grad` is the gradient of something with respect to this tensor, of its shape; a scalar needs none. What the
        operations saved is freed on the way, so a graph is walked once.
        Raises RuntimeError where nothing was recorded or the graph was walked before; ValueError, TypeError for a
        missing or unfit `grad`.
        """
        if not self.requires_grad:
            raise RuntimeError("backward: nothing was recorded here. Does any input or parameter have "
                               "requires_grad=True, and was this made outside no_grad()?")
        grad = _initial_gradient(self, grad)
        if self.node is None:
            _add_to_leaf(self, grad, owned=False)
        else:
            _walk(self.node, grad)

    if TYPE_CHECKING:                           # given their bodies by operators.py; a test compares the two lists
        def __add__(self, other: Any) -> Tensor: ...
        __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __matmul__ = __rmatmul__ = __add__
        def __neg__(self) -> Tensor: ...
        def __pow__(self, exponent: float) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def exp(self) -> Tensor: ...
        log = sqrt = tanh = exp
        def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        mean = max = sum
        def reshape(self, *shape: Any) -> Tensor: ...
        def transpose(self, *axes: Any) -> Tensor: ...


class Node:
    """One call of an operation. It points at its parents only, so a graph holds no reference cycle."""

    __slots__ = ("number", "backward", "needs", "saved", "parents")

    def __init__(self, backward: Callable, needs: Any, saved: tuple, parents: list[Node | Tensor | None]) -> None:
        self.number, self.backward, self.needs = next(_numbers), backward, needs
        self.saved: tuple | None = saved
        self.parents = parents

    @property
    def name(self) -> str:
        return self.backward.__name__.removesuffix("_backward")

    def run_backward(self, grad: Array) -> tuple:
        """The gradients for the parents; frees what forward saved."""
        if self.saved is None:
            raise RuntimeError(f"backward: {self.name} was walked before and what it saved is freed. "
                               "Run the forward pass again, or add the losses and call backward once")
        saved, self.saved = self.saved, None
        if not mode.checking:
            return self.backward(grad, *saved, needs=self.needs)
        with np.errstate(all="ignore"):         # the numbers are looked at below
            grads = self.backward(grad, *saved, needs=self.needs)
        _check_finite(f"{self.name}, backward", [grad, *saved], grads)
        return grads


def _walk(last: Node, grad: Array) -> None:
    """Visits nodes from the last made to the first: a node's number is higher than its parents', so the highest one
    waiting has no user left that could still add to its gradient."""
    grads = {last: grad}
    waiting = [(-last.number, last)]
    while waiting:
        node = heapq.heappop(waiting)[1]
        grad = grads.pop(node)
        for parent, part in zip(node.parents, node.run_backward(grad), strict=True):
            if parent is None or part is None:
                continue
            if isinstance(parent, Tensor):
                _add_to_leaf(parent, part, owned=part is not grad and part.base is None)
            elif parent in grads:
                grads[parent] = added(grads[parent], part)
            else:
                grads[parent] = part
                heapq.heappush(waiting, (-parent.number, parent))


def _add_to_leaf(leaf: Tensor, part: Array, owned: bool) -> None:
    """A leaf owns its gradient: the first part is kept if nobody else can write to it, else copied."""
    if leaf.grad is None:
        part = as_array(part)                   # the sum over all axes is a number, the gradient of a scalar an array
        leaf.grad = part if owned else part.copy()
    else:
        added(leaf.grad, part, out=leaf.grad)


def _initial_gradient(tensor: Tensor, grad: Array | None) -> Array:
    if grad is None:
        if tensor.size != 1:
            raise ValueError(f"backward: a tensor of shape {tensor.shape} needs a gradient of its shape. "
                             "Did you mean tensor.sum().backward()?")
        return array_module(tensor.data).ones_like(tensor.data)
    if isinstance(grad, Tensor):
        grad = grad.data
    if getattr(grad, "shape", None) != tensor.shape:
        raise ValueError(f"backward: grad must have shape {tensor.shape}, got {getattr(grad, 'shape', grad)}")
    if grad.dtype != tensor.dtype:
        raise TypeError(f"backward: grad must be {tensor.dtype} like the tensor, got {grad.dtype}")
    return grad


def apply(forward: Callable, backward: Callable, *inputs: Any, **settings: Any) -> Tensor:
    """Runs an operation, or its twin, on the inputs' arrays and records the way back.

    forward(*inputs, *, settings, needs) -> result, saved       saved: all that lives on until backward
    backward(grad, *saved, *, needs) -> gradients               one an input, None where needs.<input> is False

    `inputs` are Tensors, arrays, Python numbers or None; only Tensors receive gradients.
    """
    needs = _needs_of(forward)([mode.recording and isinstance(t, Tensor) and t.requires_grad for t in inputs])
    arrays = _alike(forward, inputs)
    run = choose(forward, backward, arrays, settings)
    if mode.checking:
        with np.errstate(all="ignore"):         # the numbers are looked at below
            result, saved = run.forward(*arrays, **settings, needs=needs)
        _check_finite(f"{forward.__name__.removesuffix('_forward')}, forward", arrays, [result])
    else:
        result, saved = run.forward(*arrays, **settings, needs=needs)
    if result.dtype == np.float64 and np.float64 not in [settings.get("dtype"), *(getattr(a, "dtype", None) for a in arrays)]:
        result = result.astype(np.float32)      # NumPy makes float64 of integers alone; minitune makes float32
    if True not in needs:
        return Tensor(result)
    parents = [(t.node or t) if need else None for t, need in zip(inputs, needs, strict=True)]
    return Tensor(result, True, Node(run.backward, needs, saved, parents))


def _alike(forward: Callable, inputs: tuple[Any, ...]) -> list[Any]:
    """The inputs' arrays, of one float dtype and on one device, or an error that says which differ.

    A Tensor of integers beside floats takes their dtype; plain arrays of integers, as ids and targets are, stay. float32, as
    parameters are, may stand beside bfloat16.
    """
    arrays = [t.data if isinstance(t, Tensor) else t for t in inputs]
    given = [a for a in arrays if hasattr(a, "dtype")]
    if len({(device_of(a), a.dtype) for a in given}) == 1:                  # so it is nearly always
        return arrays
    floats = {a.dtype for a in given if is_float(a.dtype)}
    if len(floats) > 1 and not all(dtype == np.float32 or is_bfloat16(dtype) for dtype in floats):
        raise TypeError(f"{forward.__name__.removesuffix('_forward')}: inputs must share one float dtype, got "
                        f"{' and '.join(sorted(map(str, floats)))}. Convert one with array.astype(...)")
    devices = {device_of(a) for a in given}
    if len(devices) > 1:
        raise TypeError(f"{forward.__name__.removesuffix('_forward')}: inputs must be on one device, got "
                        f"{' and '.join(sorted(devices))}. Move one: model.to(...), batch.to(model.device)")
    return [a.astype(min(floats, key=is_bfloat16)) if floats and isinstance(t, Tensor) and a.dtype.kind in "iu" else a
            for t, a in zip(inputs, arrays, strict=True)]


@cache
def _needs_of(forward: Callable) -> Callable:
    """Makes `needs`: a tuple of booleans named like forward's inputs, or a plain one for forward(*inputs)."""
    names = [p.name for p in signature(forward).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return namedtuple("needs", names)._make if names else tuple    # type: ignore[attr-defined,misc]


@contextmanager
def no_grad() -> Iterator[None]:
    """Records nothing inside a `with` block, or inside a function it decorates: for evaluation and generation."""
    before, mode.recording = mode.recording, False
    try:
        yield
    finally:
        mode.recording = before


@contextmanager
def detect_anomaly() -> Iterator[None]:
    """Inside a `with` block the first operation that makes NaN or infinity raises FloatingPointError with its name.

    It looks at every number, which takes time: the trainer repeats a step inside it once a loss has come out wrong.

    >>> with detect_anomaly():
    ...     Tensor([0.0]).log()
    Traceback (most recent call last):
    FloatingPointError: log, forward: made 1 of 1 numbers NaN or infinite, from inputs that were finite
    """
    before, mode.checking = mode.checking, True
    try:
        yield
    finally:
        mode.checking = before


def _check_finite(what: str, inputs: Iterable[Any], results: Iterable[Array | None]) -> None:
    """Raises where a result holds NaN or infinity, and says whether an input did already."""
    for result in results:
        if result is None or not is_float(result.dtype):
            continue
        result = widened(result)
        wrong = result.size - int(array_module(result).isfinite(result).sum())
        if wrong:
            floats = [widened(a) for a in inputs if hasattr(a, "dtype") and is_float(a.dtype)]
            came = all(bool(array_module(a).isfinite(a).all()) for a in floats)
            raise FloatingPointError(f"{what}: made {wrong:,} of {result.size:,} numbers NaN or infinite, from inputs that "
                                     f"{'were finite' if came else 'held NaN or infinity already'}")
