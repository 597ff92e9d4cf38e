"""What evaluation reports agrees with scikit-learn and with sums done by hand."""

import json
import re

import numpy as np
import pytest

from minitune import models
from minitune.data.batch import ClassificationSet
from minitune.train.evaluate import evaluate, predict, predict_proba
from minitune.train.metrics import classification_metrics

NAMES = ["World", "Sport", "a class without rows", "never guessed", "neither"]


def drawn(rows=200):
    """Labels without classes 2 and 4, probabilities whose largest is never in classes 3 and 4."""
    draw = np.random.default_rng(0)
    labels = draw.choice([0, 1, 3], rows)
    probabilities = draw.dirichlet(np.ones(5), rows)
    probabilities[:, 3:] /= 100
    return labels, probabilities / probabilities.sum(1, keepdims=True)


def test_precision_recall_f1_and_confusion_agree_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics", reason="the oracle of these figures")
    labels, probabilities = drawn()
    metrics, predicted = classification_metrics(labels, probabilities, NAMES), probabilities.argmax(1)
    classes = {"labels": range(5), "zero_division": 0}
    precision, recall, f1, counts = sklearn.precision_recall_fscore_support(labels, predicted, **classes)
    np.testing.assert_array_equal(metrics.confusion, sklearn.confusion_matrix(labels, predicted, labels=range(5)))
    np.testing.assert_allclose([metrics.precision, metrics.recall, metrics.f1], [precision, recall, f1], rtol=1e-12)
    np.testing.assert_array_equal(metrics.counts, counts)
    assert metrics.macro_f1 == pytest.approx(sklearn.f1_score(labels, predicted, average="macro", **classes), rel=1e-12)
    assert metrics.micro_f1 == pytest.approx(sklearn.f1_score(labels, predicted, average="micro", **classes), rel=1e-12)
    assert metrics.accuracy == pytest.approx(sklearn.accuracy_score(labels, predicted), rel=1e-12)
    assert metrics.loss == pytest.approx(sklearn.log_loss(labels, probabilities, labels=range(5)), rel=1e-12)


def by_hand():
    """Confidences 0.9, 0.9 (one of them right), 0.7 (wrong), 0.55, 0.6 (right): bins (0.8, 0.9], (0.6, 0.7], (0.5, 0.6]."""
    confidences = np.array([0.9, 0.9, 0.7, 0.55, 0.6])
    return classification_metrics([0, 1, 1, 0, 0], np.stack([confidences, 1 - confidences], 1), ["a", "b"])


def test_the_calibration_error_is_that_done_by_hand():
    metrics = by_hand()
    filled = {round(part.high, 1): part[2:] for part in metrics.bins if part.rows}
    assert filled == {0.6: (2, pytest.approx(0.575), 1.0), 0.7: (1, pytest.approx(0.7), 0.0), 0.9: (2, pytest.approx(0.9), 0.5)}
    assert [(part.low, part.high) for part in metrics.bins] == [(i / 10, (i + 1) / 10) for i in range(10)]
    assert metrics.expected_calibration_error == pytest.approx((2 * 0.425 + 0.7 + 2 * 0.4) / 5)
    assert metrics.loss == pytest.approx(-np.log([0.9, 0.1, 0.3, 0.55, 0.6]).mean())


def test_who_is_always_sure_and_right_is_calibrated_and_a_certain_mistake_stays_finite():
    assert classification_metrics([0, 1], np.eye(2), ["a", "b"]).expected_calibration_error == 0
    wrong = classification_metrics([1, 0], np.eye(2), ["a", "b"])
    assert wrong.expected_calibration_error == 1 and 700 < wrong.loss < 709


def test_the_table_marks_classes_without_rows_and_classes_never_predicted():
    metrics = classification_metrics(*drawn(), NAMES)
    head, *lines = metrics.table().splitlines()
    notes = {name: line for name, line in zip([*NAMES, "macro average", "micro average"], lines)}
    assert all(line.startswith(name) for name, line in notes.items())
    assert notes["a class without rows"].endswith("  no rows") and notes["never guessed"].endswith("  never predicted")
    assert notes["neither"].endswith("no rows, never predicted") and re.search(r"\d$", notes["World"])
    assert notes["micro average"].endswith("equals the accuracy: one label a row")
    for line in (head, *lines[:2]):
        assert len(line) == len(head)
    assert f"accuracy {metrics.accuracy:.3f} (95 % interval" in lines[-2] and f"loss {metrics.loss:.3f} nats" in lines[-1]


