"""AdamW and clipping on the emulated GPU: all parameters in one launch, the same bits in any order."""

import numpy as np
import pytest

import minitune as mt
from minitune import nn
from minitune.optim import SGD, AdamW, Group, clip_grad_norm
from minitune.twins.cuda import emulation
from minitune.twins.cuda.optimizers import CHUNK, clipping

pytestmark = pytest.mark.usefixtures("gxx")
EPS = 6e-8                      # the largest relative error of one rounding to float32
SHAPES = [(), (1,), (2,), (1023,), (65537,), (0, 3), (33, 7), (CHUNK,)]


def numbers(seed, *shape):
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), np.float32)


def parameters(dtype=np.float32):
    return [nn.Parameter(numbers(i, *shape).astype(dtype)) for i, shape in enumerate(SHAPES)]


def gradients(parts, step, dtype=np.float32):
    for i, p in enumerate(parts):
        p.grad = numbers(100 * step + i, *p.shape).astype(dtype)


def five_steps(dtype=np.float32, max_norm=50.0):
    """(arrays and moments, norms) after five steps; the norm is about 290, so gradients are scaled down."""
    parts, norms = parameters(dtype), []
    optimizer = AdamW([Group(parts[::2], weight_decay=0.1), Group(parts[1::2], rate=0.5)], lr=0.01)
    for step in range(5):
        gradients(parts, step + 1, dtype)
        norms.append(float(optimizer.clip(max_norm)))
        optimizer.step()
    return [a for p in parts for a in (p.data, *optimizer.slots[id(p)].moments)], norms


def emulated(order="forwards", **settings):
    with mt.emulated_gpu(), emulation.thread_order(order):
        return five_steps(**settings)


def test_five_clipped_steps_are_those_of_float64():
    """Off by a few times (4) what the reference is in float32, which makes the same roundings, and a rounding of each step (8)
    where by luck that is little. A norm adds up to 64 squares a thread, whose roundings go up as often as down."""
    with mt.kernels(False):
        (exact, norms), (rounded, _) = five_steps(np.float64), five_steps()
    found, found_norms = emulated()
    np.testing.assert_allclose(found_norms, norms, 64 * EPS)
    for g, r, e in zip(found, rounded, exact, strict=True):
        assert g.dtype == np.float32
        np.testing.assert_allclose(g, e, 0, 4 * abs(r - e).max(initial=0) + 8 * EPS * abs(e).max(initial=0))


def test_without_clipping_too():
    with mt.kernels(False):
        (exact, _), (rounded, _) = five_steps(np.float64, np.inf), five_steps(max_norm=np.inf)
    for g, r, e in zip(emulated(max_norm=np.inf)[0], rounded, exact, strict=True):
        np.testing.assert_allclose(g, e, 0, 4 * abs(r - e).max(initial=0) + 8 * EPS * abs(e).max(initial=0))


def test_the_bits_are_the_same_in_every_run_and_order_of_threads():
    results = [[a.tobytes() for a in arrays] + norms for arrays, norms in map(emulated, ("forwards", "forwards", "backwards",
                                                                                         "shuffled"))]
    assert all(result == results[0] for result in results)


def test_a_step_is_three_launches_however_many_parameters_there_are(monkeypatch):
    names, run = [], emulation.run
    monkeypatch.setattr(emulation, "run", lambda kernel, *rest: (names.append(kernel.name), run(kernel, *rest)))
    emulated()
    assert names == 5 * ["sum_of_squares", "finish_norm", "adamw"]


@pytest.mark.parametrize("where", ["gradient nan", "gradient inf", "square overflows", "loss nan", "loss inf"])
def test_where_norm_or_loss_is_not_finite_nothing_moves(where):
    parts, loss = parameters(), {"loss nan": np.nan, "loss inf": np.inf}.get(where, 3.5)
    optimizer = AdamW(parts, lr=0.01)
    with mt.emulated_gpu():
        for step in 1, 2:
            gradients(parts, step)
            optimizer.clip(1.0, 0.5)
            optimizer.step()
        before = [a.tobytes() for p in parts for a in (p.data, *optimizer.slots[id(p)].moments)]
        gradients(parts, 3)
        parts[4].grad[60000] = {"gradient nan": np.nan, "gradient inf": -np.inf, "square overflows": 1e30}.get(where, 1.0)
        norm = optimizer.clip(1.0, loss)
        optimizer.step()
        assert np.isfinite(norm + loss) == 0
        assert [a.tobytes() for p in parts for a in (p.data, *optimizer.slots[id(p)].moments)] == before
        gradients(parts, 4)
        optimizer.step()                        # the next one is on its own
    assert parts[0].data.tobytes() != before[0]


