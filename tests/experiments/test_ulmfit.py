"""ulmfit: three stages, both directions, long texts; it goes on where it stopped."""

from dataclasses import replace

import numpy as np
import pytest

from minitune.data import Dataset, Split
from minitune.experiments import LanguageModelStage, Recipe, ulmfit
from minitune.experiments.ulmfit import Labels, as_rows
from minitune.models import from_pretrained
from minitune.train import Trainer, predict_proba

RECIPE = Recipe(language_model=LanguageModelStage(batch_size=4, least_steps=4, most_epochs=99))
LABELS = Labels(rate=1e-2, epochs=1, batch_size=4, least_steps=8)


@pytest.fixture(scope="module")
def backward_base(backbone, tmp_path_factory):
    model = from_pretrained(backbone)
    model.tokenizer.backward = True
    model.save_pretrained(tmp_path_factory.mktemp("backward"))
    return tmp_path_factory.getbasetemp() / "backward0"


def test_three_stages_make_a_classifier(toy, backbone, tmp_path):
    made = ulmfit(toy, backbone, tmp_path, RECIPE, LABELS, progress=False)
    assert [row["stage"] for row in made.history] == ["language model", "classifier"]
    assert {row["direction"] for row in made.history} == {"forward"} and made.history[0]["valid perplexity"] > 1
    assert made.history[0]["texts"] == len({*toy.unlabelled.texts, *toy.train.texts})
    assert made.predict_proba(toy.test.texts).shape == (30, 2) and 0 <= made.error(toy.test) <= 1
    assert "language model" in made.table() and "rate" in str(made.reports[0])
    made.save(tmp_path / "saved")
    assert from_pretrained(tmp_path / "saved" / "forward").labels == toy.labels


def test_it_learns_what_the_labels_say(toy, backbone):
    made = ulmfit(toy, backbone, None, replace(RECIPE, language_model=None), replace(LABELS, epochs=40), progress=False)
    assert made.error(toy.test) < 0.2 and len(made.history) == 1


def test_called_again_it_trains_nothing_and_gives_the_same(toy, backbone, tmp_path, monkeypatch):
    first = ulmfit(toy, backbone, tmp_path, RECIPE, LABELS, progress=False)
    monkeypatch.setattr(Trainer, "train_step", lambda *_: pytest.fail("trained again"))
    again = ulmfit(toy, backbone, tmp_path, RECIPE, LABELS, progress=False)
    np.testing.assert_array_equal(again.predict_proba(toy.test.texts), first.predict_proba(toy.test.texts))
    assert again.history == first.history


def test_two_directions_are_averaged(toy, backbone, backward_base):
    made = ulmfit(toy, backbone, None, RECIPE, LABELS, backward_base, progress=False)
    forward, backward = made.classifiers
    assert not forward.tokenizer.backward and backward.tokenizer.backward
    split = Split(toy.test.texts, toy.test.labels)
    apart = [predict_proba(model, as_rows(split, model, 1)) for model in made.classifiers]
    np.testing.assert_allclose(made.predict_proba(toy.test.texts), (apart[0] + apart[1]) / 2, rtol=1e-12)
    assert not np.allclose(*apart)
    assert [row["direction"] for row in made.history] == ["forward"] * 2 + ["backward"] * 2


def test_a_long_text_is_read_whole(toy, backbone):
    """The words that decide stand after the model's 16 tokens: only what reads further can tell."""
    padding = "the " * 8

    def late(split):
        return Split([padding + text for text in split.texts], split.labels)

    long = Dataset("long", toy.labels, {name: late(toy.splits[name]) for name in ("train", "valid", "test")}, "made up")
    whole, cut = (ulmfit(long, backbone, None, replace(RECIPE, language_model=None, unfreezing="all"),
                         replace(LABELS, epochs=60, chunks=chunks), progress=False).error(long.test) for chunks in (4, 1))
    assert whole < 0.25 and cut > 0.35


def test_a_rate_is_found_and_swept_where_none_is_given(toy, backbone):
    labels = replace(LABELS, rate=None, epochs=4)
    made = ulmfit(toy, backbone, None, replace(RECIPE, language_model=None), labels, progress=False)
    ((found, tried),) = made.rates
    assert tried.best in found.around(1) and made.history[-1]["rate"] == tried.best


def test_errors(toy, backbone, tmp_path):
    with pytest.raises(ValueError, match="expected texts with labels, got plain of kind 'text'"):
        ulmfit(Dataset("plain", (), {"train": toy.train}, "", kind="text"), backbone)
    stored = from_pretrained(backbone)
    stored.tokenizer = None
    stored.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="expected a language model with its tokenizer in .*without tokenizer.json"):
        ulmfit(toy, tmp_path / "bare")
    ulmfit(toy, backbone, tmp_path / "out", RECIPE, LABELS, progress=False)
    other = replace(RECIPE, language_model=LanguageModelStage(batch_size=4, least_steps=5))
    with pytest.raises(ValueError, match="holds another language model.*Give another folder"):
        ulmfit(toy, backbone, tmp_path / "out", other, LABELS, progress=False)
