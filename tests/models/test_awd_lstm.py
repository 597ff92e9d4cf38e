"""AWD-LSTM: its dropouts, its two regularisers, the contract of intervals, generation from a carried state."""

from dataclasses import replace
from math import log

import numpy as np
import pytest

import minitune as mt
from minitune import models
from minitune.data import Batch

DROPOUTS = ("weight_dropout", "embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout")
OFF = dict.fromkeys([*DROPOUTS, "activation_regularization", "temporal_activation_regularization"], 0.0)
SIZES = dict(vocab_size=20, block_size=8, n_embd=6, n_hidden=10, n_layer=3)
DOCUMENTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3]]
RTOL, ATOL = 1e-10, 1e-12           # float64: the same numbers added in another order


def awd_lstm(**settings):
    mt.seed(0)
    return models.AWDLSTM(models.AWDLSTMConfig(**SIZES | OFF | settings))


def in_float64(model):
    """Weights large enough that every path matters."""
    draw = np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.3 * draw.standard_normal(parameter.shape)
    return model


# ---- Parts and shapes ----------------------------------------------------------------------------------------------

def test_the_layers_go_from_the_embedding_over_hidden_units_back_to_its_channels():
    """4 H (I + H + 1) a layer, V C for the embedding that is the output too, V for the output's bias."""
    C, H = 6, 10
    parameters = 20 * C + 20 + 4 * H * (C + H + 1) + 4 * H * (H + H + 1) + 4 * C * (H + C + 1)
    assert awd_lstm().num_parameters() == parameters
    assert awd_lstm(n_layer=1).num_parameters() == 20 * C + 20 + 4 * C * (C + C + 1)
    with mt.nn.shapes_only():
        paper = models.AWDLSTM(models.AWDLSTMConfig(33_278, n_hidden=1150))
    assert 33e6 < paper.num_parameters() < 34e6         # "33M" in table 2 of the paper


def test_shapes_of_logits_features_counts_and_measures():
    model, batch = awd_lstm(activation_regularization=2.0, temporal_activation_regularization=1.0), Batch.causal([DOCUMENTS])
    assert model(batch).shape == (1, 10, 20) and model.features(batch).shape == (1, 10, 6)
    terms = model.loss(batch)
    assert {name: (count, weight) for name, (_, count, weight) in terms.items()} == {
        "language_model": (7, 1.0), "activation": (60, 2.0), "temporal_activation": (42, 1.0)}
    assert model.counts(batch) == {name: count for name, (_, count, _) in terms.items()}
    assert model.measure(batch) == {"loss": (terms["language_model"][0].item(), 7)}
    assert list(awd_lstm().loss(batch)) == list(awd_lstm().counts(batch)) == ["language_model"]


def test_a_new_model_knows_nothing_yet():
    (loss, count, _), = awd_lstm().loss(Batch.of_ids(np.arange(16).reshape(2, 8))).values()
    assert abs(loss.item() / count - log(20)) < 0.05


def test_the_output_is_the_embedding_and_a_bias():
    model, batch = awd_lstm(), Batch.causal([DOCUMENTS])
    model.bias.data += np.arange(20, dtype=np.float32)
    expected = model.features(batch).numpy() @ model.token_embedding.weight.data.T + np.arange(20)
    np.testing.assert_allclose(model(batch).numpy(), expected, 1e-5, 1e-6)
    logp = expected.astype(float) - np.log(np.exp(expected.astype(float)).sum(-1, keepdims=True))
    loss = -sum(logp[b, t, batch.targets[b, t]] for b, t in zip(*np.nonzero(batch.targets != -100)))
    np.testing.assert_allclose(model.loss(batch)["language_model"][0].item(), loss, 1e-5)


def test_the_layer_groups_hold_every_parameter_once_from_input_to_output():
    model = awd_lstm()
    groups = model.layer_groups()
    assert [name for name, _ in groups] == ["embeddings", "layers.0", "layers.1", "layers.2"]
    held = [id(p) for _, modules in groups for module in modules for p in module.parameters()]
    assert len(held) == len(set(held)) and set(held) == {id(p) for p in model.parameters()}


