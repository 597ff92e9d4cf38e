"""One table of cases for all operations: gradient checks, the contract, twins and the comparison with PyTorch read it.

A case is a call of a public operation. Its float arrays receive gradients; integers, masks, numbers and None do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple
from unittest.mock import patch
from zlib import crc32

import numpy as np

import minitune as mt
from minitune import ops
from minitune import tensor as engine

DROPOUT_SEED = 5        # a dropout case starts its stream here each time, so that it is a function of its arrays


@dataclass(frozen=True)
class Case:
    """`operation` is a name of ops.__all__; `call` replaces ops.<operation> where a case needs more than one call."""

    operation: str
    label: str
    arguments: tuple[Any, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    call: Callable[..., mt.Tensor] | None = None

    @property
    def floats(self) -> list[np.ndarray]:
        """The float arrays among the arguments, in order."""
        return [a for a in self.arguments if _is_float(a)]

    def run(self, *tensors: Any) -> mt.Tensor:
        """The operation, with `tensors` in the places of the float arrays."""
        return (self.call or getattr(ops, self.operation))(*self.filled(tensors), **self.settings)

    def filled(self, tensors: Any) -> list[Any]:
        """The arguments, with `tensors` in the places of the float arrays."""
        given = iter(tensors)
        return [next(given) if _is_float(a) else a for a in self.arguments]

    def __str__(self) -> str:
        return f"{self.operation}[{self.label}]"


class Call(NamedTuple):
    """What an operation hands to the engine: its two functions and their inputs, as plain arrays."""

    forward: Callable
    backward: Callable
    arrays: list[Any]
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return self.forward.__name__.removesuffix("_forward")

    @property
    def stem(self) -> str:
        return self.forward.__module__.rpartition(".")[2]

    def subsets_of_needs(self) -> Iterator[Any]:
        """Every choice of the inputs that want a gradient, at least one, as the engine's `needs`."""
        make = engine._needs_of(self.forward)
        for flags in product(*((False, True) if _is_float(a) else (False,) for a in self.arrays)):
            if any(flags):
                yield make(flags)


def calls_of(case: Case, dtype: Any = np.float64) -> list[Call]:
    """The calls of the engine that a case makes, recorded where the engine chooses between reference and twin."""
    calls = []
    with _recorded(calls):
        case.run(*(mt.Tensor(a.astype(dtype), requires_grad=True) for a in case.floats))
    return calls


@contextmanager
def _recorded(calls: list[Call]) -> Iterator[None]:
    choose = engine.choose

    def record(forward, backward, arrays, settings):
        calls.append(Call(forward, backward, list(arrays), dict(settings)))
        return choose(forward, backward, arrays, settings)

    with patch.object(engine, "choose", record):
        yield


def _is_float(a: Any) -> bool:
    return isinstance(a, np.ndarray) and a.dtype.kind == "f"


# ---- The contract -------------------------------------------------------------------------------------------------

def check_contract(forward, backward, arrays, settings, needs):
    """Backward writes into nothing it was given; what it returns fits the inputs and shares no memory it must not."""
    arrays = [a.copy() if isinstance(a, np.ndarray) else a for a in arrays]
    before = [a.copy() if isinstance(a, np.ndarray) else a for a in arrays]
    y, saved = forward(*arrays, **settings, needs=needs)
    result = np.array(y)
    grad = np.random.default_rng(1).standard_normal(np.shape(y)).astype(result.dtype)
    grad = np.asarray(grad)
    grad_before = grad.copy()
    saved_before = [a.copy() if isinstance(a, np.ndarray) else a for a in saved]
    grads = backward(grad, *saved, needs=needs)

    np.testing.assert_array_equal(grad, grad_before, err_msg="backward wrote into grad")
    for a, copy in zip(arrays, before, strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, copy, err_msg="an input was written into")
    np.testing.assert_array_equal(y, result, err_msg="backward wrote into the result")
    for a, copy in zip(saved, saved_before, strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, copy, err_msg="backward wrote into what forward saved")

    assert len(grads) == len(arrays)
    assert [g is not None for g in grads] == list(needs)
    wanted = [(a, g) for a, g in zip(arrays, grads, strict=True) if g is not None]
    assert [(g.shape, g.dtype) for _, g in wanted] == [(a.shape, a.dtype) for a, _ in wanted]
    new = [g for _, g in wanted if isinstance(g, np.ndarray) and not np.shares_memory(g, grad)]
    theirs = [a for a in (*arrays, y) if isinstance(a, np.ndarray)]
    for i, g in enumerate(new):
        assert not any(np.shares_memory(g, other) for other in theirs), "a gradient shares memory with an input or y"
        assert not any(np.shares_memory(g, other) for other in new[:i]), "two gradients share memory"