def test_the_dictionary_is_plain_json_and_holds_every_figure():
    metrics = by_hand()
    plain = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert plain == metrics.to_dict()
    assert {name: plain[name] for name in ("accuracy", "loss", "macro_f1", "micro_f1", "expected_calibration_error")} == {
        name: getattr(metrics, name) for name in ("accuracy", "loss", "macro_f1", "micro_f1", "expected_calibration_error")}
    assert plain["classes"][1] == {"name": "b", "precision": 0, "recall": 0, "f1": 0, "count": 2}
    assert plain["confusion"] == [[3, 0], [2, 0]]
    assert plain["bins"][0] == {"low": 0, "high": 0.1, "rows": 0, "confidence": None, "accuracy": None}


def test_the_plot_shows_these_figures(tmp_path):
    pytest.importorskip("matplotlib", reason="plots are an extra")
    left, right = by_hand().plot(tmp_path / "plot.png").axes
    assert [text.get_text() for text in left.texts] == ["3", "0", "2", "0"]
    assert [bar.get_height() for bar in right.patches] == [1.0, 0.0, 0.5] and "0.470" in right.get_title()
    assert (tmp_path / "plot.png").exists()


@pytest.mark.parametrize("labels, probabilities, message", [
    ([], np.empty((0, 2)), "the set is empty"),
    ([0, 1], [0, 1], r"labels \(N,\) and probabilities \(N, K\) with K = 2 names, got \(2,\) and \(2,\).*Were classes"),
    ([0], [[0.2, 0.3, 0.5]], r"K = 2 names, got \(1,\) and \(1, 3\)"),
    ([[0]], [[0.5, 0.5]], r"got \(1, 1\) and \(1, 2\)"),
    ([0.0], [[0.5, 0.5]], "labels must be integers, got float64"),
    ([0, 2], [[0.5, 0.5]] * 2, "labels must be 0 .. 1, got 2 in row 1"),
    ([-100], [[0.5, 0.5]], "got -100 in row 0. Leave rows without a label out"),
    ([0, 0], [[0.5, 0.5], [1.5, -0.5]], r"at least 0 and add up to 1, got \[ 1.5 -0.5\] in row 1. Were logits given"),
    ([0], [[0.5, 0.502]], "add up to 1"), ([0], [[np.nan, 1.0]], "add up to 1")])
def test_what_cannot_be_measured_is_told(labels, probabilities, message):
    with pytest.raises(ValueError, match="classification_metrics: .*" + message):
        classification_metrics(labels, probabilities, ["a", "b"])


def test_probabilities_rounded_in_half_precision_are_taken():
    assert classification_metrics([0], [[0.5, 0.5009]], ["a", "b"]).accuracy == 0


def test_predicted_probabilities_are_the_softmax_of_each_row_in_its_place():
    draw = np.random.default_rng(1)
    documents = [draw.integers(0, 20, length) for length in (5, 1, 8, 3, 3, 7)]
    labels = [0, 1, 2, 0, 1, 2]
    model = models.Classifier(models.GPT(models.GPTConfig(20, 8, 1, 2, 6)), ["a", "b", "c"], "mean")
    model.head.weight.data *= 100               # so that the classes differ
    data = ClassificationSet(documents, labels, block_size=8)
    probabilities = predict_proba(model, data, batch_size=4)
    logits = np.concatenate([model.eval()(document[None]).numpy() for document in documents]).astype(float)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)      # float32 sums differ with the padding
    assert probabilities.dtype == np.float64 and abs(probabilities.sum(1) - 1).max() < 1e-15
    np.testing.assert_array_equal(predict(model, data), logits.argmax(1))
    metrics, measured = classification_metrics(labels, probabilities, model.labels), evaluate(model, data)
    assert metrics.accuracy == pytest.approx(1 - measured["error"])
    assert metrics.loss == pytest.approx(measured["loss"], rel=1e-5)


def test_an_empty_set_has_no_probabilities_and_no_predictions():
    model = models.Classifier(models.GPT(models.GPTConfig(20, 8, 1, 2, 6)), ["a", "b", "c"])
    nothing = ClassificationSet([], [], 8)
    assert predict_proba(model, nothing).shape == (0, 3) and predict(model, nothing).shape == (0,)


def test_logits_too_large_for_an_exponential_are_no_trouble():
    model = models.Classifier(models.GPT(models.GPTConfig(20, 8, 1, 2, 6)), ["a", "b"])
    model.head.weight.data[:] = np.sign(model.head.weight.data) * 1e5
    probabilities = predict_proba(model, ClassificationSet([[1, 2]], [0], 8))
    assert np.sort(probabilities).tolist() == [[0, 1]]


@pytest.mark.parametrize("right, rows, low, high", [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0),
                                                    (750, 1000, 0.7222, 0.7758)])
def test_the_accuracys_interval_is_wilsons(right, rows, low, high):
    """Against values worked out by hand from the formula, four digits."""
    sure = np.tile([0.9, 0.1], (rows, 1))
    metrics = classification_metrics((np.arange(rows) >= right).astype(int), sure, ["no", "yes"])
    np.testing.assert_allclose(metrics.accuracy_interval, (low, high), atol=5e-5)
