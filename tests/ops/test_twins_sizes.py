"""Every compiled CPU twin agrees with its reference at odd sizes and strides, with nothing to do, with NaN, on any cores."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from importlib import import_module
from math import ceil, pi, sqrt
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cases import numbers
from threadpoolctl import ThreadpoolController

import minitune as mt
from minitune import backend, ops
from minitune import tensor as engine
from minitune.cores import sharing
from minitune.ops import IGNORE

pytest.importorskip("numba", reason="numba, which compiles the CPU twins, is not installed")

TWINS = sorted((name, file.stem) for file in (Path(mt.__file__).parent / "twins" / "cpu").glob("*.py")
               for name in re.findall(r"^def ([a-z]\w*)_forward", file.read_text(encoding="utf-8"), re.MULTILINE))
EPS = 6e-8              # half the distance from 1 to the next float32: the largest relative error of one rounding
SAME_BITS = {"attention", "dropout", "embedding", "gelu", "gelu_erf", "layer_norm",
             "rms_norm", "rope", "softmax", "swiglu"}      # on any number of cores
SIZES = (1, 2, 31, 33, 255, 1024)
LSTMS = [(1, 33, 2, 1), (2, 31, 33, 33), (33, 2, 255, 31), (255, 1, 1024, 2), (1024, 2, 1, 31), (1, 1, 31, 255)]  # B, T, I, H
TRIPLES = [(SIZES[i], SIZES[(i + a) % 6], SIZES[(i + b) % 6]) for a, b in ((1, 3), (4, 2)) for i in range(6)]


# ---- The calls: {operation: [(arrays, settings), ...]}, floats in float32 ----------------------------------------------

def single(*shape, low=None):
    return numbers(*shape, low=low).astype(np.float32)


def integers(below, *shape):
    return np.random.default_rng(below).integers(0, below, shape)


KINDS = ["everything", "causal", "window", "packed", "left padding", "right padding", "an idle block", "nothing"]


def interval(kind, T, S):
    """(first, last), each (T,): query t stands at key t + S - T, and sees nothing where there is no such key."""
    at = np.arange(T) + S - T
    first, last, sees = {
        "everything": (0 * at, 0 * at + S - 1, at == at), "causal": (0 * at, at, at >= 0),
        "window": (np.maximum(at - 16, 0), at, at >= 0), "packed": (at // 37 * 37, at, at >= 0),
        "left padding": (0 * at + S // 3, at, at >= S // 3), "right padding": (0 * at, at, (at >= 0) & (at < S // 2)),
        "an idle block": (0 * at, at, (at >= 0) & (at // 64 != 1)), "nothing": (0 * at, at, at != at),
    }[kind]
    return np.where(sees, first, 1), np.where(sees, last, 0)


def attention(B, T, S, H, D, kind="causal", groups=None):
    """The rows of the batch see by turns `kind` and everything."""
    G = groups or H
    bounds = [interval(kind if b % 2 == 0 else "everything", T, S) for b in range(B)]
    first, last = (np.array([bound[i] for bound in bounds], int).reshape(B, T) for i in (0, 1))
    return [single(B, T, H, D), single(B, S, G, D, low=-0.5), single(B, S, G, D, low=-1), first, last], {}


def linear(*shape, out, rank=None, bias=True, residual=True):
    C = shape[-1]
    b, r = single(out) if bias else None, single(*shape[:-1], out) if residual else None
    if rank is None:
        return [single(*shape), single(out, C), b, r], {}
    return [single(*shape), single(out, C), b, single(rank, C, low=-1), single(out, rank), r], {"scale": 1.5}


def cross_entropy(*shape, V, ignored=0.3, bias=True):
    targets = integers(V, *shape[:-1])
    targets[numbers(*shape[:-1], low=0) < 2 * ignored] = IGNORE
    return [single(*shape), single(V, shape[-1]), targets, single(V) if bias else None], {}


def layer_norm(*shape, eps=1e-5):
    return [single(*shape), single(shape[-1], low=0.5), single(shape[-1])], {"eps": eps}


def rms_norm(*shape, eps=1e-6):
    return [single(*shape), single(shape[-1], low=0.5)], {"eps": eps}


def rope(B, T, H, half):
    """A row of the batch holds documents of 37 tokens."""
    positions = np.broadcast_to(np.arange(T) % 37, (B, T)) + np.arange(B)[:, None]
    return [single(B, T, H, 2 * half), positions], {"frequencies": 10.0 ** -np.linspace(0, 4, half)}


def swiglu(*shape):
    return [4 * single(*shape), single(*shape, low=-0.9)], {}


def lstm(B, T, inputs, hidden, starts=0.0):
    """A document begins at a share `starts` of the tokens; None: nowhere."""
    begins = None if starts is None else numbers(B, T, low=0) < 2 * starts
    return [single(B, T, inputs), single(4 * hidden, inputs), single(4 * hidden, hidden) / np.float32(sqrt(hidden)),
            single(4 * hidden), single(B, hidden), single(B, hidden, low=-1), begins], {}


def dropout(*shape, p=0.1, place=(7, 1, 0)):
    return [single(*shape)], {"p": p, "place": place}


def conv2d(B, C, H, W, F, h, w, bias=True, stride=1, padding=0):
    return [single(B, C, H, W), single(F, C, h, w), single(F) if bias else None], {"stride": stride, "padding": padding}


CALLS = {
    "attention": [*(attention(2, T, S, 2, D) for T, S, D in TRIPLES if D < 1024),
                  attention(1, 2, 31, 1, 1024), attention(1, 256, 256, 4, 31), attention(3, 1, 255, 2, 33, "everything"),
                  *(attention(2, 150, S, 3, 8, kind) for S in (150, 200) for kind in KINDS),
                  *(attention(2, 70, 100, 6, 8, kind, groups=2) for kind in KINDS), attention(0, 3, 3, 4, 2, groups=2),
                  attention(2, 255, 33, 3, 31, groups=1), attention(1, 1, 255, 4, 33, groups=1),
                  attention(2, 0, 3, 2, 4), attention(0, 3, 3, 2, 4), attention(1, 1, 1, 1, 1)],
    "conv2d": [conv2d(2, 3, 31, 33, 5, 3, 3, padding=1), conv2d(31, 1, 5, 5, 33, 3, 3, padding=1),
               conv2d(33, 31, 3, 4, 2, 3, 2, bias=False), conv2d(255, 2, 3, 3, 2, 2, 2, stride=2),
               conv2d(2, 33, 8, 9, 31, 1, 1), conv2d(3, 255, 4, 4, 2, 3, 3, padding=1),
               conv2d(2, 1, 1024, 2, 2, 3, 2, stride=3, padding=2),
               conv2d(1, 1, 1, 1, 1, 1, 1), conv2d(0, 2, 3, 3, 2, 2, 2), conv2d(3, 64, 28, 28, 2, 3, 3, padding=1)],
    "dropout": [*(dropout(n) for n in SIZES), *(dropout(a, b, p=0.5) for a, b, _ in TRIPLES), dropout(0, 3), dropout()],
    "embedding": [*(([single(V, C), integers(V, N)], {}) for V, C, N in TRIPLES),
                  ([single(3, 2), integers(3, 0)], {}), ([single(3, 2), integers(3, 2, 0)], {}),
                  ([single(5, 33), integers(5, 31, 33)], {}), ([single(5, 33), integers(5)], {})],
    "gelu": [*(([4 * single(n)], {}) for n in SIZES), ([4 * single(255, 1024)], {}), ([single(0, 3)], {}), ([single()], {})],
    "gelu_erf": [*(([4 * single(n)], {}) for n in SIZES), ([4 * single(255, 1024)], {}), ([single(0, 3)], {}),
                 ([single()], {})],
    "layer_norm": [*(layer_norm(a, b) for a, b, _ in TRIPLES), layer_norm(1024, 255, eps=np.float64(0.1)),
                   layer_norm(0, 31), layer_norm(2, 33, 31), layer_norm(31), layer_norm(1, 2)],
    "linear": [*(linear(N, C, out=V) for N, C, V in TRIPLES), linear(31, 33, out=255, bias=False),
               linear(31, 33, out=255, residual=False), linear(31, 33, out=255, bias=False, residual=False),
               linear(0, 31, out=33), linear(2, 0, 31, out=33), linear(2, 31, 33, out=31), linear(31, out=33)],
    "linear_cross_entropy": [*(cross_entropy(N, C, V=V) for N, C, V in TRIPLES), cross_entropy(1024, 31, V=255, bias=False),
                             cross_entropy(1024, 33, V=1024, ignored=0), cross_entropy(2, 31, 33, V=31),
                             cross_entropy(0, 31, V=33), cross_entropy(31, 33, V=31, ignored=2), cross_entropy(31, V=33)],
    "lora_linear": [*(linear(N, C, out=V, rank=rank) for rank, (N, C, V) in zip((1, 2, 31) * 4, TRIPLES, strict=True)),
                    linear(33, 31, out=255, rank=2, bias=False, residual=False), linear(0, 31, out=33, rank=2),
                    linear(2, 31, 33, out=31, rank=8), linear(31, out=33, rank=1)],
    "lstm": [*(lstm(B, T, inputs, hidden) for B, T, inputs, hidden in LSTMS), lstm(33, 31, 31, 33, starts=None),
             lstm(2, 31, 33, 33, starts=0.2), lstm(31, 2, 1, 255, starts=1), lstm(0, 2, 3, 2), lstm(2, 0, 3, 2)],
    "rms_norm": [*(rms_norm(a, b) for a, b, _ in TRIPLES), rms_norm(1024, 255, eps=np.float64(0.1)), rms_norm(0, 31),
                 rms_norm(2, 33, 31), rms_norm(31), rms_norm(1, 2)],
    "rope": [*(rope(B, T, H, half) for (B, T, H), half in zip(TRIPLES, (1, 2, 3) * 4, strict=True) if B * T * H < 3e5),
             rope(2, 33, 2, 255), rope(0, 3, 2, 1), rope(2, 0, 1, 1), rope(1, 1, 1, 1)],
    "swiglu": [*(swiglu(n) for n in SIZES), swiglu(255, 1024), swiglu(0, 3), swiglu()],
    "softmax": [*(([4 * single(a, b)], {}) for a, b, _ in TRIPLES), ([single(0, 31)], {}), ([single(2, 33, 31)], {}),
                ([single(31)], {}), ([single(1024, 255)], {})],
}


# ---- How they are run and compared -------------------------------------------------------------------------------------

def functions_of(name):
    """(twin, reference) of an operation."""
    stem = dict(TWINS)[name]
    module = import_module(f"minitune.ops.{stem}")
    forward, backward = (getattr(module, f"{name}_{part}") for part in ("forward", "backward"))
    return backend.twin("cpu", stem, name), backend.Twin(forward, backward)


def is_float(a):
    return isinstance(a, np.ndarray) and a.dtype.kind == "f"


def needs_of(name, arrays, only=None):
    """Every float array wants its gradient, or array number `only` alone."""
    return engine._needs_of(functions_of(name)[1].forward)(is_float(a) and only in (None, i) for i, a in enumerate(arrays))


def subsets(name, arrays):
    return dict.fromkeys([needs_of(name, arrays), *(needs_of(name, arrays, i) for i, a in enumerate(arrays) if is_float(a))])


def gradient(y):
    return single(*np.shape(y), low=-0.9)


def run(functions, call, needs, grad=gradient, change=lambda a: a):
    """The result and every gradient; `change` is applied to what is a float array among the inputs and to the gradient."""
    arrays, settings = call
    y, saved = functions.forward(*(change(a) if is_float(a) else a for a in arrays), **settings, needs=needs)
    return [np.asarray(y), *functions.backward(change(grad(y)), *saved, needs=needs)]


def subtracted(name, call, grad):
    """{place in [y, gradients...]: the size of two numbers whose difference it is}, where sizes alone would not show it."""
    arrays, settings = [a.astype(np.float64) if is_float(a) else a for a in call[0]], call[1]
    if 0 in (grad.size, arrays[0].size):
        return {}
    if name == "softmax":                                           # y (grad - its mean), 0 of one class
        return {1: abs(grad).max()}
    if name == "layer_norm":                                        # (x - mean) / std
        x, weight, _ = arrays
        slope = abs(weight).max() / np.sqrt(x.var(-1).min() + settings["eps"])
        return {0: slope * abs(x).max(), 1: slope * abs(grad).max()}
    if name == "rms_norm":                                          # grad less its part along x
        x, weight = arrays
        return {1: abs(weight).max() / np.sqrt((x * x).mean(-1).min() + settings["eps"]) * abs(grad).max()}
    if name == "attention":                                         # p (slope - its mean) times k, or q
        (q, k, v, first, last), plain = arrays, functions_of(name)[1]
        v = abs(v).repeat(q.shape[2] // v.shape[2], 2)
        slope = np.einsum("bthd,bshd->bths", abs(grad), v).max(-1, keepdims=True) / sqrt(q.shape[-1])
        y, saved = plain.forward(q, k, abs(k), first, last, needs=needs_of(name, arrays))
        return {1: (slope * y).max(), 2: plain.backward(slope * abs(q), *saved, needs=needs_of(name, arrays))[2].max()}
    if name == "linear_cross_entropy":                              # softmax - one at the target, times x, or weight
        x, weight, targets, bias = arrays
        z = x.reshape(-1, x.shape[-1]) @ weight.T + (0 if bias is None else bias)
        slope = np.exp(z - z.max(-1, keepdims=True))
        slope /= slope.sum(-1, keepdims=True)
        slope[np.arange(len(z)), np.maximum(targets.reshape(-1).astype(int), 0)] += 1       # an ignored row: a bit too large
        return {1: (slope @ abs(weight)).max(), 2: (slope.T @ abs(x.reshape(len(z), -1))).max(), 4: slope.sum(0).max()}
    return {}


def assert_agrees(name, call, needs, grad=gradient):
    """The twin agrees with the reference run in float64 on the same float32 numbers.

    How far off float32 must be, the reference shows when it runs in float32: it makes the same roundings in another
    order, so that a twin may be a few times (4) as far off. By luck it is nearer where an array holds few numbers; but every
    sum passes through partial sums of up to the sum of its terms' sizes, which is what the reference gives of sizes alone,
    and a twin's polynomial, a few roundings (8), is good to 4e-7 of that.
    """
    fast, plain = functions_of(name)
    got = run(fast, call, needs, grad)
    with np.errstate(all="ignore"):
        rounded, exact, sizes = (run(plain, call, needs, grad, change) for change in (np.copy, as_double, size_of))
        more = subtracted(name, call, grad(got[0]))
    assert [g is None for g in got] == [e is None for e in exact] and [g is not None for g in got[1:]] == list(needs)
    for place, (g, r, e, size) in enumerate(zip(got, rounded, exact, sizes, strict=True)):
        if g is not None:
            assert g.dtype == np.float32 and g.shape == e.shape
            size = max(np.nanmax(size, initial=0), np.nanmax(abs(e), initial=0), more.get(place, 0))
            np.testing.assert_allclose(g, e, 0, 4 * np.nanmax(abs(r - e), initial=0) + 8 * EPS * size)


def as_double(a):
    return a.astype(np.float64)


def size_of(a):
    return abs(a.astype(np.float64))


def same_bits(one, other):
    return all(a is b is None or (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
               for a, b in zip(one, other, strict=True))


@contextmanager
def on_cores(count):
    """As if BLAS were allowed `count` threads, on any machine."""
    library = SimpleNamespace(get_num_threads=lambda: count, set_num_threads=lambda threads: None)
    with ThreadpoolController().select(user_api="blas").limit(limits=1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing(), "libraries", [library])
        yield


every_twin = pytest.mark.parametrize("name", [name for name, _ in TWINS])


# ---- Sizes, empty rows, cores ------------------------------------------------------------------------------------------

@every_twin
def test_a_twin_has_calls_of_every_size(name):
    assert name in CALLS and name in STRIDED, f"a new twin: write its calls into CALLS and one into STRIDED of {__name__}"
    assert set(SIZES) <= {size for arrays, _ in CALLS[name] for a in arrays if a is not None for size in a.shape}
    assert any(a.size == 0 for arrays, _ in CALLS[name] for a in arrays if a is not None)


@pytest.mark.parametrize("cores", [1, 3])
@every_twin
def test_a_twin_agrees_at_every_size(name, cores):
    with on_cores(cores):
        for call in CALLS[name]:
            for needs in subsets(name, call[0]):
                assert_agrees(name, call, needs)


@every_twin
def test_two_runs_of_a_twin_give_the_same_bits(name):
    """On the same number of cores; and where no product is cut between cores, on any number."""
    fast, _ = functions_of(name)
    for call in CALLS[name]:
        needs, results = needs_of(name, call[0]), []
        for cores in (1, 1, 3, 3, 3):
            with on_cores(cores):
                results.append(run(fast, call, needs))
        one, again, *three = results
        assert same_bits(one, again) and all(same_bits(three[0], other) for other in three)
        assert name not in SAME_BITS or same_bits(one, three[0])


# ---- Strides -----------------------------------------------------------------------------------------------------------

STRIDES = {
    "columns first": np.asfortranarray,
    "every second": lambda a: np.repeat(a, 2, -1)[..., ::2],
    "backwards": lambda a: np.flip(np.flip(a).copy()),
    "part of a larger": lambda a: np.pad(a, 1)[(slice(1, -1),) * a.ndim],
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "heads first": lambda a: a.swapaxes(1, 2).copy().swapaxes(1, 2) if a.ndim == 4 else a,
}
STRIDED = {
    "attention": attention(2, 31, 70, 2, 33), "conv2d": conv2d(3, 2, 5, 7, 4, 3, 3, padding=1), "dropout": dropout(31, 33),
    "embedding": ([single(31, 33), integers(31, 5, 7)], {}), "gelu": ([single(31, 33)], {}), "layer_norm": layer_norm(31, 33),
    "linear": linear(31, 33, out=70), "linear_cross_entropy": cross_entropy(31, 33, V=70),
    "lora_linear": linear(31, 33, out=70, rank=2), "lstm": lstm(5, 7, 31, 33, starts=0.2), "softmax": ([single(31, 33)], {}),
    "gelu_erf": ([single(31, 33)], {}), "rms_norm": rms_norm(31, 33), "rope": rope(3, 5, 7, 4), "swiglu": swiglu(31, 33),
}
WHOLE = STRIDED | {"attention": attention(2, 31, 70, 2, 33, "everything"),                 # each row has a part in the result
                   "linear_cross_entropy": cross_entropy(31, 33, V=70, ignored=0)}


@pytest.mark.parametrize("strides", STRIDES)
@every_twin
def test_a_twin_takes_inputs_and_gradients_of_any_strides_and_writes_into_none(name, strides):
    arrays, settings = STRIDED[name]
    arrays = [STRIDES[strides](a) if isinstance(a, np.ndarray) else a for a in arrays]
    before = [None if a is None else a.copy() for a in arrays]
    for needs in subsets(name, arrays):
        assert_agrees(name, (arrays, settings), needs, lambda y: STRIDES[strides](gradient(y)) if np.ndim(y) else gradient(y))
    for a, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(a, copy)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int16])
@pytest.mark.parametrize("name", ["attention", "embedding", "linear_cross_entropy"])
def test_integers_may_be_small(name, dtype):
    """uint8 holds no -100: there every row is supervised."""
    arrays, settings = (WHOLE if name == "linear_cross_entropy" and dtype == np.uint8 else STRIDED)[name]
    arrays = [a.astype(dtype) if isinstance(a, np.ndarray) and not is_float(a) else a for a in arrays]
    assert_agrees(name, (arrays, settings), needs_of(name, arrays))


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4"])
@every_twin
def test_a_twin_says_that_it_takes_nothing_but_float32_in_this_machines_byte_order(name, dtype):
    (arrays, settings), (fast, _) = STRIDED[name], functions_of(name)
    assert fast.unsupported(*arrays, **settings) is None
    for i in (i for i, a in enumerate(arrays) if is_float(a)):
        others = [a.astype(dtype) if j == i else a for j, a in enumerate(arrays)]
        assert f"float32, got {dtype}" in str(fast.unsupported(*others, **settings))


# ---- NaN, infinity, large numbers --------------------------------------------------------------------------------------

def spoilt(a, value=np.nan):
    """A copy with `value` in its second row."""
    a = a.copy()
    a.reshape(-1)[a.size // max(1, len(a)) if a.ndim else 0] = value
    return a


@every_twin
def test_nan_shows_in_what_depends_on_it_and_leaves_the_rest_as_it_is(name):
    """Forward and backward, one NaN in each input and in the gradient, beside the reference."""
    fast, plain = functions_of(name)
    arrays, settings = WHOLE[name]
    needs, floats = needs_of(name, arrays), [i for i, a in enumerate(arrays) if is_float(a)]
    clean = run(fast, (arrays, settings), needs)
    for i in (*floats, None):
        call = [spoilt(a) if j == i else a for j, a in enumerate(arrays)], settings
        grad = gradient if i is not None else lambda y: spoilt(gradient(y))
        with np.errstate(invalid="ignore"):
            got, expected = (run(functions, call, needs, grad) for functions in (fast, plain))
        assert any(np.isnan(g).any() for g in got if g is not None)
        for g, e, c in zip(got, expected, clean, strict=True):
            if g is not None:
                np.testing.assert_array_equal(np.isnan(g), np.isnan(e), f"array {i} spoilt")
                np.testing.assert_array_equal(g, np.where(np.isnan(g), g, c), f"array {i} spoilt")


def test_what_a_query_does_not_see_spoils_only_its_own_row_of_the_batch():
    arrays, _ = attention(2, 70, 70, 2, 3, "causal")
    fast, _ = functions_of("attention")
    needs = needs_of("attention", arrays)
    clean, got = run(fast, (arrays, {}), needs), run(fast, ([arrays[0], *map(spoilt, arrays[1:3]), *arrays[3:]], {}), needs)
    for g, c in zip(got[:4], clean[:4], strict=True):
        np.testing.assert_array_equal(g[0], c[0])
        assert np.isnan(g[1]).any()


@pytest.mark.parametrize("row", [[np.inf, 0, 1], [-np.inf, 0, 1], [-np.inf] * 3, [np.nan, 0, 1], [0, 1, np.nan],
                                 [3e38, -3e38, 0], [1e4, 1e4 - 1, -1e4], [-1e4, -1e4 - 1, -1e4]])
def test_softmax_of_infinite_and_large_numbers_is_what_the_reference_gives(row):
    x = np.array([row, [0, 1, 2], [1, 1, 1]], np.float32)
    with np.errstate(all="ignore"):
        assert_agrees("softmax", ([x], {}), needs_of("softmax", [x]))


@pytest.mark.parametrize("eps", [0, 1e-6])
@pytest.mark.parametrize("row", [[1e20, 1], [1e30, -1e30], [1e-25, -1e-25], [1e-25, 1e-25], [np.inf, 1], [0, 0]])
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norms_of_rows_whose_squares_are_infinite_or_0_are_what_the_reference_gives(name, row, eps):
    """Alone and in a row long enough for vectors: 0 where the reference has 0, infinity where it has infinity."""
    for times in (1, 33):
        arrays, settings = (layer_norm if name == "layer_norm" else rms_norm)(3, 2 * times, eps=eps)
        arrays[0][1] = row * times
        with np.errstate(all="ignore"):
            got, expected = (run(functions, (arrays, settings), needs_of(name, arrays)) for functions in functions_of(name))
        for g, e in zip(got, expected, strict=True):
            np.testing.assert_allclose(g, e, 1e-4, 1e-4)                # ordinary rows beside it: some roundings of sums of 66


@pytest.mark.parametrize("largest", [100, 1e4, 1e30])
def test_large_scores_stay_finite_and_agree(largest):
    """A rounding of a score of 1e4 is 5e-4 of its weight, in the reference too, whose error sets the tolerance."""
    (q, k, *rest), settings = attention(2, 70, 70, 2, 33)
    q *= np.float32(largest / abs(np.einsum("bthd,bshd->bths", q, k) / sqrt(33)).max())
    for needs in subsets("attention", [q, k, *rest]):
        assert_agrees("attention", ([q, k, *rest], settings), needs)


@pytest.mark.parametrize("shift", [0, 1e4, -1e4])
def test_large_logits_stay_finite_and_agree(shift):
    """Whole numbers, whose logits are exact: the loss of a row is as good as that of the row without the shift."""
    arrays, settings = cross_entropy(31, 33, V=70, ignored=0)
    x, weight, bias = np.round(arrays[0]), np.round(arrays[1]), np.full(70, shift, np.float32)
    arrays = [x, weight, arrays[2], bias]
    fast, plain = functions_of("linear_cross_entropy")
    for needs in subsets("linear_cross_entropy", arrays):
        (loss, *got), (expected, *exact) = run(fast, (arrays, {}), needs), run(plain, (arrays, {}), needs, change=np.float64)
        np.testing.assert_allclose(loss, expected, 31 * EPS)        # 31 losses added up
        for g, e in zip(got, exact, strict=True):
            if g is not None:                                       # up to 33 or 70 products of numbers up to 4
                np.testing.assert_allclose(g, e, 0, 70 * EPS * 4)


def test_classes_at_minus_infinity_have_no_share_and_no_gradient():
    arrays, settings = cross_entropy(31, 33, V=70, ignored=0)
    targets, bias = arrays[2] % 60, arrays[3].copy()
    bias[60:] = -np.inf
    fast, plain = functions_of("linear_cross_entropy")
    call = [*arrays[:2], targets, bias], settings
    got, expected = (run(functions, call, needs_of("linear_cross_entropy", call[0])) for functions in (fast, plain))
    for g, e in zip(got, expected, strict=True):
        if g is not None:
            assert np.isfinite(g).all()
            np.testing.assert_allclose(g, e, 1e-5, 1e-5)            # some 70 roundings of numbers up to 4, in both
    assert not got[2][60:].any() and not got[4][60:].any()


# ---- What is computed inside -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("scale", [1, 0.5])
def test_linear_cross_entropy_scales_copies_of_what_forward_saved(scale):
    arrays, _ = cross_entropy(70, 33, V=1024)                           # a weight that is shared out
    fast, _ = functions_of("linear_cross_entropy")
    needs = needs_of("linear_cross_entropy", arrays)
    _, saved = fast.forward(*arrays, needs=needs)
    with on_cores(3):
        first = [g for g in fast.backward(np.float32(scale), *saved, needs=needs) if g is not None]
        expected = [g.copy() for g in first]
        for g in first:
            g *= 2                                                      # as whoever gets a gradient may
        again = [g for g in fast.backward(np.float32(scale), *saved, needs=needs) if g is not None]
    assert len(again) == 3 and same_bits(again, expected)


def test_the_exponential_keeps_its_promises():
    from minitune.twins.cpu.compiled import compiled, exponential

    def every(x, y):
        for i in range(x.size):
            y[i] = exponential(x[i])

    every = compiled.__globals__["njit"](**compiled.__globals__["FREEDOM"])(every)
    x = np.concatenate([np.linspace(-87, 0, 100_001), np.linspace(-1e-3, 1e-3, 1001)]).astype(np.float32)
    y = np.empty_like(x)
    every(x, y)
    np.testing.assert_allclose(y, np.exp(x.astype(np.float64)), 4e-7)
    special = np.array([0, -0.0, -88.01, -100, -3e38, -np.inf, np.nan], np.float32)
    y = np.empty_like(special)
    every(special, y)
    np.testing.assert_array_equal(y, [1, 1, 0, 0, 0, 0, np.nan])


def test_gelu_agrees_at_every_magnitude():
    """1 + tanh is off by some roundings of 2, times x / 2; beyond 6, where tanh is 1, the result is x or 0 itself.

    Beyond 1e13 x^3 overflows float32.
    """
    fast, plain = functions_of("gelu")
    x = np.concatenate([np.linspace(-12, 12, 100_001), np.geomspace(1e-30, 1e13, 91), -np.geomspace(1e-30, 1e13, 91)])
    x = x.astype(np.float32)
    needs = needs_of("gelu", [x])
    (y, grad_x), (exact, exact_grad) = (run(f, ([x], {}), needs, np.ones_like, change)
                                        for f, change in ((fast, np.copy), (plain, np.float64)))
    size = np.abs(x.astype(np.float64))
    assert (abs(y - exact) <= 4 * EPS * size).all()
    near = np.minimum(size, 6)                                      # d y / d x = (1 + t) / 2 + x (1 - t^2) inner / 2
    assert (abs(grad_x - exact_grad) <= 4 * EPS * (1 + near * sqrt(2 / pi) * (1 + 0.134145 * near**2))).all()
    np.testing.assert_array_equal(y[size > 6], np.maximum(x, 0)[size > 6])
    np.testing.assert_array_equal(grad_x[size > 6], (x > 0)[size > 6])


def test_the_exact_gelu_agrees_at_every_magnitude():
    """P(X <= x) is off by some roundings of 1 and the exponential's 4e-7 of its tail, times x."""
    fast, plain = functions_of("gelu_erf")
    x = np.concatenate([np.linspace(-12, 12, 100_001), np.geomspace(1e-30, 1e18, 91), -np.geomspace(1e-30, 1e18, 91)])
    x = x.astype(np.float32)
    (y, grad_x), (exact, exact_grad) = (run(f, ([x], {}), needs_of("gelu_erf", [x]), np.ones_like, change)
                                        for f, change in ((fast, np.copy), (plain, np.float64)))
    size = np.abs(x.astype(np.float64))
    assert (abs(y - exact) <= 4 * EPS * size).all()
    assert (abs(grad_x - exact_grad) <= 4 * EPS * (1 + 0.4 * np.minimum(size, 6) ** 2)).all()       # the density is up to 0.4
    np.testing.assert_array_equal(y[size > 14], np.maximum(x, 0)[size > 14])
    np.testing.assert_array_equal(grad_x[size > 14], (x > 0)[size > 14])


