"""LSTM: agrees with PyTorch's, drops recurrent weights as DropConnect does, begins anew where a document begins."""

import re

import numpy as np
import pytest

import minitune as mt
from minitune import nn

DROPPED = 0.3


def layer(inputs=3, hidden=4, seed=0):
    mt.seed(seed)
    return nn.LSTM(inputs, hidden)


def inputs(*shape, dtype=np.float32):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


# ---- PyTorch -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(np.float32, 1e-5, 1e-5), (np.float64, 1e-10, 1e-10)])
@pytest.mark.parametrize("states_given", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_layers_agree_with_torchs_forward_and_in_every_gradient(depth, states_given, dtype, rtol, atol):
    torch = pytest.importorskip("torch", reason="PyTorch, which is compared with, is not installed")
    B, T, H, C = 3, 7, 5, 4
    theirs = torch.nn.LSTM(C, H, depth, batch_first=True, dtype=getattr(torch, np.dtype(dtype).name))
    ours = [layer(C if i == 0 else H, H) for i in range(depth)]
    for i, own in enumerate(ours):
        with torch.no_grad():
            getattr(theirs, f"bias_hh_l{i}").zero_()
        for name, other in (("weight_ih", "weight_ih"), ("weight_hh", "weight_hh"), ("bias", "bias_ih")):
            getattr(own, name).data = getattr(theirs, f"{other}_l{i}").detach().numpy().copy()
    x, hidden, cell = (mt.Tensor(a.astype(dtype), requires_grad=True)
                       for a in (inputs(B, T, C), inputs(depth, B, H), 2 * inputs(depth, B, H)))
    tx, th, tc = (torch.tensor(a.data, requires_grad=True) for a in (x, hidden, cell))

    y, last = x, []
    for i, own in enumerate(ours):
        states = own(y, *((hidden[i], cell[i]) if states_given else ()))
        y = states[0]
        last.append(states[:, :, -1])
    expected, (last_h, last_c) = theirs(tx, (th, tc) if states_given else None)
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), rtol, atol)
    for state, h, c in zip(last, last_h, last_c, strict=True):
        np.testing.assert_allclose(state.numpy(), np.stack([h.detach().numpy(), c.detach().numpy()]), rtol, atol)

    grad = inputs(B, T, H).astype(dtype)
    ((y * grad).sum() + (last[0] * last[0]).sum()).backward()
    ((expected * torch.from_numpy(grad)).sum() + (last_h[0] ** 2).sum() + (last_c[0] ** 2).sum()).backward()
    pairs = [(x, tx), *([(hidden, th), (cell, tc)] if states_given else [])]
    pairs += [(getattr(own, name), getattr(theirs, f"{other}_l{i}")) for i, own in enumerate(ours)
              for name, other in (("weight_ih", "weight_ih"), ("weight_hh", "weight_hh"), ("bias", "bias_hh"))]
    for own, other in pairs:
        np.testing.assert_allclose(own.grad, other.grad.numpy(), rtol, atol * max(1, np.abs(own.grad).max()))


# ---- Weight drop ---------------------------------------------------------------------------------------------------

def weights_used(own, tokens=1):
    """(H, H) booleans: which recurrent weights of the gate g a call with weight drop used. The others have no gradient."""
    H = own.weight_hh.shape[1]
    own.weight_hh.grad = None
    x, hidden = mt.Tensor(inputs(H, tokens, own.weight_ih.shape[1])), np.eye(H, dtype=np.float32)   # each row shows a column
    own(x, hidden, weight_dropout=DROPPED)[1].sum().backward()
    return own.weight_hh.grad[2 * H : 3 * H] != 0


def test_the_share_dropped_is_p_within_what_chance_allows():
    """Of 300 x 300 weights: five deviations sqrt(p (1 - p) / n) are 0.0076."""
    dropped = 1 - weights_used(layer(1, 300)).mean()
    assert abs(dropped - DROPPED) < 5 * np.sqrt(DROPPED * (1 - DROPPED) / 300**2)


def test_what_stays_is_scaled_by_one_over_one_minus_p():
    own, x, hidden = layer(), mt.Tensor(inputs(2, 6, 3)), inputs(2, 4)
    mt.seed(4)
    got = own(x, hidden, weight_dropout=DROPPED).numpy()
    mt.seed(4)
    factors = mt.ops.dropout(mt.Tensor(np.ones((16, 4), np.float32)), DROPPED).data
    np.testing.assert_allclose(np.unique(factors), [0, 1 / (1 - DROPPED)], 1e-6)
    own.weight_hh.data = own.weight_hh.data * factors
    np.testing.assert_allclose(own(x, hidden).numpy(), got, 1e-6)


def test_all_tokens_of_a_call_share_one_mask():
    """With a mask a token, nearly every weight would be used at one of six."""
    masks = []
    for tokens in (1, 6):
        mt.seed(2)
        masks.append(weights_used(layer(1, 40, seed=2), tokens))
    np.testing.assert_array_equal(*masks)
    assert 0.5 < masks[0].mean() < 0.9