def test_a_classifier_takes_the_layers_without_the_output_and_pools_as_ulmfit():
    model = awd_lstm()
    classifier = models.Classifier(model, ["a", "b"])
    assert classifier.pooling == "concat" and classifier.head.weight.shape == (2, 18) and classifier.head.bias is not None
    assert classifier.backbone.bias is None and model.bias is not None
    assert classifier(Batch.causal([[d] for d in DOCUMENTS], [0, 1, 0])).shape == (3, 2)


# ---- Dropout -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", DROPOUTS)
def test_each_dropout_acts_in_training_alone_and_comes_back_with_its_seed(name):
    model, batch = awd_lstm(**{name: 0.4}), Batch.causal([DOCUMENTS] * 3)
    mt.seed(1)
    first, second = model.features(batch).numpy(), model.features(batch).numpy()
    mt.seed(1)
    np.testing.assert_array_equal(model.features(batch).numpy(), first)
    assert not np.array_equal(first, second)
    with model.evaluating():
        np.testing.assert_array_equal(model.features(batch).numpy(), awd_lstm().features(batch).numpy())
    model.config = replace(model.config, **{name: 0.0})
    np.testing.assert_array_equal(model.features(batch).numpy(), awd_lstm().features(batch).numpy())


def test_a_row_drops_the_same_channels_at_all_its_tokens():
    plain, model = awd_lstm(), awd_lstm(output_dropout=0.5)
    batch = Batch.of_ids(np.random.default_rng(0).integers(0, 20, (50, 7)))
    factors = model.features(batch).numpy() / plain.features(batch).numpy()                 # (B, T, C)
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1], factors.shape), 1e-5)
    np.testing.assert_allclose(np.unique(factors[:, 0].round(3)), [0, 2])
    assert len(np.unique(factors[:, 0].round(), axis=0)) > 20                               # and others in other rows


def test_a_dropped_word_is_dropped_at_all_its_places():
    model = awd_lstm(embedding_dropout=0.5)
    ids = np.random.default_rng(0).integers(0, 20, (4, 30))
    factors = model._embedded(ids).numpy() / model.token_embedding(ids).numpy()             # (B, T, C)
    words = {word: set(factors[ids == word].round(5).ravel().tolist()) for word in range(20)}
    assert all(len(found) == 1 for found in words.values())
    assert {next(iter(found)) for found in words.values()} == {0, 2}


def test_a_training_goes_on_from_its_checkpoint_to_the_bit(tmp_path):
    """All masks come from counted random numbers, which the checkpoint holds."""
    def trainer(out, steps=4):
        model = awd_lstm(**dict.fromkeys(DROPOUTS, 0.3), activation_regularization=2.0)
        data = mt.data.LanguageModelSet([np.arange(200) % 17], 8)
        return mt.train.Trainer(model, data, steps=steps, lr=0.01, batch_size=4, out=out, checkpoint_every=2, progress=False)

    class Stop(mt.train.Callback):
        def on_step_begin(self, trainer):
            if trainer.step == 3:
                raise KeyboardInterrupt

    whole, cut, rest = trainer(None), trainer(tmp_path), trainer(tmp_path)
    mt.seed(5)
    whole.fit()
    cut.callbacks.append(Stop())
    mt.seed(5)
    with pytest.raises(KeyboardInterrupt):
        cut.fit()
    mt.seed(6)
    rest.fit(resume=True)
    for name, array in whole.model.state_dict().items():
        np.testing.assert_array_equal(rest.model.state_dict()[name], array, err_msg=name)


# ---- The regularisers ----------------------------------------------------------------------------------------------