@pytest.mark.parametrize("p", [0.5, 0.1, 1e-300, 2.0**-24, 2.0**-23 - 2.0**-50, 1 - 2.0**-24, 1 - 2.0**-53])
@pytest.mark.parametrize("place", [(0, 1, 0), (2**64 - 1, 1, 2**32 - 3), (123456789012345, 5, 2**40 + 7)])
def test_dropout_keeps_exactly_the_elements_of_the_reference(p, place):
    fast, plain = functions_of("dropout")
    for size in (1, 2, 3, 4, 5, 1023, 70_001):
        call = [single(size)], {"p": p, "place": place}
        for cores in (1, 3):
            with on_cores(cores):
                got, expected = (run(f, call, needs_of("dropout", call[0])) for f in (fast, plain))
                assert same_bits(got, expected)


@pytest.mark.parametrize("p", [0.1, np.float64(0.1), np.float32(0.1)])
def test_dropout_is_the_same_to_the_bit_with_and_without_its_twin(p):
    results = []
    for on in True, False:
        mt.seed(3)
        with mt.kernels(on):
            x = mt.Tensor(single(33, 31), requires_grad=True)
            y = ops.dropout(ops.dropout(x, p), p)                   # the second goes on where the first stopped
            y.backward(gradient(y.data))
        results.append((y.data, x.grad))
    assert same_bits(*results)