def test_what_clip_left_is_gone_with_its_gradients():
    p = nn.Parameter(np.ones(3, np.float32))
    optimizer = AdamW([p])
    with mt.emulated_gpu():
        p.grad = np.full(3, np.nan, np.float32)
        optimizer.clip(1.0)
        optimizer.zero_grad()
        p.grad = np.ones(3, np.float32)
        optimizer.step()
    assert (p.data < 1).all()


def test_a_step_that_was_not_clipped_takes_gradients_as_they_are():
    one, other = parameters(), parameters()
    with mt.emulated_gpu():
        for parts, max_norm in (one, None), (other, 1e9):
            optimizer = AdamW(parts)
            gradients(parts, 1)
            if max_norm:
                optimizer.clip(max_norm)
            optimizer.step()
    assert all(p.data.tobytes() == q.data.tobytes() for p, q in zip(one, other, strict=True))


def test_clip_grad_norm_scales_all_gradients_and_gives_an_array():
    parts = parameters()
    gradients(parts, 1)
    before = [p.grad.astype(np.float64) for p in parts]
    expected = np.sqrt(sum((g * g).sum() for g in before))
    with mt.emulated_gpu():
        norm = clip_grad_norm(parts, 2.0)
        assert norm.shape == () and norm == pytest.approx(expected, 64 * EPS)
        assert clip_grad_norm([nn.Parameter(np.ones(3, np.float32))], 1.0) == 0      # no gradient at all
    for p, g in zip(parts, before, strict=True):
        np.testing.assert_allclose(p.grad, g * (2 / expected), 64 * EPS)


@pytest.mark.parametrize("sizes", [(1,), (CHUNK - 1,), (CHUNK + 1, 3), (5 * CHUNK, 0, 2)])
def test_a_norm_is_that_of_float64_whatever_the_sizes(sizes):
    grads = [numbers(i, size) for i, size in enumerate(sizes)]
    expected = np.sqrt(sum((g.astype(np.float64)**2).sum() for g in grads))
    with mt.emulated_gpu():
        norm, factor, finite = clipping(grads, float(expected) / 2)
    assert norm == pytest.approx(expected, 64 * EPS) and factor == pytest.approx(0.5, 64 * EPS) and finite == 1


def test_arrays_that_lie_between_two_multiples_of_16_bytes_are_moved_number_by_number():
    """Cut out of larger ones, so that no pack of four begins where they do; what lies around them stays."""
    def cut(seed):
        whole = numbers(seed, 70)
        return whole, whole[1:68]

    plain, (whole, inside) = nn.Parameter(numbers(0, 70)[1:68].copy()), cut(0)
    shifted = nn.Parameter(inside)
    shifted.data = inside
    with mt.emulated_gpu():
        for p in plain, shifted:
            p.grad = cut(1)[1] if p is shifted else cut(1)[1].copy()
            optimizer = AdamW([p])
            optimizer.clip(0.5)
            optimizer.step()
    # the sum of squares is in another order, which moves the factor by a rounding
    np.testing.assert_allclose(shifted.data, plain.data, 8 * EPS)
    assert whole[[0, 68, 69]].tobytes() == numbers(0, 70)[[0, 68, 69]].tobytes()


def test_frozen_parameters_and_those_without_a_gradient_stay():
    parts = parameters()
    gradients(parts, 1)
    parts[3].requires_grad, parts[4].grad = False, None
    optimizer = AdamW(parts, lr=0.01)
    with mt.emulated_gpu():
        norm = optimizer.clip(1e9)
        optimizer.step()
    assert norm == pytest.approx(np.sqrt(sum((p.grad.astype(float)**2).sum() for i, p in enumerate(parts) if i not in (3, 4))))
    moved = [p.data.tobytes() != numbers(i, *p.shape).tobytes() for i, p in enumerate(parts)]
    assert moved == [i not in (3, 4, 5) for i in range(len(parts))]            # 5 has no numbers


def test_what_the_kernels_do_not_take_goes_to_the_reference():
    class Signs(AdamW):
        def update(self, p, grad, slot, rate, decay):
            p.data -= rate * np.sign(grad)

    wide, across = nn.Parameter(np.ones((3, 2))), nn.Parameter(np.ones((2, 3), np.float32))
    across.data = np.ones((3, 2), np.float32).T
    for kind, p in (AdamW, wide), (AdamW, across), (Signs, nn.Parameter(np.ones((2, 3), np.float32))), \
            (SGD, nn.Parameter(np.ones((2, 3), np.float32))):
        results = []
        for on in True, False:
            other = nn.Parameter(p.data)
            other.data, other.grad = p.data.copy("K"), p.data * 0.3
            optimizer = kind([other], lr=0.1)
            with mt.emulated_gpu(), mt.kernels(on):
                assert isinstance(optimizer.clip(0.1), float)
                optimizer.step()
            results.append(other.data)
        np.testing.assert_allclose(*results, 4 * EPS)
        assert (results[0] < p.data).all()