def test_the_regularisers_are_mean_squares_of_features_and_of_their_changes_inside_documents():
    model = awd_lstm(activation_regularization=2.0, temporal_activation_regularization=1.0)
    batch = Batch.causal([DOCUMENTS[:2], DOCUMENTS[2:]], side="left")
    terms, x = model.loss(batch), model.features(batch).numpy()
    documents = [x[0, :5], x[0, 5:8], x[1, 6:]]
    assert [len(d) for d in documents] == [5, 3, 2]
    for name, parts in (("activation", documents), ("temporal_activation", [np.diff(d, axis=0) for d in documents])):
        total, count, _ = terms[name]
        np.testing.assert_allclose(total.item(), sum((part**2).sum() for part in parts), 1e-5)
        assert count == sum(part.size for part in parts)


def test_the_temporal_regulariser_looks_before_the_dropout_and_the_other_after():
    settings = dict(activation_regularization=2.0, temporal_activation_regularization=1.0)
    plain, model, batch = awd_lstm(**settings), awd_lstm(**settings, output_dropout=0.5), Batch.causal([DOCUMENTS])
    one, other = plain.loss(batch), model.loss(batch)
    assert one["temporal_activation"][0].item() == other["temporal_activation"][0].item()
    assert one["activation"][0].item() != other["activation"][0].item()


# ---- Intervals -----------------------------------------------------------------------------------------------------

def losses_and_gradients(model, batches):
    """The sum of every term over all batches, their counts, and the gradients of all together."""
    model.zero_grad()
    sums, counts = {}, {}
    for batch in batches:
        terms = model.loss(batch)
        first, *rest = (loss for loss, _, _ in terms.values())
        sum(rest, start=first).backward()
        for name, (loss, count, _) in terms.items():
            sums[name], counts[name] = sums.get(name, 0) + loss.item(), counts.get(name, 0) + count
    return sums, counts, {name: p.grad.copy() for name, p in model.named_parameters()}


