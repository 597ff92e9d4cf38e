"""ulmfit: three stages, both directions, long texts; it goes on where it stopped."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from minitune import tune
from minitune.data import Dataset, Split
from minitune.experiments import LanguageModelStage, Recipe, ulmfit
from minitune.experiments.ulmfit import Labels, as_rows
from minitune.models import BERT, BERTConfig, from_pretrained
from minitune.nn import Dropout
from minitune.train import Trainer, predict_proba

MODULE = sys.modules[ulmfit.__module__]         # `experiments.ulmfit` is the function
STEP = Trainer.train_step

RECIPE = Recipe(language_model=LanguageModelStage(batch_size=4, least_steps=4, most_epochs=99))
LABELS = Labels(rate=1e-2, epochs=1, batch_size=4, least_steps=8)


def interrupt_at(monkeypatch, count):
    """Interrupts at the so-manieth step of all trainings."""
    left = iter(range(count))

    def step(trainer, *given):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return STEP(trainer, *given)
    monkeypatch.setattr(Trainer, "train_step", step)


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def with_more_validation(toy):
    """The toy set with 120 validation texts, enough to choose by."""
    valid = Split(toy.valid.texts * 6, np.tile(toy.valid.labels, 6))
    return replace(toy, splits=toy.splits | {"valid": valid})


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
    assert again.history == first.history and again.reports == first.reports


def test_each_stages_model_is_a_folder_of_its_own_without_checkpoints(toy, backbone, tmp_path):
    made = ulmfit(toy, backbone, tmp_path, RECIPE, LABELS, progress=False)
    assert not list(tmp_path.rglob("checkpoints"))
    model = from_pretrained(tmp_path / "forward" / "classifier")
    rows = as_rows(Split(toy.test.texts, toy.test.labels), model, 1)
    np.testing.assert_array_equal(predict_proba(model, rows), made.predict_proba(toy.test.texts))
    assert hasattr(from_pretrained(tmp_path / "forward" / "language_model"), "language_loss")


@pytest.mark.parametrize("stage", ["language model", "classifier"])
def test_a_stage_is_recorded_before_its_checkpoints_go(stage, toy, backbone, tmp_path, monkeypatch):
    whole = ulmfit(toy, backbone, None, RECIPE, LABELS, progress=False)
    removed, remove = [], MODULE.remove_checkpoints

    def interrupted(folder):
        removed.append(folder)
        if len(removed) == 1 + (stage == "classifier"):
            raise KeyboardInterrupt
        remove(folder)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MODULE, "remove_checkpoints", interrupted)
        ulmfit(toy, backbone, tmp_path, RECIPE, LABELS, progress=False)
    assert stage.replace(" ", "_") in json.loads((tmp_path / "forward" / "ulmfit.json").read_text())
    again = ulmfit(toy, backbone, tmp_path, RECIPE, LABELS, progress=False)
    assert again.history == whole.history and not list(tmp_path.rglob("checkpoints"))


@pytest.mark.parametrize("rate", [1e-2, None])
def test_interrupted_in_the_third_stage_it_ends_the_same(rate, toy, backbone, tmp_path, monkeypatch):
    """Neither stage 2 nor the search for a rate, in this process or another, changes what follows it."""
    recipe, labels = replace(RECIPE, dropout=0.2), replace(LABELS, rate=rate)
    whole = ulmfit(toy, backbone, None, recipe, labels, progress=False)
    before = whole.history[0]["steps"] + (len(whole.rates[0][0].rates) if rate is None else 0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, before)             # at the first step of the classifier itself
        ulmfit(toy, backbone, tmp_path, recipe, labels, progress=False)
    monkeypatch.setattr(MODULE, "lr_find", lambda *_: pytest.fail("looked for a rate again"))
    again = ulmfit(toy, backbone, tmp_path, recipe, labels, progress=False)
    np.testing.assert_array_equal(again.predict_proba(toy.test.texts), whole.predict_proba(toy.test.texts))
    assert again.history == whole.history


def test_a_rate_that_was_found_is_read_again(toy, backbone, tmp_path, monkeypatch):
    labels = replace(LABELS, rate=None)
    first = ulmfit(toy, backbone, tmp_path, RECIPE, labels, progress=False)
    monkeypatch.setattr(Trainer, "train_step", lambda *_: pytest.fail("trained again"))
    again = ulmfit(toy, backbone, tmp_path, RECIPE, labels, progress=False)
    assert again.history == first.history and len(first.rates) == 1 and again.rates == []


def test_a_classifier_with_adapters_is_made_anew_from_its_checkpoint(toy, backbone, tmp_path, monkeypatch):
    recipe = replace(RECIPE, language_model=None, unfreezing="all", method=tune.LoRAConfig(r=2))
    first = ulmfit(toy, backbone, tmp_path, recipe, LABELS, progress=False)
    assert any("not kept as a model" in note for note in first.notes)
    monkeypatch.setattr(Trainer, "train_step", lambda *_: pytest.fail("trained again"))
    again = ulmfit(toy, backbone, tmp_path, recipe, LABELS, progress=False)
    np.testing.assert_array_equal(again.predict_proba(toy.test.texts), first.predict_proba(toy.test.texts))


def test_another_run_in_the_same_folder_is_refused_and_left_alone(toy, backbone, tmp_path):
    out = tmp_path / "out"
    ulmfit(toy, backbone, out, RECIPE, LABELS, progress=False)
    other = from_pretrained(backbone)
    for p in other.parameters():
        p.data = p.data * np.float32(1.01)
    other.save_pretrained(tmp_path / "other")
    longer = replace(RECIPE, language_model=replace(RECIPE.language_model, least_steps=5))
    fewer = replace(toy, splits=toy.splits | {"train": toy.train.subset(range(30))})
    before = contents(out)
    for name, given in [("base", {"base": tmp_path / "other"}), ("seed", {"seed": 1}), ("recipe", {"recipe": longer}),
                        ("recipe", {"recipe": replace(RECIPE, schedule="cosine")}), ("fingerprint", {"dataset": fewer}),
                        ("labels", {"labels": replace(LABELS, epochs=2)})]:
        asked = {"dataset": toy, "base": backbone, "recipe": RECIPE, "labels": LABELS} | given
        with pytest.raises(ValueError, match=f"holds another run: {name} was .*, is .*Give another folder"):
            ulmfit(**asked, out=out, progress=False)
    assert contents(out) == before
    (out / "forward" / "ulmfit.json").unlink()
    with pytest.raises(ValueError, match="holds another run: language_model without ulmfit.json; classifier without"):
        ulmfit(toy, backbone, out, RECIPE, LABELS, progress=False)


def test_the_recipes_dropout_is_that_of_the_second_stage_too(toy, backbone, monkeypatch):
    seen = []

    def step(trainer, *given):
        seen.append({part.p for _, part in trainer.model.named_modules() if isinstance(part, Dropout)})
        return STEP(trainer, *given)

    monkeypatch.setattr(Trainer, "train_step", step)
    ulmfit(toy, backbone, None, replace(RECIPE, dropout=0.3), LABELS, progress=False)
    assert all(found == {0.3} for found in seen) and len(seen) > 8


def test_few_validation_texts_choose_nothing(toy, backbone, tmp_path):
    labels = replace(LABELS, epochs=4)
    few, enough = tmp_path / "few", tmp_path / "enough"
    made = ulmfit(toy, backbone, few, replace(RECIPE, language_model=None), labels, progress=False)
    assert made.notes == ["20 validation texts are too few to choose an epoch or a rate by: the classifier's last weights are "
                          "kept"]
    assert not (few / "forward/classifier/best.safetensors").exists() and made.history[-1]["valid error"] >= 0
    last = (few / "forward/classifier/history.csv").read_text().splitlines()
    assert made.history[-1]["valid loss"] == float(last[-1].split(",")[last[0].split(",").index("valid_loss")])
    made = ulmfit(with_more_validation(toy), backbone, enough, replace(RECIPE, language_model=None), labels, progress=False)
    assert made.notes == [] and (enough / "forward/classifier/best.safetensors").exists()


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
    made = ulmfit(with_more_validation(toy), backbone, None, replace(RECIPE, language_model=None), labels, progress=False)
    ((found, tried),) = made.rates
    assert tried.best in found.around(1) and made.history[-1]["rate"] == tried.best
    made = ulmfit(toy, backbone, None, replace(RECIPE, language_model=None), labels, progress=False)
    ((found, tried),) = made.rates              # 20 texts decide nothing
    assert tried is None and made.history[-1]["rate"] == found.suggestion


def test_errors(toy, backbone, tmp_path):
    with pytest.raises(ValueError, match="expected texts with labels, got plain of kind 'text'"):
        ulmfit(Dataset("plain", (), {"train": toy.train}, "", kind="text"), backbone)
    stored = from_pretrained(backbone)
    stored.tokenizer = None
    stored.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="expected a model with its tokenizer in .*, and tokenizer.json is not there"):
        ulmfit(toy, tmp_path / "bare")
    with pytest.raises(ValueError, match="both read forward. One of a pair reads texts from their end"):
        ulmfit(toy, backbone, tmp_path / "out", RECIPE, LABELS, backbone)
    assert not (tmp_path / "out").exists()
    bert = BERT(BERTConfig(from_pretrained(backbone).tokenizer.vocab_size, 16, n_layer=1, n_head=2, n_embd=16))
    bert.tokenizer = from_pretrained(backbone).tokenizer
    bert.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="ulmfit: expected a language model in .*, got BERT"):
        ulmfit(toy, tmp_path / "bert")
    for name, value, words in [("rate", 0.0, "above 0"), ("epochs", 0, "at least 1"), ("batch_size", 0, "at least 1"),
                               ("least_steps", 0, "at least 1"), ("chunks", 0, "at least 1"),
                               ("rate", float("nan"), "above 0")]:
        with pytest.raises(ValueError, match=f"Labels: {name} must be {words}, got {value}"):
            Labels(**{name: value})


def test_a_standardised_head_is_folded_before_it_is_kept(toy, backbone, tmp_path):
    recipe = replace(RECIPE, standardize=True)
    made = ulmfit(toy, backbone, tmp_path, recipe, LABELS, progress=False)
    again = ulmfit(toy, backbone, tmp_path, recipe, LABELS, progress=False)
    assert np.array_equal(made.predict_proba(toy.test.texts), again.predict_proba(toy.test.texts))
    assert from_pretrained(tmp_path / "forward" / "classifier").head.bias is not None
