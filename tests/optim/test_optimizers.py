"""Optimizers move what is trainable, as PyTorch's do; clipping; groups."""

import numpy as np
import pytest

from minitune import Tensor, nn, optim
from minitune.optim import SGD, AdamW, Group

START = [0.5, -1.25, 2.0]
GRADS = [[0.1, -2.0, 0.0], [0.3, 0.5, -1.0], [-4.0, 1e-3, 0.25]]
# name: (ours, PyTorch's class and settings, what PyTorch 2.13 gives in float64 after the three gradients)
MAKERS = {
    "sgd": (lambda p: SGD(p, 0.1, weight_decay=0.1), ("SGD", dict(lr=0.1, weight_decay=0.1)),
            [0.8456485, -1.06645375, 2.014598]),
    "momentum": (lambda p: SGD(p, 0.1, momentum=0.9), ("SGD", dict(lr=0.1, momentum=0.9)), [0.8159, -0.8031, 2.165]),
    "adamw": (lambda p: AdamW(p, 0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
              ("AdamW", dict(lr=0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)),
              [0.3583872844517908, -1.0418649682214318, 2.055235664715887]),
}


def parameter(values, grad=None, decays=False):
    p = nn.Parameter(np.array(values, np.float64), decays)
    p.grad = None if grad is None else np.array(grad, np.float64)
    return p


def run(optimizer, p, grads):
    for grad in grads:
        p.grad = np.array(grad, p.dtype)
        optimizer.step()
    return p.data


@pytest.mark.parametrize("name", MAKERS)
def test_three_steps_give_the_numbers_that_pytorch_gave(name):
    ours, _, expected = MAKERS[name]
    p = parameter(START)
    np.testing.assert_allclose(run(ours([p]), p, GRADS), expected, rtol=1e-12)      # some ten roundings of float64


@pytest.mark.parametrize("name", MAKERS)
def test_a_hundred_steps_agree_with_pytorch(name):
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
    ours, (cls, settings), _ = MAKERS[name]
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal((4, 3)), rng.standard_normal((100, 4, 3))
    p, theirs = parameter(start), torch.nn.Parameter(torch.tensor(start))
    optimizer = getattr(torch.optim, cls)([theirs], **settings)
    for grad in grads:
        theirs.grad = torch.tensor(grad)
        optimizer.step()
    np.testing.assert_allclose(run(ours([p]), p, grads), theirs.detach().numpy(), rtol=1e-10)   # roundings of 100 steps


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_parameters_keep_their_dtype_array_and_shape(kind):
    for shape in (), (1,), (2, 3), (0, 2):
        p = nn.Parameter(np.ones(shape, np.float32), decays=True)
        p.grad, data = np.ones(shape, np.float32), p.data
        optimizer = kind([p], lr=np.float64(0.1), weight_decay=0.1)
        optimizer.step()
        assert p.data is data and p.dtype == np.float32 and (not p.size or p.data.max() < 1)
        assert all(m.dtype == np.float32 for slot in optimizer.slots.values() for m in slot.moments)


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_are_not_written_into(name):
    p = parameter([1.0, 2.0], [3.0, 4.0])
    optimizer = MAKERS[name][0]([p])
    optimizer.step()
    optimizer.step()
    assert p.grad.tolist() == [3.0, 4.0]


# ---- Decay -------------------------------------------------------------------------------------------------------

def moved_by_decay(model, optimizer):
    """Names of the parameters that a step with zero gradients moves."""
    before = {}
    for name, p in model.named_parameters():
        p.data = p.data + 1
        p.grad, before[name] = np.zeros_like(p.data), p.data.copy()
    optimizer.step()
    return {name for name, p in model.named_parameters() if not np.array_equal(p.data, before[name])}


def test_only_weights_of_linear_layers_decay_unless_all_are_asked():
    model = nn.TransformerBlock(4, 1, n_layer=1)
    model.embedding = nn.Embedding(3, 4)
    every = {name for name, _ in model.named_parameters()}
    linear = {name for name in every if name.endswith("weight") and "norm" not in name and "embedding" not in name}
    assert moved_by_decay(model, AdamW(model, 0.1)) == linear
    assert moved_by_decay(model, SGD(model, 0.1, weight_decay=0.1)) == linear
    assert moved_by_decay(model, SGD(model, 0.1)) == set()
    assert moved_by_decay(model, AdamW(optim.groups_of(model, 0.1, decay_all=True), 0.1)) == every


def test_groups_have_their_own_rate_and_decay():
    slow, fast = parameter([1.0], [1.0]), parameter([1.0], [1.0])
    SGD([Group([slow], rate=0.1), Group([fast], weight_decay=0.5)], lr=0.1).step()
    np.testing.assert_allclose([slow.data[0], fast.data[0]], [1 - 0.01, 1 * (1 - 0.05) - 0.1], rtol=1e-14)  # a rounding


def test_the_rate_may_be_changed_between_steps():
    p = parameter([1.0], [1.0])
    optimizer = SGD([p], lr=0.5)
    optimizer.step()
    optimizer.lr = 0.25
    optimizer.step()
    assert p.data.tolist() == [0.25]


# ---- Frozen and late -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_a_frozen_parameter_is_neither_moved_nor_decayed(kind):
    frozen, trained = parameter([1.0], [5.0], decays=True), parameter([1.0], [5.0], decays=True)
    frozen.requires_grad = False
    optimizer = kind([frozen, trained], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert frozen.data.tolist() == [1.0] and trained.data[0] < 1
    assert id(frozen) not in optimizer.slots and optimizer.parameters() == [frozen, trained]


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_a_parameter_without_a_gradient_is_neither_moved_nor_decayed(kind):
    p = parameter([1.0], decays=True)
    kind([p], lr=0.1, weight_decay=0.5).step()
    assert p.data.tolist() == [1.0]


def test_a_layer_unfrozen_late_moves_like_a_new_one_and_its_memory_outlives_a_freeze():
    late, always = parameter([1.0]), parameter([1.0])
    late.requires_grad = False
    optimizer = AdamW([late, always], lr=0.1, weight_decay=0.0)
    for _ in range(50):
        late.grad, always.grad = np.array([3.0]), np.array([3.0])
        optimizer.step()
    late.requires_grad = True
    optimizer.step()
    np.testing.assert_allclose(late.data, [1 - 0.1], rtol=1e-6)     # a first step is lr * sign(grad); eps is 1e-8
    assert (optimizer.slots[id(late)].step, optimizer.slots[id(always)].step) == (1, 51)
    late.requires_grad = False
    optimizer.step()
    late.requires_grad = True
    optimizer.step()
    assert optimizer.slots[id(late)].step == 2


def test_moments_are_made_at_the_first_gradient():
    p = parameter([1.0])
    optimizer = AdamW([p])
    optimizer.step()
    assert not optimizer.slots


def test_zero_grad_drops_every_gradient():
    a, b = parameter([1.0], [1.0]), parameter([1.0], [1.0])
    b.requires_grad = False
    SGD([a, b], 0.1).zero_grad()
    assert a.grad is b.grad is None


# ---- Clipping ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("max_norm", [0.5, 5.0, 1e9])
def test_clipping_agrees_with_pytorch(max_norm):
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(shape) for shape in ((3, 4), (5,), ())]
    ours = [parameter(np.zeros_like(g), g) for g in grads]
    theirs = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in map(np.asarray, grads)]
    for t, g in zip(theirs, grads, strict=True):
        t.grad = torch.tensor(g)
    norm, expected = optim.clip_grad_norm(ours, max_norm), torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    np.testing.assert_allclose(norm, expected.item(), rtol=1e-12)
    for p, t in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.grad, t.grad.numpy(), rtol=1e-5)       # PyTorch adds 1e-6 to the norm


