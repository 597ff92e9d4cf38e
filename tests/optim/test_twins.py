"""The compiled twins of AdamW and of clipping move and scale as the references do; and so training goes the same way."""

from math import isnan, sqrt

import numpy as np
import pytest

import minitune as mt
from minitune import backend, models, nn, tune
from minitune.cores import sharing
from minitune.data import Batch
from minitune.optim import AdamW, Group, clip_grad_norm

pytest.importorskip("numba", reason="numba, which compiles the CPU twins, is not installed")
EPS = 6e-8              # the largest relative error of one rounding to float32
SHAPES = [(), (1,), (2,), (31,), (3, 11), (255,), (1024, 33), (0, 2), (1 << 18,), (513, 1025)]
VIEWS = {
    "whole": lambda a: a, "transposed": lambda a: a.T, "every second": lambda a: np.repeat(a, 2, -1)[..., ::2] if a.ndim else a,
    "backwards": lambda a: np.asarray(np.flip(a)),
}


@pytest.fixture(params=[1, 3])
def cores(request, monkeypatch):
    """As if BLAS were allowed this many threads, on any machine."""
    class Library:
        def get_num_threads(self):
            return request.param

        def set_num_threads(self, threads):
            pass

    monkeypatch.setattr(sharing(), "libraries", [Library()])


def twins():
    return backend.twins_in("cpu", "optimizers")


def numbers(seed, *shape):
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), np.float32)


def five_steps(shape, decay, view, dtype=np.float32, kernels=True):
    """The parameter's array and its moments after five steps."""
    data = view(numbers(0, *shape).astype(dtype))
    p = nn.Parameter(data)
    p.data = data
    optimizer = AdamW([Group([p], weight_decay=decay)], lr=0.01)
    with mt.kernels(kernels):
        for step in range(5):
            p.grad = view(numbers(step + 1, *shape).astype(dtype))
            optimizer.step()
    assert p.data is data
    return data, optimizer.slots[id(p)].moments


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_moves_parameters_of_any_shape_and_strides_as_in_float64(cores, decay, view):
    """Off by a few times (4) what the reference is in float32, which makes the same roundings, and a rounding of each step
    (8) where by luck that is little."""
    for shape in SHAPES:
        got, rounded, exact = (five_steps(shape, decay, VIEWS[view], dtype, kernels)
                               for dtype, kernels in ((np.float32, True), (np.float32, False), (np.float64, False)))
        for g, r, e in zip((got[0], *got[1]), (rounded[0], *rounded[1]), (exact[0], *exact[1]), strict=True):
            assert g.dtype == np.float32
            np.testing.assert_allclose(g, e, 0, 4 * abs(r - e).max(initial=0) + 8 * EPS * abs(e).max(initial=0))


def test_adamw_runs_its_twin_on_contiguous_float32_alone(monkeypatch):
    calls = []
    monkeypatch.setattr(twins(), "adamw", lambda *arguments: calls.append(arguments[0].shape))
    five_steps((3, 11), 0.1, VIEWS["whole"])
    assert calls == [(3, 11)] * 5
    for other in (dict(view=VIEWS["transposed"]), dict(view=VIEWS["whole"], kernels=False),
                  dict(view=VIEWS["whole"], dtype=np.float64)):
        five_steps((3, 11), 0.1, **other)
    assert len(calls) == 5


def test_a_nan_gradient_shows_in_the_parameter_and_in_the_norm():
    p = nn.Parameter(np.ones((2, 3), np.float32))
    p.grad = np.ones((2, 3), np.float32)
    p.grad[1, 1] = np.nan
    assert isnan(clip_grad_norm([p], 1.0))
    AdamW([p]).step()
    np.testing.assert_array_equal(np.isnan(p.data), [[False] * 3, [False, True, False]])


def with_gradients(view):
    parameters = [nn.Parameter(np.zeros(shape, np.float32)) for shape in SHAPES]
    for i, p in enumerate(parameters):
        p.grad = view(numbers(i, *p.shape).copy() if view is not VIEWS["transposed"] else numbers(i, *p.shape[::-1]))
    return parameters


@pytest.mark.parametrize("view", VIEWS)
def test_the_norm_is_that_of_float64_and_every_gradient_is_scaled_by_it(cores, view):
    """N squares, added in at least 4 sums side by side, are off by N / 4 roundings; these go up as often as down, so that
    the root of that, 256 of a block of 2^18, is left, and half of it in the norm."""
    parameters, tolerance = with_gradients(VIEWS[view]), 128 * EPS
    before = [p.grad.astype(np.float64) for p in parameters]
    expected = sqrt(sum((g * g).sum() for g in before))
    assert clip_grad_norm(parameters, 2.0) == pytest.approx(expected, tolerance)
    for p, g in zip(parameters, before, strict=True):
        np.testing.assert_allclose(p.grad, g * (2 / expected), tolerance)
    small = with_gradients(VIEWS[view])
    assert clip_grad_norm(small, 1e9) == pytest.approx(expected, tolerance)
    assert all(np.array_equal(p.grad, g) for p, g in zip(small, before, strict=True))