# ---- Numbers -----------------------------------------------------------------------------------------------------

def numbers(*shape: int, low: float | None = None) -> np.ndarray:
    """Float64 numbers that depend on the shape alone: normal, or from `low` to low + 2."""
    rng = np.random.default_rng(crc32(repr((shape, low)).encode()))
    return np.asarray(rng.standard_normal(shape) if low is None else rng.uniform(low, low + 2, shape))


def far_from_zero(*shape: int) -> np.ndarray:
    """Numbers of both signs, at least 0.3 from 0, where relu and division have no smooth slope."""
    x = numbers(*shape)
    return np.asarray(x + 0.3 * np.where(x < 0, -1, 1))


def distinct(*shape: int) -> np.ndarray:
    """Numbers at least 0.1 apart, so that a maximum stays the maximum under a small step."""
    count = int(np.prod(shape))
    return np.asarray(np.random.default_rng(count).permutation(count).reshape(shape) * 0.1)


def weighted(parts: list[mt.Tensor], axis: int) -> mt.Tensor:
    """All parts in one tensor, in reversed order: a result of `split` that a gradient check can take."""
    return ops.concat(parts[::-1], axis)


# ---- Attention: what every query sees ----------------------------------------------------------------------------

def intervals(*rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """(first, last), each (B, T), from one list of (first, last) a row."""
    both = np.array(rows)
    return both[..., 0], both[..., 1]


NONE = (1, 0)           # an interval that holds nothing, as padding has

INTERVALS = {           # name: (B, T, S, first and last)
    "causal": (2, 4, 4, intervals(*[[(0, t) for t in range(4)]] * 2)),
    "bidirectional": (2, 3, 3, intervals(*[[(0, 2)] * 3] * 2)),
    "right padding": (2, 4, 4, intervals([(0, 0), (0, 1), NONE, NONE], [(0, t) for t in range(4)])),
    "left padding": (2, 4, 4, intervals([NONE, NONE, (2, 2), (2, 3)], [(0, t) for t in range(4)])),
    "packed": (1, 5, 5, intervals([(0, 0), (0, 1), (0, 2), (3, 3), (3, 4)])),
    "window of two": (1, 5, 5, intervals([(max(0, t - 1), t) for t in range(5)])),
    "prefix": (1, 4, 4, intervals([(0, 1), (0, 1), (0, 2), (0, 3)])),
    "nothing seen": (2, 2, 3, intervals([NONE, NONE], [(2, 1), (3, -1)])),
    "more keys than queries": (2, 2, 5, intervals([(0, 3), (0, 4)], [(1, 3), (1, 4)])),
    "fewer keys than queries": (1, 3, 1, intervals([(0, 0), NONE, (0, 0)])), "no keys": (1, 2, 0, intervals([NONE, NONE])),
    "one query, one key": (1, 1, 1, intervals([(0, 0)])),
}


def attention_case(label: str, heads: int, size: int, groups: int | None = None) -> Case:
    B, T, S, (first, last) = INTERVALS[label]
    G = groups or heads
    q, k, v = numbers(B, T, heads, size), numbers(B, S, G, size), numbers(B, S, G, size, low=-1)
    grouped = f" in {groups} groups" if groups else ""
    return Case("attention", f"{label}, {heads} heads of {size}{grouped}", (q, k, v, first, last))


def lstm_case(label: str, B: int, T: int, inputs: int, hidden: int, starts: list | None = None) -> Case:
    """`starts` lists the places (b, t) where a document begins."""
    begins = None
    if starts is not None:
        begins = np.zeros((B, T), bool)
        begins[tuple(zip(*starts))] = True
    return Case("lstm", label, (numbers(B, T, inputs), numbers(4 * hidden, inputs), numbers(4 * hidden, hidden),
                                numbers(4 * hidden), numbers(B, hidden), numbers(B, hidden, low=-1), begins))


# ---- The table ---------------------------------------------------------------------------------------------------

BROADCASTS = {
    "same shape": ((2, 3), (2, 3)), "a row": ((2, 3), (3,)), "a column": ((2, 1), (2, 3)),
    "both ways": ((4, 1), (1, 5)), "inner axis": ((2, 1, 3), (4, 1)), "scalar": ((2, 3), ()),
    "from scalar": ((), (3,)), "two scalars": ((), ()),
    "size 1": ((1, 1), (1,)), "stack": ((2, 3, 4), (3, 4)), "size 1 kept": ((1, 1, 3), (1, 3)), "empty": ((0, 3), (3,)),
}
SHAPES = {"scalar": (), "one": (1,), "odd": (7,), "matrix": (3, 5), "size 1 axes": (1, 4, 1), "empty": (0, 3)}
INPUTS = {"plain": (4, 3), "one row": (1, 3), "stack": (2, 1, 3), "vector": (3,)}
NO = ops.IGNORE
ROWS_OF_TARGETS = {
    "rows": [0, 3, 1], "one row": [2], "some ignored": [NO, 1, NO, 0], "all ignored": [NO, NO],
    "no rows": np.zeros(0, int), "batch": [[0, NO, 2], [3, 3, NO]], "one vector": 2,
}
INDEXES = {
    "row": 1, "element": (2, -1), "slice": slice(1, 3), "stepped": (slice(None, None, 2), slice(1, None)),
    "backwards": slice(None, None, -1), "new axis": (None, slice(None), 0), "ellipsis": (Ellipsis, 1),
    "repeated rows": np.array([0, 2, 0, 0]), "list": [3, 3], "pairs": (np.array([0, 0, 1]), np.array([2, 2, 0])),
    "mask": np.array([True, False, True, False]), "mask of elements": numbers(4, 3) > 0, "nothing": slice(2, 2),
    "no row": np.zeros(0, int), "rows of ids": np.array([[0, 1], [1, 1]]),
    "array and slice": (np.array([1, 1]), slice(2)), "Tensor": mt.Tensor([1, 0, 1]),
}
PRODUCTS = {
    "matrices": ((3, 4), (4, 5)), "square": ((3, 3), (3, 3)), "one row": ((1, 4), (4, 2)),
    "one column": ((3, 4), (4, 1)), "inner 1": ((3, 1), (1, 2)), "no rows": ((0, 3), (3, 2)),
    "stack and matrix": ((2, 3, 4), (4, 5)), "matrix and stack": ((3, 4), (2, 4, 5)),
    "stacks": ((2, 3, 4), (2, 4, 5)), "broadcast stacks": ((2, 1, 3, 4), (5, 4, 2)),
    "size 1 stack": ((1, 3, 4), (6, 4, 2)),
}
ROTATIONS = {           # (B, T, H), positions, frequencies
    "one pair": ((1, 3, 1), [[0, 1, 2]], [1.0]), "packed": ((2, 4, 2), [[0, 1, 2, 0], [0, 0, 1, 2]], [1.0, 0.1, 0.01]),
    "far": ((1, 2, 3), [[100_000, 7]], [0.5, 1e-4]), "no tokens": ((2, 0, 1), np.zeros((2, 0), int), [1.0]),
}
ROWS = {"vector": (5,), "one": (1,), "matrix": (3, 4), "one row": (1, 7), "stack": (2, 1, 3), "no rows": (0, 3)}

CONVOLUTIONS = {        # x, weight, settings
    "3 x 3, bias": ((2, 3, 5, 6), (4, 3, 3, 3), {"padding": 1}), "alone": ((2, 2, 4, 5), (3, 2, 3, 3), {}),
    "1 x 1, bias": ((2, 3, 3, 2), (2, 3, 1, 1), {}), "uneven filter": ((1, 2, 5, 4), (2, 2, 1, 3), {"padding": 2}),
    "strides, bias": ((2, 1, 7, 6), (2, 1, 3, 2), {"stride": 2, "padding": 1}),
    "gaps": ((1, 2, 7, 8), (2, 2, 2, 2), {"stride": 3}), "patches, bias": ((2, 3, 6, 4), (5, 3, 2, 2), {"stride": 2}),
    "whole image": ((2, 2, 3, 4), (2, 2, 3, 4), {}), "one pixel, bias": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "no images, bias": ((0, 2, 3, 3), (2, 2, 2, 2), {}),
    "one pixel, padded": ((1, 1, 1, 1), (2, 1, 3, 3), {"padding": 1, "stride": 5}),
}
POOLINGS = {            # x, settings
    "pairs": ((2, 3, 4, 6), {"kernel_size": 2}), "odd": ((1, 2, 5, 7), {"kernel_size": 2}),
    "whole": ((2, 2, 3, 3), {"kernel_size": 3}), "overlapping": ((1, 2, 5, 6), {"kernel_size": 3, "stride": 2}),
    "gaps": ((1, 1, 7, 7), {"kernel_size": 2, "stride": 3}), "single pixels": ((2, 1, 2, 3), {"kernel_size": 1}),
    "no images": ((0, 2, 4, 4), {"kernel_size": 2}),
    "more places than a byte counts": ((1, 1, 17, 16), {"kernel_size": 16, "stride": 1}),
}

CASES: list[Case] = [
    *(Case(name, f"{label}", (numbers(*a), far_from_zero(*b) if name == "div" else numbers(*b, low=-1)))
      for name in ("add", "sub", "mul", "div") for label, (a, b) in BROADCASTS.items()),
    *(Case(name, "a number on the right", (far_from_zero(2, 3), 2)) for name in ("add", "sub", "mul", "div")),
    *(Case(name, "a number on the left", (2.5, far_from_zero(2, 3))) for name in ("add", "sub", "mul", "div")),
    *(Case(name, "integers on the right", (far_from_zero(2, 3), np.array([1, 2, -3])))
      for name in ("add", "sub", "mul", "div")),

    *(Case(name, label, (numbers(*shape),)) for name in ("neg", "exp", "tanh", "sigmoid", "gelu")
      for label, shape in SHAPES.items()),
    *(Case("gelu", f"exact, {label}", (x,), {"approximate": "none"})
      for label, x in {**{label: numbers(*shape) for label, shape in SHAPES.items()},
                       "large": np.array([-30.0, -5.0, -1.0, 4.0, 30.0]), "transposed": numbers(3, 5).T}.items()),
    *(Case("swiglu", label, (numbers(*shape), numbers(*shape, low=-1))) for label, shape in SHAPES.items()),
    Case("swiglu", "large", (np.array([-30.0, -9.0, 9.0, 30.0]), numbers(4))),
    Case("swiglu", "transposed", (numbers(3, 5).T, numbers(5, 3))),
    *(Case(name, "large", (np.array([-30.0, -9.0, 9.0, 30.0]),)) for name in ("tanh", "sigmoid", "gelu")),
    *(Case(name, "transposed", (numbers(3, 5).T,)) for name in ("exp", "gelu", "relu")),
    *(Case("relu", label, (far_from_zero(*shape),)) for label, shape in SHAPES.items()),
    *(Case(name, label, (numbers(*shape, low=0.5),)) for name in ("log", "sqrt") for label, shape in SHAPES.items()),
    *(Case("pow", f"to the {power}", (numbers(2, 3, low=0.5),), {"exponent": power})
      for power in (3, 2, 1, 0, -1, 0.5, -1.5, np.float64(2.5))),
    Case("pow", "negative base", (far_from_zero(4),), {"exponent": 3}),
    Case("pow", "zero to the 0", (np.zeros(2),), {"exponent": 0}),
    Case("pow", "zero to the 2", (np.zeros(2),), {"exponent": 2}),

    *(Case(name, f"axis {axis}, keepdims {keepdims}", (distinct(2, 3, 4),), {"axis": axis, "keepdims": keepdims})
      for name in ("sum", "mean", "max") for axis in (None, 0, -1, (0, 2), (1, 0), ()) for keepdims in (False, True)),
    *(Case(name, label, (distinct(*shape),)) for name in ("sum", "mean", "max")
      for label, shape in SHAPES.items() if label != "empty"),
    Case("sum", "nothing", (np.zeros((0, 3)),), {"axis": 0}),

    Case("reshape", "flat", (numbers(2, 3), 6)), Case("reshape", "tuple", (numbers(2, 3), (3, 2))),
    Case("reshape", "inferred", (numbers(2, 3, 4), 2, -1)), Case("reshape", "to a scalar", (numbers(1, 1), ())),
    Case("reshape", "from transposed", (numbers(3, 2).T, 3, 2)), Case("reshape", "empty", (np.zeros((0, 3)), 3, 0)),
    Case("transpose", "reversed", (numbers(2, 3, 4),)), Case("transpose", "order", (numbers(2, 3, 4), 1, 2, 0)),
    Case("transpose", "tuple, negative", (numbers(2, 1, 4), (0, -1, -2))), Case("transpose", "scalar", (numbers(),)),
    *(Case("getitem", label, (numbers(4, 3),), {"index": index}) for label, index in INDEXES.items()),
    *(Case("concat", f"axis {axis}", (numbers(2, 3), numbers(2, 3, low=-1)), {"axis": axis},
           lambda *parts, axis: ops.concat(parts, axis)) for axis in (0, 1, -1)),
    Case("concat", "unequal", (numbers(2, 1, 3), numbers(2, 4, 3), numbers(2, 0, 3)), {"axis": 1},
         lambda *parts, axis: ops.concat(parts, axis)),
    Case("concat", "one", (numbers(3),), {}, lambda x: ops.concat([x])),
    *(Case("split", f"{lengths} along {axis}", (numbers(4, 6),), {"lengths": lengths, "axis": axis},
           lambda x, lengths, axis: weighted(ops.split(x, lengths, axis), axis))
      for axis, lengths in ((0, [1, 3]), (1, [2, 2, 2]), (-1, [6]), (1, [0, 5, 1]))),

    *(Case("matmul", label, (numbers(*a), numbers(*b, low=-1))) for label, (a, b) in PRODUCTS.items()),

    *(Case("softmax", label, (numbers(*shape),)) for label, shape in ROWS.items()),
    Case("softmax", "one class", (numbers(3, 1),)),
    Case("softmax", "large", (np.array([[1000.0, 1001.0, 999.0], [-1000.0, -1002.0, -1001.0]]),)),

    *(Case("layer_norm", label, (numbers(*shape), numbers(shape[-1], low=0.5), numbers(shape[-1])))
      for label, shape in ROWS.items() if label != "one"),
    Case("layer_norm", "one channel", (numbers(3, 1), numbers(1), numbers(1, low=-1)), {"eps": 1.0}),
    Case("layer_norm", "large eps", (numbers(3, 4), numbers(4), numbers(4, low=-1)), {"eps": np.float64(0.1)}),
    Case("layer_norm", "constant row", (np.ones((1, 3)), numbers(3), numbers(3, low=-1)), {"eps": 1.0}),

    *(Case("rms_norm", label, (numbers(*shape), numbers(shape[-1], low=0.5))) for label, shape in ROWS.items()),
    Case("rms_norm", "large eps", (numbers(3, 4), numbers(4)), {"eps": np.float64(0.1)}),
    Case("rms_norm", "a row of zeros", (np.zeros((1, 3)), numbers(3)), {"eps": 1.0}),

    *(Case("rope", label, (numbers(*shape, 2 * len(frequencies)), np.array(positions)), {"frequencies": np.array(frequencies)})
      for label, (shape, positions, frequencies) in ROTATIONS.items()),

    *(Case("linear", f"{label}, {rest}",
           (numbers(*shape), numbers(5, 3), numbers(5) if "bias" in rest else None,
            numbers(*shape[:-1], 5) if "residual" in rest else None))
      for label, shape in INPUTS.items() for rest in ("bias and residual", "bias", "residual", "alone")),
    Case("linear", "one output", (numbers(4, 3), numbers(1, 3), numbers(1))),
    Case("linear", "no rows", (numbers(0, 3), numbers(2, 3), numbers(2))),

    *(Case("lora_linear", f"{label}, {rest}",
           (numbers(*shape), numbers(5, 3), numbers(5) if "bias" in rest else None,
            numbers(2, 3, low=-1), numbers(5, 2),
            numbers(*shape[:-1], 5) if "residual" in rest else None), {"scale": 1.5})
      for label, shape in INPUTS.items() for rest in ("bias and residual", "alone")),
    Case("lora_linear", "rank 1", (numbers(4, 3), numbers(2, 3), numbers(2), numbers(1, 3), numbers(2, 1)),
         {"scale": np.float64(0.5)}),

    lstm_case("plain", 2, 3, 3, 2), lstm_case("one token", 2, 1, 2, 3), lstm_case("one unit", 1, 4, 1, 1),
    lstm_case("documents begin inside", 2, 4, 2, 2, [(0, 2), (1, 1), (1, 3)]),
    lstm_case("documents begin everywhere", 1, 2, 3, 2, [(0, 0), (0, 1)]),

    *(Case("conv2d", label, (numbers(*x), numbers(*weight), numbers(weight[0]) if "bias" in label else None), settings)
      for label, (x, weight, settings) in CONVOLUTIONS.items()),
    *(Case(name, label, (distinct(*shape),), settings) for name in ("max_pool2d", "avg_pool2d")
      for label, (shape, settings) in POOLINGS.items()),

    *(Case("embedding", label, (numbers(5, 3), ids)) for label, ids in {
        "row": np.array([1, 4, 1, 1]), "batch": np.array([[0, 2], [2, 4]]), "scalar": np.array(3), "one": np.array([0]),
        "nothing": np.zeros((0,), int), "small integers": np.array([1, 2], np.uint8),
    }.items()),
    Case("embedding", "one channel", (numbers(4, 1), np.array([3, 3, 0]))),

    *(Case("cross_entropy", label, (numbers(*np.shape(targets), 4), np.array(targets)))
      for label, targets in ROWS_OF_TARGETS.items()),
    Case("cross_entropy", "one class", (numbers(3, 1), np.array([0, NO, 0]))),
    Case("cross_entropy", "large", (np.array([[500.0, 0.0], [0.0, 500.0], [-800.0, 800.0]]), np.array([0, 0, 1]))),

    *(Case("binary_cross_entropy", label, (numbers(*np.shape(targets)), np.array(targets))) for label, targets in {
        "rows": [[0, 1, 1], [1, 0, 0]], "some ignored": [[0, NO, 1], [NO, NO, NO]], "all ignored": [NO, NO], "one": 1,
        "no rows": np.zeros((0, 3), int), "small integers": np.array([[1], [0]], np.uint8),
    }.items()),
    Case("binary_cross_entropy", "large", (np.array([500.0, -500.0, 800.0, -9.0]), np.array([0, 1, 1, 0]))),

    *(Case("linear_cross_entropy", f"{label}, bias {bias}",
           (numbers(*np.shape(targets), 3), numbers(4, 3), np.array(targets), numbers(4) if bias else None))
      for label, targets in ROWS_OF_TARGETS.items() for bias in (True, False)),
    Case("linear_cross_entropy", "more rows than a chunk",
         (numbers(260, 1), numbers(3, 1), np.arange(260) % 3, numbers(3))),

    *(Case("dropout", f"{label}, p {p}", (numbers(*shape),), {"p": p},
           lambda x, p: mt.seed(DROPOUT_SEED) or ops.dropout(x, p))
      for label, shape in SHAPES.items() for p in (0.5, np.float64(0.1))),

    *(attention_case(label, heads=2, size=3) for label in INTERVALS),
    attention_case("causal", heads=1, size=1),
    attention_case("right padding", heads=3, size=4),
    *(attention_case(label, heads=4, size=2, groups=2) for label in INTERVALS),
    attention_case("packed", heads=3, size=2, groups=1),
]
