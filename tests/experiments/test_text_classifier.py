"""TextClassifier: scikit-learn's protocol without scikit-learn, labels of every kind, and errors that name the row."""

import pickle
import sys
from collections import Counter

import numpy as np
import pytest
from own_data import ship

from minitune.data import ClassificationSet
from minitune.experiments import TextClassifier, finetune
from minitune.models import Classifier, from_pretrained
from minitune.train import predict_proba

MODULE = sys.modules["minitune.experiments.text_classifier"]


class Series:
    """What a table's column is, to one that only reads it."""

    def __init__(self, values):
        self.values = values

    def __iter__(self):
        return iter(self.values)


def object_array(values):
    return np.array(values, object)


@pytest.fixture(scope="module")
def texts(toy):
    return toy.train.texts


@pytest.fixture(scope="module")
def words(toy):
    """The labels of the training texts by name: "sea" or "wood"."""
    return [toy.labels[i] for i in toy.train.labels]


@pytest.fixture(scope="module")
def new(backbone):
    """Makes a classifier on the tiny backbone that learns the toy in a moment."""
    return lambda **settings: TextClassifier(**{"base": backbone, "epochs": 6, "batch_size": 8} | settings)


@pytest.fixture(scope="module")
def fitted(new, texts, words):
    return new().fit(texts, words)


def test_it_learns_what_decides_the_label(fitted, toy):
    names = [toy.labels[i] for i in toy.test.labels]
    assert fitted.score(toy.test.texts, names) == 1.0 == np.mean(fitted.predict(toy.test.texts) == names)
    assert fitted.predict(["a wave, a shell, a boat", "moss on the bark of a tree"]).tolist() == ["sea", "wood"]


@pytest.mark.parametrize("labels", [["wood", "sea"], [7, -1], [True, False], [1.0, -2.0]], ids=repr)
@pytest.mark.parametrize("container", [list, np.asarray, object_array, Series])
def test_labels_come_back_as_they_were_given(labels, container, new, toy):
    given = [labels[i] for i in toy.train.labels]
    model = new(epochs=4).fit(container(toy.train.texts), container(given))
    assert model.classes_.tolist() == sorted(set(given))
    predicted = model.predict(container(toy.test.texts))
    assert predicted.tolist() == [labels[i] for i in toy.test.labels] and predicted.dtype == np.asarray(given).dtype
    assert model.score(toy.test.texts, Series(predicted)) == 1.0


def test_probabilities_sum_to_1_and_their_columns_follow_the_classes(fitted, new, texts, words, toy):
    probabilities = fitted.predict_proba(toy.test.texts)
    assert probabilities.shape == (30, 2) and (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-12)
    assert fitted.classes_[probabilities.argmax(1)].tolist() == fitted.predict(toy.test.texts).tolist()
    renamed = new().fit(texts, [{"sea": "z", "wood": "a"}[word] for word in words])         # the other one comes first now
    assert renamed.classes_.tolist() == ["a", "z"]
    assert (renamed.predict_proba(toy.test.texts).argmax(1) == 1 - probabilities.argmax(1)).all()


def test_a_text_is_classified_by_itself_whatever_stands_beside_it(fitted, toy):
    """Texts of one length make the same batch alone and together; the sums may differ in the last bits."""
    together = fitted.predict_proba(["sea", *toy.test.texts])
    np.testing.assert_allclose(fitted.predict_proba(["sea"]), together[:1], atol=1e-6)


@pytest.mark.parametrize("method", ["full", "lora", "frozen"])
def test_the_same_seed_gives_the_same_model_and_another_one_another(method, new, backbone, texts, words, toy):
    base = from_pretrained(backbone)
    model = new(base=base, method=method, epochs=2, valid=0)
    first = model.fit(texts, words).predict_proba(toy.test.texts)
    assert np.array_equal(model.fit(texts, words).predict_proba(toy.test.texts), first)     # the base has not moved
    assert not np.array_equal(model.set_params(seed=1).fit(texts, words).predict_proba(toy.test.texts), first)


def test_pickling_keeps_a_model(fitted, new, toy):
    copy = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(copy.predict_proba(toy.test.texts), fitted.predict_proba(toy.test.texts))
    assert copy.predict(toy.test.texts).tolist() == fitted.predict(toy.test.texts).tolist()
    assert copy.get_params() == fitted.get_params() and copy.notes_ == fitted.notes_
    assert pickle.loads(pickle.dumps(new(lr=0.5))).lr == 0.5


def test_a_saved_model_is_a_folder_with_the_names_of_the_classes(fitted, toy, tmp_path):
    fitted.save(tmp_path / "model")
    model = from_pretrained(tmp_path / "model")
    assert isinstance(model, Classifier) and model.labels == ("sea", "wood")
    rows = ClassificationSet.from_split(toy.test, model.tokenizer, model.backbone.config.block_size)
    assert np.array_equal(predict_proba(model, rows), fitted.predict_proba(toy.test.texts))