LAYOUTS = {
    "padded on the right": lambda: [Batch.causal([[d] for d in DOCUMENTS])],
    "padded on the left": lambda: [Batch.causal([[d] for d in DOCUMENTS], side="left", pad=7)],
    "two documents packed in a row": lambda: [Batch.causal([DOCUMENTS[:2], DOCUMENTS[2:]])],
    "packed, and padded on the left": lambda: [Batch.causal([DOCUMENTS[:2], DOCUMENTS[2:]], side="left")],
    "packed the other way round": lambda: [Batch.causal([DOCUMENTS[::-1]])],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_gradients_do_not_depend_on_the_layout(layout):
    model = in_float64(awd_lstm(activation_regularization=2.0, temporal_activation_regularization=1.0))
    got = losses_and_gradients(model, LAYOUTS[layout]())
    expected = losses_and_gradients(model, [Batch.causal([[d]]) for d in DOCUMENTS])
    assert got[1] == expected[1]
    for mine, theirs in ((got[0], expected[0]), (got[2], expected[2])):
        for name in theirs:
            np.testing.assert_allclose(mine[name], theirs[name], RTOL, ATOL, err_msg=name)


def test_tokens_see_neither_padding_nor_later_tokens_nor_another_document():
    """Change one id: the features that change are those of this document, from there on."""
    model = in_float64(awd_lstm())
    batch = Batch.causal([DOCUMENTS[:2], DOCUMENTS[2:]], side="left")
    before = model.features(batch).numpy()
    for b, t in np.ndindex(batch.ids.shape):
        changed = Batch.causal([DOCUMENTS[:2], DOCUMENTS[2:]], side="left")
        changed.ids[b, t] = 10
        moved = (model.features(changed).numpy() != before).any(-1)
        sees = (changed.first <= t) & (t <= changed.last) & (np.arange(2) == b)[:, None]
        np.testing.assert_array_equal(moved & changed.valid, sees, err_msg=f"{b}, {t}")


def test_rows_may_be_longer_than_block_size():
    assert awd_lstm()(np.zeros((1, 30), int)).shape == (1, 30, 20)


def test_recomputed_layers_have_the_same_gradients_to_the_bit():
    gradients = []
    for recompute in (False, True):
        model = awd_lstm(**dict.fromkeys(DROPOUTS, 0.3))
        model.recompute = recompute
        gradients.append(losses_and_gradients(model, LAYOUTS["padded on the left"]())[2])
    for name, gradient in gradients[0].items():
        np.testing.assert_array_equal(gradients[1][name], gradient, err_msg=name)


# ---- Generation ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("temperature", [0, 1.0])
def test_generation_from_the_carried_state_is_that_of_reading_everything_anew(temperature):
    """In training mode too, and past block_size; a row that ends early leaves the state."""
    model, prompts = in_float64(awd_lstm(**dict.fromkeys(DROPOUTS, 0.3))), [[3, 1, 4, 1, 5], [9, 2], [6]]
    written = []
    for cache in (True, False):
        mt.seed(3)
        written.append(model.generate_ids(prompts, 12, temperature=temperature, end=7, cache=cache))
    assert written[0] == written[1] and model.training
    alone = [model.generate_ids([prompt], 12, temperature=0, end=7)[0] for prompt in prompts]
    assert temperature or written[0] == alone


def test_a_model_learns_to_go_on():
    """0 1 2 3 4 over and over, in rows that begin anywhere: the next number is what follows."""
    model = awd_lstm(n_layer=2, n_hidden=16, n_embd=12)
    data = mt.data.LanguageModelSet([np.arange(400) % 5], 13)
    mt.train.Trainer(model, data, steps=200, lr=0.02, batch_size=4, progress=False).fit()
    assert model.generate_ids([[3]], 7, temperature=0) == [[4, 0, 1, 2, 3, 4, 0]]


# ---- Folders and settings ------------------------------------------------------------------------------------------

def test_a_folder_holds_the_config_and_the_weights_under_their_own_names():
    model = awd_lstm(hidden_dropout=0.1)
    config, tensors = model.to_hugging_face()
    assert config.pop("model_type") == "minitune_awd_lstm" and config.pop("architectures")
    assert models.AWDLSTMConfig(**config) == model.config
    assert list(tensors) == list(model.state_dict())


@pytest.mark.parametrize("make", [awd_lstm, lambda: models.Classifier(awd_lstm(), ["a", "b"])], ids=["backbone", "classifier"])
def test_a_saved_model_comes_back_as_it_was(tmp_path, make):
    model, ids = make(), np.array([[3, 1, 4], [1, 5, 9]])
    model.save_pretrained(tmp_path)
    back = models.from_pretrained(tmp_path)
    assert type(back) is type(model) and list(back.state_dict()) == list(model.state_dict())
    np.testing.assert_array_equal(back(ids).numpy(), model(ids).numpy())


@pytest.mark.parametrize("name", ["vocab_size", "block_size", "n_embd", "n_hidden", "n_layer"])
@pytest.mark.parametrize("value", [0, 1.5, "4"])
def test_a_size_that_is_no_positive_integer_is_told(name, value):
    with pytest.raises(ValueError, match=f"AWDLSTMConfig: {name} must be a positive integer, got {value!r}"):
        models.AWDLSTMConfig(**SIZES | {name: value})


@pytest.mark.parametrize("name", DROPOUTS)
@pytest.mark.parametrize("value", [-0.1, 1, 50])
def test_a_dropout_that_is_no_probability_is_told(name, value):
    with pytest.raises(ValueError, match=rf"AWDLSTMConfig: {name} must be in \[0, 1\), got"):
        models.AWDLSTMConfig(**SIZES | {name: value})


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "2"])
def test_a_penalty_below_0_is_told(value):
    with pytest.raises(ValueError, match=f"AWDLSTMConfig: activation_regularization must be 0 or more, got {value!r}"):
        models.AWDLSTMConfig(**SIZES, activation_regularization=value)


def test_an_id_outside_the_vocabulary_is_told():
    with pytest.raises(IndexError, match="ids must lie in 0 .. 19, got 20"):
        awd_lstm()(np.array([[1, 20]]))
    with pytest.raises(ValueError, match="AWDLSTM: token ids must be 0 .. 19, the set holds 20"):
        awd_lstm().check(mt.data.LanguageModelSet([[1, 20]], 2))