def test_each_call_draws_a_new_mask_and_a_seed_repeats_it():
    own, x = layer(), mt.Tensor(inputs(2, 5, 3))
    mt.seed(1)
    first, second = (own(x, weight_dropout=0.5).numpy() for _ in range(2))
    mt.seed(1)
    np.testing.assert_array_equal(own(x, weight_dropout=0.5).numpy(), first)
    assert not np.array_equal(first, second)
    own.eval()
    np.testing.assert_array_equal(own(x, weight_dropout=0.5).numpy(), own(x).numpy())


# ---- Where documents begin -----------------------------------------------------------------------------------------

def test_a_document_that_begins_inside_a_row_is_read_as_if_alone():
    own = layer()
    x, starts = inputs(2, 9, 3, dtype=np.float64), np.zeros((2, 9), bool)
    for p in own.parameters():
        p.data = p.data.astype(np.float64)
    starts[0, 4] = starts[1, 7] = True
    hidden, cell = np.ones((2, 4)), np.ones((2, 4))
    got = own(mt.Tensor(x), hidden, cell, starts).numpy()
    for row, start in ((0, 4), (1, 7)):
        np.testing.assert_allclose(got[:, row, start:], own(mt.Tensor(x[row : row + 1, start:])).numpy()[:, 0], 1e-12)
        before = own(mt.Tensor(x[row : row + 1, :start]), hidden[:1], cell[:1]).numpy()[:, 0]
        np.testing.assert_allclose(got[:, row, :start], before, 1e-12)


def test_a_state_goes_on_where_the_last_tokens_ended():
    own, x, state = layer(), inputs(3, 8, 3), nn.LSTMState()
    assert state.before(own) == (None, None)
    pieces = []
    for part in (slice(0, 5), slice(5, 6), slice(6, 8)):
        states = own(mt.Tensor(x[:, part]), *state.before(own))
        state.advance(own, states)
        pieces.append(states.numpy())
    np.testing.assert_allclose(np.concatenate(pieces, 2), own(mt.Tensor(x)).numpy(), 1e-6, 1e-7)
    state.keep(np.array([True, False, True]))
    assert [a.shape for a in state.before(own)] == [(2, 4), (2, 4)]


# ---- What cannot be read -------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("change", "message"), [
    (dict(x=np.ones((2, 3))), "expected x .B, T, I. and weight_ih .4 H, I., got .2, 3. and .16, 3.. Does x lack its batch"),
    (dict(x=np.ones((2, 5, 4))), "got .2, 5, 4. and .16, 3."),
    (dict(hidden=np.ones((2, 3))), "hidden must be .2, 4. for x .2, 5, 3. and weight_ih .16, 3., got .2, 3."),
    (dict(cell=np.ones((1, 4))), "cell must be .2, 4."),
    (dict(hidden=np.ones(4)), "hidden must be .2, 4. .* got .4,."),
    (dict(starts=np.zeros((5, 2), bool)), "starts must be .2, 5."),
    (dict(starts=np.zeros((2, 5), int)), "starts must be booleans, got int64. Is it positions == 0?"),
])
def test_shapes_that_do_not_fit_are_told(change, message):
    given = dict(x=np.ones((2, 5, 3)), hidden=np.ones((2, 4)), cell=np.ones((2, 4)), starts=None) | change
    with pytest.raises(ValueError, match=f"lstm: .*{message}"):
        layer()(mt.Tensor(given["x"]), *(given[name] for name in ("hidden", "cell", "starts")))


@pytest.mark.parametrize("name", ["weight_hh", "bias", "hidden", "cell"])
def test_the_operation_says_which_array_is_missing(name):
    given = {"x": np.ones((2, 5, 3)), "weight_ih": np.ones((16, 3)), "weight_hh": np.ones((16, 4)), "bias": np.ones(16),
             "hidden": np.ones((2, 4)), "cell": np.ones((2, 4))}
    shape = given[name].shape
    tensors = {key: None if key == name else mt.Tensor(a) for key, a in given.items()}
    with pytest.raises(ValueError, match=rf"lstm: {name} must be .* got None. For zeros .*{re.escape(str(shape))}, x.dtype"):
        mt.ops.lstm(**tensors)


@pytest.mark.parametrize("sizes, message", [((2, 0), "LSTM: hidden must be an int of at least 1, got 0"),
                                            ((0, 2), "LSTM: inputs must be an int of at least 1, got 0"),
                                            ((2, 2.5), "LSTM: hidden must be an int of at least 1, got 2.5")])
def test_a_layer_without_units_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        nn.LSTM(*sizes)


def test_states_that_are_arrays_are_taken_in_the_dtype_of_x():
    own, x = layer(), mt.Tensor(inputs(2, 5, 3))
    got = own(x, np.zeros((2, 4)), np.zeros((2, 4), int))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.numpy(), own(x).numpy())