def test_dropout_sees_the_very_first_number_at_its_threshold():
    """u = n / 2^24 is kept from p = u on, and p a hair above it drops it."""
    fast, _ = functions_of("dropout")
    u = backend.unit_interval(backend.philox(0, 1, 0, 1))[0]
    kept = [fast.forward(np.ones(1, np.float32), p=p, place=(0, 1, 0), needs=(True,))[1][0][0] for p in (u, np.nextafter(u, 1))]
    assert kept == [True, False] and ceil(u * 2**24) == u * 2**24


# ---- Compiling ---------------------------------------------------------------------------------------------------------

GELU = ("import numpy as np\nfrom minitune import Tensor, ops\n{before}\n"
        "assert abs(ops.gelu(Tensor([1.0])).item() - 0.841192) < 1e-6\n"
        "from minitune.twins.cpu import elementwise\nassert elementwise._forward.signatures")


def stderr_of(folder, before=""):
    done = subprocess.run([sys.executable, "-c", GELU.format(before=before)], env=os.environ | {"NUMBA_CACHE_DIR": str(folder)},
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_compiling_is_told_once_and_not_again_when_its_result_is_kept(tmp_path):
    assert stderr_of(tmp_path).count("minitune: compiles") == 1
    assert any(tmp_path.rglob("*.nbi"))
    assert stderr_of(tmp_path) == ""


def test_twins_run_where_no_folder_can_be_written_to(tmp_path):
    refuse = "import tempfile\ndef refuse(*a, **k): raise PermissionError('read-only')\ntempfile.TemporaryFile = refuse"
    stderr_of(tmp_path, refuse)
    assert not any(tmp_path.rglob("*.nbi"))