def test_clipping_returns_the_norm_before_and_scales_all_gradients_together():
    a, b = parameter([0.0], [3.0]), parameter([[0.0]], [[4.0]])
    assert optim.clip_grad_norm([a, b], 1.0) == 5.0
    np.testing.assert_allclose([a.grad[0], b.grad[0, 0]], [0.6, 0.8], rtol=1e-14)
    assert optim.clip_grad_norm(iter([a, b]), 2.0) == pytest.approx(1.0) and a.grad[0] == pytest.approx(0.6)
    optim.clip_grad_norm([a, b], 0.9)               # just above the bound
    assert a.grad[0] == pytest.approx(0.54)


def test_clipping_looks_only_at_what_is_trained():
    a, frozen, without = parameter([0.0], [3.0]), parameter([0.0], [4.0]), parameter([0.0])
    frozen.requires_grad = False
    assert optim.clip_grad_norm([a, frozen, without], 1.0) == 3.0
    assert frozen.grad.tolist() == [4.0] and optim.clip_grad_norm([without], 1.0) == 0.0


def test_clipping_float32_gradients_keeps_their_dtype_and_array():
    p = nn.Parameter(np.zeros(2, np.float32))
    p.grad = grad = np.array([3.0, 4.0], np.float32)
    optim.clip_grad_norm([p], 1.0)
    assert p.grad is grad and grad.dtype == np.float32


# ---- Errors ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_a_rate_that_is_no_rate_raises(kind):
    for lr in -0.1, float("nan"):
        with pytest.raises(ValueError, match=f"{kind.__name__}: lr must be at least 0, got"):
            kind([parameter([1.0])], lr=lr)


@pytest.mark.parametrize("nothing", [[], [Group([])], nn.Module()], ids=["list", "group", "module"])
def test_an_optimizer_of_nothing_raises(nothing):
    with pytest.raises(ValueError, match="AdamW: expected parameters, got none"):
        AdamW(nothing)


def test_what_is_no_parameter_is_refused_and_not_left_out_in_silence():
    model = nn.Linear(2, 2)
    for wrong in list(model.named_parameters()), [model.weight, Tensor([1.0], requires_grad=True)], [model]:
        with pytest.raises((TypeError, ValueError), match="AdamW: expected"):
            AdamW(wrong)


def test_an_optimizer_without_an_update_says_so():
    with pytest.raises(NotImplementedError, match="Optimizer defines no update"):
        optim.Optimizer([parameter([1.0], [1.0])], lr=0.1).step()