def test_clipping_with_and_without_twins_is_the_same():
    results = []
    for on in True, False:
        with mt.kernels(on):
            parameters = with_gradients(VIEWS["whole"])
            results.append((clip_grad_norm(parameters, 2.0), *(p.grad for p in parameters)))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, 256 * EPS)           # each norm as above


def test_large_gradients_have_a_norm():
    """Their squares overflow float32, in the reference as well: infinity, not a wrong number."""
    p = nn.Parameter(np.zeros(3, np.float32))
    p.grad = np.full(3, 1e30, np.float32)
    assert clip_grad_norm([p], 1e38) == np.inf


@pytest.mark.parametrize("name, arguments", [("sum_of_squares", 1), ("scale", 1), ("adamw", 4)])
def test_the_bits_are_the_same_on_any_number_of_cores(monkeypatch, name, arguments):
    results = []
    for count in 1, 2, 3, 3:
        library = type("Library", (), {"get_num_threads": lambda self, count=count: count,
                                       "set_num_threads": lambda self, threads: None})()
        monkeypatch.setattr(sharing(), "libraries", [library])
        arrays = [abs(numbers(i, 513, 1025)) for i in range(arguments)]
        rest = {"sum_of_squares": (), "scale": (0.3,), "adamw": (0.9, 0.999, 0.99, 1e-8, 1e-3)}[name]
        results.append((getattr(twins(), name)(*arrays, *rest), [a.tobytes() for a in arrays]))
    assert all(result == results[0] for result in results)


# ---- Training ----------------------------------------------------------------------------------------------------------

def frozen_below(model):
    tune.freeze_to(model, 1)


def with_lora(model):
    tune.apply(model, tune.LoRAConfig(r=4))


def losses(prepare=None, kernels=True, steps=10):
    """Of ten steps on one batch of texts of unequal length."""
    mt.seed(0)
    model = models.GPT(models.GPTConfig(60, 40, 3, 2, 32, 0.1))
    if prepare:
        prepare(model)
    draw = np.random.default_rng(0)
    batch = Batch.causal([[[int(i) for i in draw.integers(0, 60, length)]] for length in (40, 33, 31, 2)])
    optimizer, seen = AdamW(model, lr=1e-3), []
    with mt.kernels(kernels):
        for _ in range(steps):
            (loss, count, _), = model.loss(batch).values()
            (loss * (1 / count)).backward()
            clip_grad_norm(optimizer.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            seen.append(loss.item() / count)
    return seen


@pytest.mark.parametrize("prepare", [None, with_lora, frozen_below], ids=["all", "lora", "frozen below"])
def test_training_goes_the_same_way_with_and_without_twins(cores, prepare):
    """A loss is the mean of some hundred numbers of about 4, each off by up to some hundred roundings, as often up as down:
    ten of 6e-8, relatively. Ten steps, of gradients that are as far off and a rate of 1e-3, leave it at about that: five times
    that is allowed."""
    with_twins, plain = losses(prepare), losses(prepare, kernels=False)
    assert plain[-1] < plain[0] and len(set(plain)) == 10
    np.testing.assert_allclose(with_twins, plain, 50 * EPS)
    assert losses(prepare) == with_twins


@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_clipping_in_the_step_moves_weights_as_clipping_before_it(max_norm):
    def weights(kernels):
        p = [nn.Parameter(numbers(i, 40, 30)) for i in range(2)]
        optimizer = AdamW(p, lr=0.01)
        with mt.kernels(kernels):
            for step in range(3):
                for i, one in enumerate(p):
                    one.grad = numbers(10 * step + i, 40, 30)
                norm = optimizer.clip(max_norm)
                assert isinstance(norm, float) and norm > 40
                optimizer.step()
        return np.stack([one.data for one in p])

    np.testing.assert_allclose(weights(True), weights(False), rtol=1e-5, atol=1e-6)    # some roundings of numbers near 1


def test_a_clip_is_never_lost():
    p = nn.Parameter(numbers(0, 3, 4))
    optimizer, before = AdamW([p], lr=0.1), p.data.copy()
    p.grad = numbers(1, 3, 4)
    optimizer.clip(0.1)
    with mt.kernels(False), pytest.raises(RuntimeError, match="what clip left to a step with twins"):
        optimizer.step()
    np.testing.assert_array_equal(p.data, before)
    optimizer.step()                            # with twins as before
    assert (p.data != before).any()