def test_the_share_held_out_chooses_the_epoch_where_it_is_enough(new, texts, words, monkeypatch):
    seen = []
    monkeypatch.setattr(MODULE, "ENOUGH", 10)
    monkeypatch.setattr("minitune.experiments.finetuning.ENOUGH", 10)
    monkeypatch.setattr(MODULE, "finetune", lambda data, *others, **more: seen.append(data) or finetune(data, *others, **more))
    with_valid, without = new(valid=0.25, epochs=2).fit(texts, words), new(valid=0, epochs=2).fit(texts, words)
    assert {name: len(split) for name, split in seen[0].splits.items()} == {"train": 30, "valid": 10}
    assert len(with_valid.history_["valid_error"]) == 2 and with_valid.notes_ == []
    assert not without.history_["valid_error"]
    assert without.notes_ == ["there is no validation split: the last weights are kept"]
    monkeypatch.setattr(MODULE, "ENOUGH", 11)   # one row too few: all are learned from
    new(valid=0.25, epochs=1).fit(texts, words)
    assert list(seen[-1].splits) == ["train"]


def test_a_saved_classifier_is_loaded_ready_to_predict(fitted, toy, backbone, tmp_path):
    fitted.save(tmp_path / "model")
    loaded = TextClassifier.load(tmp_path / "model")
    assert np.array_equal(loaded.predict_proba(toy.test.texts), fitted.predict_proba(toy.test.texts))
    assert loaded.predict(toy.test.texts).tolist() == fitted.predict(toy.test.texts).tolist()
    with pytest.raises(ValueError, match="holds a GPT and no classifier"):
        TextClassifier.load(backbone)


def test_a_quantity_is_no_class(new, texts):
    with pytest.raises(ValueError, match=r"labels name classes, got numbers such as 0\.25\. Is this a quantity"):
        new().fit(texts, np.arange(len(texts)) / 4)


def test_without_a_base_the_one_that_comes_with_the_package_is_taken(new, backbone, texts, words, tmp_path, monkeypatch):
    ship(backbone, tmp_path, monkeypatch)
    with_default = TextClassifier(epochs=1, batch_size=8).fit(texts, words)
    assert np.array_equal(with_default.predict_proba(texts), new(epochs=1).fit(texts, words).predict_proba(texts))


def test_settings_are_read_and_changed_by_name():
    model = TextClassifier(epochs=3)
    assert model.set_params(lr=0.1, pooling="last") is model and (model.lr, model.pooling) == (0.1, "last")
    assert model.get_params() == {"base": "minitune-base", "method": "full", "epochs": 3, "lr": 0.1, "batch_size": 16,
                                  "pooling": "last", "valid": 0.1, "seed": 0, "progress": False}
    assert repr(model) == "TextClassifier(epochs=3, lr=0.1, pooling='last')" and repr(TextClassifier()) == "TextClassifier()"
    with pytest.raises(ValueError, match=r"no settings \['depth', 'width'\]; there are base, method, epochs"):
        model.set_params(width=3, epochs=9, depth=4)
    assert model.epochs == 3


@pytest.mark.parametrize("X, y, message", [
    ("one text", [1], r"expected a list of texts, got one text. Write \[text\]"),
    (["a", "", "b"], [0, 1, 1], "row 1: expected a text that is not empty, got ''"),
    (["a", "b", " \n"], [0, 1, 1], r"row 2: expected a text that is not empty, got ' \\n'"),
    (["a", None], [0, 1], "row 1: expected a text that is not empty, got None"),
    (["a", 5], [0, 1], "row 1: expected a text that is not empty, got 5"),
    ([], [], "expected at least one text, got none"),
    (np.array([["a"], ["b"]]), [0, 1], r"expected a list of texts, got shape \(2, 1\). Give the column"),
    (["a", "b", "c"], [0, 1], "expected one label for each of 3 texts, got 2"),
    (["a", "b"], ["x", "x"], r"expected at least two classes in y, got only \['x'\]"),
    (["a", "b", "c"], ["x", "y", None], "row 2: expected a string or a number as label, got None"),
    (["a", "b", "c"], ["x", float("nan"), "y"], "row 1: expected a string or a number as label, got nan"),
    (["a", "b"], np.array([[0], [1]]), r"row 0: expected a string or a number as label, got array\(\[0\]\)"),
    (["a", "b"], np.array(["x", 1], object), "row 1: 1 and 'x' are not labels of one kind"),
])
def test_texts_and_labels_that_cannot_be_used_are_told_with_their_row(X, y, message):
    with pytest.raises(ValueError, match=f"TextClassifier: {message}"):
        TextClassifier().fit(X, y)


