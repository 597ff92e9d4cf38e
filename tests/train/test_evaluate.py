"""evaluate and predict: sums over the whole set, whatever the batches, and a model that is left as it was found."""

from math import exp

import numpy as np
import pytest

from minitune import models
from minitune.backend import random
from minitune.data import Batch
from minitune.data.batch import ClassificationSet, LanguageModelSet
from minitune.train import History, evaluate, predict

DRAW = np.random.default_rng(0)
DOCUMENTS = [DRAW.integers(0, 20, length) for length in (5, 1, 8, 3, 3, 7, 2, 8, 4, 6, 1)]
LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]


def classifier(dropout=0.0, pooling="mean"):
    model = models.Classifier(models.GPT(models.GPTConfig(20, 8, 1, 2, 6, dropout)), ["a", "b", "c"], pooling)
    model.head.weight.data *= 100               # so that the classes differ
    return model


def labelled():
    return ClassificationSet(DOCUMENTS, LABELS, block_size=8)


def one_by_one(model):
    """(loss, error, classes) from one text at a time, without padding."""
    model.eval()
    logits = np.concatenate([model(document[None]).numpy() for document in DOCUMENTS]).astype(float)
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    classes = logits.argmax(1)
    return -logp[np.arange(len(LABELS)), LABELS].mean(), (classes != LABELS).mean(), classes


@pytest.mark.parametrize("batch_size", [1, 2, 4, 11, 100])
def test_a_classifier_is_measured_the_same_whatever_the_batches(batch_size):
    model = classifier()
    loss, error, classes = one_by_one(model)
    measured = evaluate(model, labelled(), batch_size)
    assert measured.keys() == {"loss", "error"} and measured["error"] == error
    np.testing.assert_allclose(measured["loss"], loss, rtol=1e-5)
    np.testing.assert_array_equal(predict(model, labelled(), batch_size), classes)
    assert len(set(classes)) > 1


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_language_model_is_measured_per_token(batch_size):
    model, data = classifier().backbone, LanguageModelSet(DOCUMENTS, block_size=6)
    whole = Batch(*(np.concatenate([getattr(data.batch(np.array([row])), name) for row in range(len(data))])
                    for name in ("ids", "positions", "first", "last", "targets")))
    (loss, count, _), = model.loss(whole).values()
    measured = evaluate(model, data, batch_size)
    np.testing.assert_allclose(measured["loss"], loss.item() / count, rtol=1e-6)
    assert measured["perplexity"] == exp(measured["loss"]) and measured.keys() == {"loss", "perplexity"}


def test_predictions_stand_in_the_order_of_the_rows():
    """Rows are read by length; a text's class must still stand in its own place."""
    model, order = classifier(), np.random.default_rng(1).permutation(len(DOCUMENTS))
    shuffled = labelled().subset(order)
    np.testing.assert_array_equal(predict(model, shuffled, 3), predict(model, labelled(), 4)[order])
    assert predict(model, shuffled).dtype.kind == "i"


def test_rows_of_like_length_are_read_together():
    seen = []

    class Watched(ClassificationSet):
        def batch(self, rows):
            seen.append([len(self.documents[i]) for i in rows])
            return super().batch(rows)

    evaluate(classifier(), Watched(DOCUMENTS, LABELS, 8), batch_size=3)
    assert sum(seen, []) == sorted(map(len, DOCUMENTS)) and [len(rows) for rows in seen] == [3, 3, 3, 2]


@pytest.mark.parametrize("call", [evaluate, predict])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was_found(call, training):
    model = classifier(dropout=0.5).train(training)
    counters = dict(random.counters)
    first = call(model, labelled())
    assert all(part.training == training for _, part in model.named_modules())
    assert dict(random.counters) == counters    # no random number was drawn: dropout was off
    second = call(model, labelled())
    assert first == second if call is evaluate else np.array_equal(first, second)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_parts_that_were_in_another_mode_stay_in_it():
    """A backbone put in evaluation by hand, so that its dropout rests while the head trains."""
    model = classifier(dropout=0.5)
    model.backbone.eval()
    modes = [part.training for _, part in model.named_modules()]
    evaluate(model, labelled())
    assert [part.training for _, part in model.named_modules()] == modes


def test_an_error_while_measuring_leaves_the_mode_too():
    model = classifier()
    with pytest.raises(ValueError, match="block_size"):
        evaluate(model, ClassificationSet([[1] * 9], [0], block_size=9))
    assert model.training and model(np.array([[1, 2]])).requires_grad


@pytest.mark.parametrize("data", [
    lambda: ClassificationSet([], [], 8), lambda: ClassificationSet([[1, 2]], [-100], 8),
    lambda: LanguageModelSet([[1], [2], [3], [4]], 4)], ids=["no rows", "no labels", "documents of one token"])
def test_a_set_with_nothing_to_predict_is_told(data):
    with pytest.raises(ValueError, match="evaluate: the set holds nothing to predict"):
        evaluate(classifier() if isinstance(data(), ClassificationSet) else classifier().backbone, data())


def test_rows_without_a_label_count_nothing():
    model = classifier()
    some = ClassificationSet(DOCUMENTS, [label if i % 2 else -100 for i, label in enumerate(LABELS)], 8)
    odd = labelled().subset(np.arange(1, len(LABELS), 2))
    a, b = evaluate(model, some, 3), evaluate(model, odd, 3)
    assert a["error"] == b["error"]
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-6)


def test_a_hopeless_models_perplexity_is_large_and_finite():
    model = classifier().backbone
    model.norm.bias.data[:] = 1e5
    assert np.isfinite(evaluate(model, LanguageModelSet(DOCUMENTS, 6))["perplexity"])


def test_a_history_is_columns_and_a_table(tmp_path):
    history = History()
    history.rows += [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.25, "valid_loss": 3.0}]
    assert (history["loss"], history["valid_loss"], history["absent"], len(history)) == ([2.5, 1.25], [3.0], [], 2)
    history.to_csv(tmp_path / "deep" / "history.csv")
    assert (tmp_path / "deep" / "history.csv").read_bytes() == b"step,loss,valid_loss\n1,2.5,\n2,1.25,3.0\n"
