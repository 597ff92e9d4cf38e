"""recompute: a block that keeps only its inputs and runs again in the backward pass, time for memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..backend import Array, kernels, mode, random
from ..tensor import Node, Tensor, no_grad
from .module import Module

Began = tuple[int, dict[str, int], bool]        # the seed, the random counters, whether kernels were on


def recompute(block: Module, *inputs: Any) -> Tensor:
    """block(*inputs), of which only the inputs are kept for the backward pass, where the block runs once more.

    A model of n such blocks keeps n inputs and, at a time, the inside of one block, for about a third more time. Random
    numbers are drawn a second time from where they began, so gradients are bit for bit those of a plain call; where an input
    is used outside the block too, its sum may be rounded otherwise. It is a plain call where nothing is recorded, or where
    neither an input nor a parameter of the block needs a gradient. Until the backward pass the block must stay as it is:
    weights, frozen parts, training mode.
    Raises TypeError where `block` is no Module or gives anything but one Tensor.
    Source: Chen et al. 2016, Training deep nets with sublinear memory cost, section 4.

    >>> from minitune import nn
    >>> block, x = nn.MLP(4), Tensor([[1.0, 2.0, 3.0, 4.0]])
    >>> nn.recompute(block, x).sum().backward()
    >>> block.up.weight.grad.shape
    (16, 4)
    """
    if not isinstance(block, Module):
        raise TypeError(f"recompute: block must be a Module, whose parameters it can find, got {type(block).__name__}. Put the "
                        "function into the forward of one")
    needs = [mode.recording and isinstance(t, Tensor) and t.requires_grad for t in inputs]
    if not any(needs) and not (mode.recording and any(p.requires_grad for p in block.parameters())):
        return block(*inputs)
    began = random.seed, dict(random.counters), mode.kernels
    with no_grad():
        result = block(*inputs)
    if not isinstance(result, Tensor):
        raise TypeError(f"recompute: block must give one Tensor, {type(block).__name__} gave a {type(result).__name__}")
    kept = [t.detach() if isinstance(t, Tensor) else t for t in inputs]
    parents = [(t.node or t) if need else None for t, need in zip(inputs, needs, strict=True)]
    return Tensor(result.data, True, Node(recompute_backward, needs, (block, kept, began), parents))


def recompute_backward(grad: Array, block: Module, kept: list[Any], began: Began, *, needs: list[bool]) -> tuple:
    """The inputs' gradients. Those of parameters are added at once, use by use, in the order of a plain call."""
    for t, need in zip(kept, needs, strict=True):
        if need:
            t.requires_grad = True
    with _as_it_began(began):
        result = block(*kept)
    if result.requires_grad:                    # else all that could be trained was not used
        result.backward(grad)
    return tuple(t.grad if need else None for t, need in zip(kept, needs, strict=True))


@contextmanager
def _as_it_began(began: Began) -> Iterator[None]:
    """Records, with the random numbers and kernels of the first run; random numbers go on afterwards where they were."""
    recording, seed, counters = mode.recording, random.seed, dict(random.counters)
    random.seed, then, on = began
    _set_counters(then)
    mode.recording = True                       # backward may be called inside no_grad
    try:
        with kernels(on):
            yield
    finally:
        mode.recording, random.seed = recording, seed
        _set_counters(counters)


def _set_counters(counters: dict[str, int]) -> None:
    random.counters.clear()
    random.counters.update(counters)