@pytest.mark.parametrize("settings, message", [
    ({"valid": 1.0}, "valid must be a share of the rows, from 0 to below 1, got 1.0"),
    ({"valid": -0.1}, "valid must be a share of the rows, from 0 to below 1, got -0.1"),
    ({"method": "ful"}, "method must be one of frozen, full, lora, got 'ful'"),
    ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"lr": 0.0}, "lr must be above 0, got 0.0. None takes the method's usual rate"),
    ({"pooling": "cls"}, "pooling must be one of first, last, mean, max, concat, got 'cls'"),
])
def test_settings_that_cannot_work_are_told(settings, message, new, texts, words):
    with pytest.raises(ValueError, match=message):
        new(**settings).fit(texts, words)


@pytest.mark.parametrize("call", [lambda model: model.predict(["a"]), lambda model: model.predict_proba(["a"]),
                                  lambda model: model.score(["a"], ["x"]), lambda model: model.save("nowhere")])
def test_what_needs_a_fit_says_so(call):
    with pytest.raises(ValueError, match=r"TextClassifier: not fitted yet. Call fit\(X, y\) first"):
        call(TextClassifier())


def test_a_fit_that_fails_leaves_the_model_that_was_there(new, texts, words, toy):
    model = new(epochs=2).fit(texts, words)
    before = model.predict_proba(toy.test.texts)
    with pytest.raises(ValueError):
        model.fit(texts, [3] * len(texts))
    assert model.classes_.tolist() == ["sea", "wood"] and np.array_equal(model.predict_proba(toy.test.texts), before)
    with pytest.raises(ValueError, match="row 1: expected a text"):
        model.predict(["a", ""])


def test_it_works_without_scikit_learn(new, texts, words, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"] + ["sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    model = new(epochs=2).fit(texts, words)
    assert model.predict(texts).shape == (40,) and model.get_params()["epochs"] == 2


# ---- with scikit-learn -------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def sklearn():
    return pytest.importorskip("sklearn", reason="the other half of this protocol; pip install minitune[demo]")


def test_scikit_learn_takes_it_for_a_classifier_and_clones_it(sklearn, fitted):
    from sklearn.base import clone, is_classifier, is_regressor
    from sklearn.utils.validation import check_is_fitted
    copy = clone(fitted)
    assert copy is not fitted and copy.get_params() == fitted.get_params() and not hasattr(copy, "model_")
    assert is_classifier(fitted) and not is_regressor(fitted)
    assert fitted._estimator_type == "classifier"           # what scikit-learn before 1.6 goes by
    check_is_fitted(fitted)
    with pytest.raises(ValueError, match="not fitted"):
        check_is_fitted(copy)


def test_its_tags_say_that_it_takes_texts_and_needs_labels(sklearn, fitted):
    utils = pytest.importorskip("sklearn.utils", reason="the other half of this protocol")
    if not hasattr(utils, "get_tags"):
        pytest.skip("scikit-learn has tags from 1.6 on")
    tags = utils.get_tags(fitted)
    assert tags.estimator_type == "classifier" and tags.target_tags.required
    assert tags.input_tags.string and not tags.input_tags.two_d_array


def test_cross_validation_stratifies(sklearn, new, texts, words, monkeypatch):
    """Rows sorted by label: folds that were cut without a look at the labels would train on one class, and raise."""
    from sklearn.model_selection import cross_val_score
    order = np.argsort(words, kind="stable")
    seen = []
    fit = TextClassifier.fit
    monkeypatch.setattr(TextClassifier, "fit", lambda self, X, y: seen.append(Counter(y)) or fit(self, X, y))
    scores = cross_val_score(new(), [texts[i] for i in order], [words[i] for i in order], cv=2, error_score="raise")
    assert seen == [Counter(sea=10, wood=10)] * 2 and (scores >= 0.9).all()


def test_it_stands_at_the_end_of_a_pipeline(sklearn, new, toy, texts, words):
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer
    shouted = [text.upper() for text in toy.test.texts]
    pipeline = make_pipeline(FunctionTransformer(lambda X: [text.lower() for text in X]), new()).fit(texts, words)
    assert pipeline.predict(shouted).tolist() == [toy.labels[i] for i in toy.test.labels]
    assert pipeline.predict_proba(shouted).shape == (30, 2) and pipeline.classes_.tolist() == ["sea", "wood"]
    assert "TextClassifier(" in repr(pipeline) and "TextClassifier" in pipeline._repr_html_()


def test_a_grid_search_finds_the_better_rate(sklearn, new, texts, words):
    from sklearn.model_selection import GridSearchCV
    search = GridSearchCV(new(epochs=4), {"lr": [1e-7, 1e-2]}, cv=2, error_score="raise").fit(texts, words)
    assert search.best_params_ == {"lr": 1e-2} and search.best_estimator_.lr == 1e-2
    assert search.predict(["wave wave shell"]).tolist() == ["sea"]
