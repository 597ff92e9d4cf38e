"""GPT: its parts, its shapes, and clear words for input that it cannot read."""

from math import log

import numpy as np
import pytest

import minitune as mt
from minitune import models
from minitune.data import Batch

SIZES = dict(vocab_size=20, block_size=8, n_layer=2, n_head=2, n_embd=6)


def gpt(**sizes):
    return models.GPT(models.GPTConfig(**SIZES | sizes))


def test_the_count_of_parameters_is_gpt2s():
    """Per block 12 C^2 + 13 C, for both embeddings (V + T) C, for the last norm 2 C; the head is the embedding."""
    assert gpt().num_parameters() == 28 * 6 + 2 * (12 * 36 + 13 * 6) + 2 * 6
    with mt.nn.shapes_only():
        assert gpt(vocab_size=50_257, block_size=1024, n_layer=12, n_head=12, n_embd=768).num_parameters() == 124_439_808


def test_shapes_of_logits_features_and_measures():
    model, ids = gpt(), np.array([[3, 1, 4], [1, 5, 9]])
    assert model(ids).shape == (2, 3, 20) and model(Batch.of_ids(ids)).shape == (2, 3, 20)
    assert model.features(Batch.of_ids(ids)).shape == (2, 3, 6)
    (loss, count, weight), = model.loss(Batch.of_ids(ids)).values()
    assert (loss.shape, count, weight) == ((), 4, 1.0)
    assert model.counts(Batch.of_ids(ids)) == {"language_model": 4}
    assert model.measure(Batch.of_ids(ids)) == {"loss": (loss.item(), 4)}
    assert model(ids).dtype == np.float32
    assert repr(model) == f"GPT({model.config}, 1,200 parameters)"


def test_a_new_model_knows_nothing_yet():
    """Small first weights give every token about the same probability: a loss of log V."""
    model = gpt()
    (loss, count, _), = model.loss(Batch.of_ids(np.arange(16).reshape(2, 8))).values()
    assert abs(loss.item() / count - log(20)) < 0.05


def test_the_loss_is_the_cross_entropy_of_the_logits():
    model, batch = gpt(), Batch.causal([[[3, 1, 4, 1]], [[5, 9]]])
    logits = model(batch).numpy().astype(float)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -sum(logp[b, t, batch.targets[b, t]] for b, t in zip(*np.nonzero(batch.targets != -100)))
    np.testing.assert_allclose(model.loss(batch)["language_model"][0].item(), expected, rtol=1e-6)


def test_a_seed_makes_the_model():
    def state(seed):
        mt.seed(seed)
        return gpt().state_dict()

    one, same, other = state(1), state(1), state(2)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["token_embedding.weight"], other["token_embedding.weight"])


def test_dropout_acts_in_training_and_comes_back_with_its_counter():
    model, ids = gpt(dropout=0.3), np.array([[3, 1, 4]])
    mt.seed(1)
    first, second = model(ids).numpy(), model(ids).numpy()
    mt.seed(1)
    np.testing.assert_array_equal(model(ids).numpy(), first)
    assert not np.array_equal(first, second)
    model.eval()
    np.testing.assert_array_equal(model(ids).numpy(), model(ids).numpy())


def test_the_layer_groups_hold_every_parameter_once_from_input_to_output():
    model = gpt()
    groups = model.layer_groups()
    assert [name for name, _ in groups] == ["embeddings", "blocks.0", "blocks.1"]
    held = [id(p) for _, modules in groups for module in modules for p in module.parameters()]
    assert len(held) == len(set(held)) and set(held) == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("call", ["__call__", "loss"])
def test_too_long_a_row_is_told_with_the_repair(call):
    batch = Batch.of_ids(np.zeros((1, 9), int))
    with pytest.raises(ValueError, match="GPT: this model reads at most block_size = 8 tokens a row, got 9. Cut the texts"):
        getattr(gpt(), call)(batch)


@pytest.mark.parametrize("ids", [np.zeros((1, 3)), [1, 2, 3], 5, np.zeros((1, 2, 3), int), [["a"]]])
def test_ids_that_are_no_integers_of_two_axes_are_told(ids):
    with pytest.raises(ValueError, match=r"expected integer ids \(B, T\), got .* For one text write ids\[None\]"):
        gpt()(ids)


@pytest.mark.parametrize("bad", [20, -1])
def test_an_id_outside_the_vocabulary_is_told(bad):
    with pytest.raises((ValueError, IndexError), match="20|19"):
        gpt()(np.array([[1, bad]]))


@pytest.mark.parametrize("name", ["vocab_size", "block_size", "n_layer", "n_head", "n_embd"])
@pytest.mark.parametrize("value", [0, -2, 1.5, "4", None])
def test_a_size_that_is_no_positive_integer_is_told(name, value):
    with pytest.raises(ValueError, match=f"GPTConfig: {name} must be a positive integer, got {value!r}"):
        models.GPTConfig(**SIZES | {name: value})


@pytest.mark.parametrize("dropout", [-0.1, 1, 50, float("nan")])
def test_a_dropout_that_is_no_probability_is_told(dropout):
    with pytest.raises(ValueError, match=r"GPTConfig: dropout must be in \[0, 1\), got"):
        models.GPTConfig(**SIZES, dropout=dropout)


def test_heads_that_do_not_divide_the_channels_are_told():
    with pytest.raises(ValueError, match="GPTConfig: n_head must divide n_embd, got 4 and 6"):
        gpt(n_head=4)
