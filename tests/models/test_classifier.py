"""Classifier: poolings against plain NumPy, row by row, and errors for labels and poolings that make no classifier."""

import numpy as np
import pytest

import minitune as mt
from minitune import models
from minitune.data import Batch, ClassificationSet, LanguageModelSet
from minitune.models.head import POOLINGS
from minitune.tensor import Tensor

ROWS, LABELS = [[3, 1, 4, 1, 5], [9, 2, 6], [5]], [2, 0, 1]

EXPLICIT = {                                    # tokens (T of this row, C) -> the pooled row
    "first": lambda tokens: tokens[0],
    "last": lambda tokens: tokens[-1],
    "mean": lambda tokens: tokens.mean(0),
    "max": lambda tokens: tokens.max(0),
    "concat": lambda tokens: np.concatenate([tokens[-1], tokens.mean(0), tokens.max(0)]),
}


def classifier(pooling="last", labels=("a", "b", "c")):
    return models.Classifier(models.GPT(models.GPTConfig(20, 8, 1, 2, 6)), labels, pooling)


def test_every_pooling_is_compared():
    assert EXPLICIT.keys() == POOLINGS.keys()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_pooling_is_what_numpy_makes_of_each_row_alone(pooling, side):
    batch = Batch.causal([[row] for row in ROWS], LABELS, side=side)
    x = np.random.default_rng(0).standard_normal((*batch.ids.shape, 4)) - 5         # all negative: a padding 0 would win
    pooled = POOLINGS[pooling](Tensor(x), batch.valid).numpy()
    expected = np.stack([EXPLICIT[pooling](tokens[valid]) for tokens, valid in zip(x, batch.valid)])
    assert pooled.dtype == np.float64 and pooled.shape == (3, 12 if pooling == "concat" else 4)
    np.testing.assert_allclose(pooled, expected, rtol=1e-14)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_of_a_pooling_are_right_and_none_reaches_padding(pooling, side):
    valid = Batch.causal([[row] for row in ROWS], LABELS, side=side).valid
    x = np.random.default_rng(0).standard_normal((*valid.shape, 2))
    mt.gradcheck(lambda x: POOLINGS[pooling](x, valid), x)
    leaf = Tensor(x, requires_grad=True)
    POOLINGS[pooling](leaf, valid).sum().backward()
    assert not leaf.grad[~valid].any() and leaf.grad[valid].any()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_logits_loss_and_measures(pooling):
    model, batch = classifier(pooling), Batch.causal([[row] for row in ROWS], LABELS)
    x = model.features(batch).numpy()
    pooled = np.stack([EXPLICIT[pooling](tokens[valid]) for tokens, valid in zip(x, batch.valid)])
    logits = pooled @ model.head.weight.data.T
    np.testing.assert_allclose(model(batch).numpy(), logits, rtol=1e-5, atol=1e-6)
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    (loss, count, weight), = model.loss(batch).values()
    np.testing.assert_allclose(loss.item(), -logp[np.arange(3), LABELS].sum(), rtol=1e-5)
    assert (count, weight, model.counts(batch)) == (3, 1.0, {"classification": 3})
    measured = model.measure(batch)
    assert measured["loss"] == (loss.item(), 3) and measured["error"] == ((logits.argmax(1) != LABELS).sum(), 3)


def test_a_row_without_a_label_counts_nothing():
    model = classifier()
    batch, labelled = (Batch.causal([[row] for row in rows], labels) for rows, labels in
                       [(ROWS, [2, -100, 1]), ([ROWS[0], ROWS[2]], [2, 1])])
    assert model.counts(batch) == {"classification": 2}
    np.testing.assert_allclose(model.loss(batch)["classification"][0].item(), model.loss(labelled)["classification"][0].item(),
                               rtol=1e-6)
    assert model.measure(batch)["error"] == model.measure(labelled)["error"]


def test_a_new_head_fits_the_pooling_and_the_labels():
    assert classifier().head.weight.shape == (3, 6) and classifier("concat").head.weight.shape == (3, 18)
    model = classifier(labels=range(4))
    assert model.labels == ("0", "1", "2", "3") and model.head.weight.shape == (4, 6)
    assert model.head.bias is None              # Hugging Face's head has none: a bias of ours would be lost there
    assert [name for name, _ in model.layer_groups()] == ["embeddings", "blocks.0", "head"]
    assert repr(model).startswith("Classifier(GPT(GPTConfig(") and "pooling='last'" in repr(model)


@pytest.mark.parametrize("pooling", ["mean", "max", "concat"])
def test_a_row_that_is_all_padding_is_pooled_to_numbers(pooling):
    valid = np.array([[True, False], [False, False]])
    pooled = POOLINGS[pooling](Tensor(np.ones((2, 2, 4), np.float32)), valid).numpy()
    assert np.isfinite(pooled).all() and np.abs(pooled).max() == 1
    assert pooling != "mean" or not pooled[1].any()


@pytest.mark.parametrize("labels", [3, "no yes", None])
def test_labels_that_are_no_list_are_told(labels):
    with pytest.raises(TypeError, match=r"Classifier: labels must be a list of names, such as \['no', 'yes'\], or range\(3\)"):
        classifier(labels=labels)


@pytest.mark.parametrize("labels", [[], ["one"], ["yes", "no", "yes"]])
def test_labels_that_make_no_choice_are_told(labels):
    with pytest.raises(ValueError, match="Classifier: expected at least two different labels, got"):
        classifier(labels=labels)


@pytest.mark.parametrize("pooling", ["firstly", "cls"])
def test_an_unknown_pooling_is_told_with_those_that_are_known(pooling):
    with pytest.raises(ValueError, match=f"Classifier: pooling must be one of first, last, mean, max, concat, got {pooling!r}"):
        classifier(pooling)


def test_labels_that_become_one_as_text_are_told():
    with pytest.raises(ValueError, match="two different labels"):
        classifier(labels=[1, "1"])


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_outside_the_classes_is_told(label):
    with pytest.raises(ValueError, match=r"cross_entropy: targets|2"):
        classifier().loss(Batch.causal([[[1, 2]]], [label]))


def test_a_set_with_labels_or_tokens_that_the_model_has_not_is_told_before_training():
    model = models.Classifier(models.GPT(models.GPTConfig(20, 8, 1, 2, 16)), ["no", "yes"])
    model.check(ClassificationSet([[1, 2], [19]], [0, 1], 8))
    with pytest.raises(ValueError, match=r"labels must be 0 \.\. 1 for no, yes, got 2 at row 1 \(1 such rows\)"):
        model.check(ClassificationSet([[1, 2], [3]], [0, 2], 8))
    with pytest.raises(ValueError, match=r"token ids must be 0 \.\. 19, the set holds 20\. Was it made with another tokenizer"):
        model.check(ClassificationSet([[1, 20], [3]], [0, 1], 8))
    with pytest.raises(ValueError, match="the set holds 20"):
        model.backbone.check(LanguageModelSet([[1, 2, 20, 4, 5, 6, 7, 8]], 4))
