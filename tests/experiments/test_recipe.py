"""Recipes: each switch does what the paper says, and nothing else."""

import re
from dataclasses import replace

import numpy as np
import pytest

import minitune as mt
from minitune import tune
from minitune.data import ClassificationSet, Dataset, Split
from minitune.experiments import LanguageModelStage, Protocol, Recipe, sample_efficiency
from minitune.experiments.recipe import plain, set_dropout, starting_model, texts_of, tune_language_model
from minitune.experiments.runner import read_lines
from minitune.models import from_pretrained
from minitune.nn import Dropout
from minitune.optim import SCHEDULES

STAGE = LanguageModelStage(batch_size=4, least_steps=4, most_epochs=99)
TINY = Protocol(sizes=(4,), seeds=(0, 1), least_steps=6, epochs=1, batch_size=4, longest=2, evaluations=2,
                rates=dict.fromkeys(("scratch", "supervised", "semi-supervised"), (1e-2,)))


@pytest.fixture
def model(toy, backbone):
    mt.seed(0)
    return from_pretrained(backbone)


def classifier_and_set(model, toy, recipe):
    rows = ClassificationSet.from_split(toy.train, model.tokenizer, 16)
    return recipe.classifier(model, toy.labels), rows


def trained_by_step(trainer):
    """The layer groups that train in each step, as they are when it begins."""
    seen = []

    class Watch(mt.train.Callback):
        def on_step_begin(self, trainer):
            seen.append([name for name, parts in trainer.model.layer_groups()
                         if any(p.requires_grad for part in parts for p in part.parameters())])

    trainer.callbacks.append(Watch())
    trainer.fit()
    return seen


def test_the_recipe_as_it_stands_is_the_papers(model, toy):
    classifier, rows = classifier_and_set(model, toy, Recipe())
    trainer = Recipe().trainer(classifier, rows, None, rate=1e-2, steps=12, batch_size=4, progress=False)
    assert classifier.pooling == "concat" and trainer.optimizer.betas == (0.7, 0.99)
    by_parameter = {id(p): group.rate for group in trainer.optimizer.groups for p in group.parameters}
    rates = [by_parameter[id(next(parts[0].parameters()))] for _, parts in classifier.layer_groups()]
    assert rates == pytest.approx([2.6**-2, 2.6**-1, 1.0])                  # embeddings, one block, head
    stlr = SCHEDULES["slanted_triangular"]
    assert [trainer.schedule(step, trainer.steps) for step in range(12)] == [stlr(step, 12) for step in range(12)]
    seen = trained_by_step(trainer)
    assert seen[:2] == [["head"]] * 2 and seen[2:4] == [["blocks.0", "head"]] * 2
    assert seen[4:] == [["embeddings", "blocks.0", "head"]] * 8             # after a third everything trains


def test_a_run_that_may_go_on_longer_has_the_schedule_of_the_shorter(model, toy):
    classifier, rows = classifier_and_set(model, toy, Recipe())
    trainer = Recipe().trainer(classifier, rows, None, rate=1e-2, steps=12, batch_size=4, longest=3, progress=False)
    stlr = SCHEDULES["slanted_triangular"]
    assert trainer.steps == 36 and [trainer.schedule(step, 36) for step in range(12)] == [stlr(step, 12) for step in range(12)]


def test_a_checkpoint_of_another_schedule_is_refused(model, toy, tmp_path):
    classifier, rows = classifier_and_set(model, toy, Recipe())
    settings = {"rate": 1e-2, "steps": 4, "batch_size": 4, "progress": False, "out": tmp_path}
    Recipe().trainer(classifier, rows, None, **settings).fit()
    with pytest.raises(ValueError, match="schedule was slanted_triangular, is cosine"):
        Recipe(schedule="cosine").trainer(classifier, rows, None, **settings).fit(resume=True)


def test_other_ways_to_unfreeze(model, toy):
    every = {"embeddings", "blocks.0", "head"}
    for unfreezing, expected in {"all": [every], "last": [{"head"}],
                                 "chain-thaw": [{"head"}, {"embeddings"}, {"blocks.0"}, every]}.items():
        recipe = Recipe(unfreezing=unfreezing)
        classifier, rows = classifier_and_set(model, toy, recipe)
        seen = trained_by_step(recipe.trainer(classifier, rows, None, rate=1e-2, steps=12, batch_size=4, progress=False))
        assert [set(names) for names in dict.fromkeys(map(tuple, seen))] == expected, unfreezing


def test_a_plain_method_has_one_rate_and_no_schedule_of_layers(model, toy):
    recipe = plain(tune.LoRAConfig(r=2))
    classifier, rows = classifier_and_set(model, toy, recipe)
    trainer = recipe.trainer(classifier, rows, None, rate=1e-2, steps=4, batch_size=4, progress=False)
    assert {group.rate for group in trainer.optimizer.groups} == {1.0} and trainer.callbacks == []
    assert trainer.optimizer.betas == (0.9, 0.999)
    assert plain(tune.FullConfig(), pretrained=False).from_scratch and not recipe.from_scratch


def test_dropout_is_that_of_the_recipe(model):
    set_dropout(model, None)
    assert {part.p for _, part in model.named_modules() if isinstance(part, Dropout)} == {0.0}
    set_dropout(model, 0.3)
    assert {part.p for _, part in model.named_modules() if isinstance(part, Dropout)} == {0.3}


def test_dropout_reaches_the_language_model_stage(model, toy):
    tune_language_model(model, texts_of(toy), STAGE, dropout=0.3)
    assert {part.p for _, part in model.named_modules() if isinstance(part, Dropout)} == {0.3}
    tune_language_model(model, texts_of(toy), STAGE)                                       # None leaves it
    assert {part.p for _, part in model.named_modules() if isinstance(part, Dropout)} == {0.3}


def test_the_model_to_start_from_is_that_of_the_folder_or_a_new_one_of_its_sizes(model, backbone, tmp_path):
    stored, new = starting_model(backbone, True), starting_model(backbone, False)
    assert stored.config == new.config == model.config and stored.tokenizer.vocabulary == new.tokenizer.vocabulary
    weights = [{name: p.data for name, p in made.named_parameters()} for made in (model, stored, new)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not np.array_equal(*(w["token_embedding.weight"] for w in weights[1:]))
    model.save_pretrained(tmp_path / "run" / "model")                                      # a run's folder holds its model
    assert starting_model(tmp_path / "run", True).config == model.config
    model.tokenizer = None
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="expected a model with its tokenizer in .*, and tokenizer.json is not there"):
        starting_model(tmp_path / "bare", True)


@pytest.mark.parametrize("kind, name, wrong, words", [
    *((LanguageModelStage, name, 0, "at least 1")
      for name in ("epochs", "most_epochs", "batch_size", "block_size", "vocab_size")),
    (LanguageModelStage, "rate", 0.0, "above 0"), (LanguageModelStage, "rate_factor", 0.9, "at least 1"),
    (LanguageModelStage, "least_steps", -1, "at least 0"), (Recipe, "rate_factor", 0.9, "at least 1"),
    (Recipe, "rate_factor", float("nan"), "at least 1"), (Recipe, "thawed", 0.0, "above 0 and at most 1"),
    (Recipe, "thawed", 1.5, "above 0 and at most 1"), (Recipe, "dropout", 1.0, "from 0 to below 1"),
    (Recipe, "betas", (0.9, 1.0), "from 0 to below 1")])
def test_numbers_that_cannot_work_are_refused_at_once(kind, name, wrong, words):
    with pytest.raises(ValueError, match=f"{kind.__name__}: .*{name}.*{words}, got .*{re.escape(str(wrong))}"):
        kind(**{name: wrong})


def test_the_numbers_at_the_ends_of_their_ranges_are_taken():
    assert LanguageModelStage(epochs=1, rate_factor=1.0, least_steps=0).rate_factor == 1
    assert Recipe(thawed=1.0, dropout=0.0, rate_factor=1.0).thawed == 1


def test_errors():
    with pytest.raises(ValueError, match="unfreezing must be one of all, gradual, chain-thaw, last, got 'slow'"):
        Recipe(unfreezing="slow")
    with pytest.raises(ValueError, match="schedule must be one of constant, linear"):
        Recipe(schedule="stlr")
    with pytest.raises(ValueError, match="lets train what LoRAConfig.* keeps frozen. Take unfreezing='all'"):
        Recipe(method=tune.LoRAConfig())
    with pytest.raises(ValueError, match="texts must be one of unlabelled, labelled, got 'all'"):
        LanguageModelStage("all")


def test_the_language_model_reads_every_text_but_those_it_is_measured_on(toy):
    texts = texts_of(toy)
    assert len(texts) == len(set(texts)) and set(texts) == {*toy.unlabelled.texts, *toy.train.texts}


def test_what_is_equal_to_a_held_out_text_but_for_case_and_white_space_is_not_read():
    splits = {"train": Split(["A  film", "read"]), "valid": Split(["VALID"]), "test": Split(["a Film"]),
              "unlabelled": Split(["valid", " Valid\n", "read", "new"])}
    assert texts_of(Dataset("films", (), splits, "", kind="text")) == ["read", "new"]


def test_without_a_text_to_learn_from_nothing_is_tuned(model):
    with pytest.raises(ValueError, match="tune_language_model: expected texts to learn from, got none"):
        tune_language_model(model, [], STAGE)
    with pytest.raises(ValueError, match="none of the 2 texts has two tokens"):
        tune_language_model(model, ["", ""], STAGE)


def test_empty_texts_are_left_out_of_what_is_measured(model, toy):
    trainer = tune_language_model(model, ["", *texts_of(toy)], STAGE, ["", *toy.valid.texts, ""])
    assert min(np.bincount(trainer.valid.owner.ravel(), minlength=1)) > 1
    assert tune_language_model(model, texts_of(toy), STAGE, ["", ""]).valid is None


def test_fewer_rows_than_a_batch_are_read_once_in_each_step(model, toy):
    stage = LanguageModelStage(batch_size=64, epochs=3, least_steps=0)
    trainer = tune_language_model(model, toy.train.texts[:8], stage)
    assert len(trainer.train) < 64 and trainer.step == 3


def test_tuning_the_language_model_makes_it_predict_the_tasks_texts(model, toy, tmp_path):
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    stage = replace(STAGE, least_steps=40, rate=1e-2)
    trainer = tune_language_model(model, texts_of(toy), stage, toy.valid.texts, tmp_path)
    rows = trainer.history.rows
    assert rows[-1]["valid_perplexity"] < 0.7 * rows[0]["valid_perplexity"] and trainer.step == 40
    assert any((before[name] != p.data).any() for name, p in model.named_parameters())
    again = tune_language_model(model, texts_of(toy), stage, toy.valid.texts, tmp_path)        # reads the last checkpoint
    assert again.history.rows == rows


def test_few_texts_are_read_again_but_not_for_ever(model, toy):
    rows = sum(len(model.tokenizer.frame(ids)) for ids in model.tokenizer.encode_batch(texts_of(toy))) // 16
    few = tune_language_model(model, texts_of(toy), LanguageModelStage(batch_size=4, least_steps=10_000, most_epochs=3))
    assert few.step == -(-3 * rows // 4)


def test_a_vocabulary_of_the_tasks_own_shortens_its_texts(model, toy):
    old = sum(map(len, model.tokenizer.encode_batch(toy.valid.texts)))
    tune_language_model(model, texts_of(toy), replace(STAGE, vocab_size=320))
    assert model.config.vocab_size == model.tokenizer.vocab_size > 260
    assert sum(map(len, model.tokenizer.encode_batch(toy.valid.texts))) <= old


def test_supervised_and_semi_supervised_runs_beside_scratch(toy, backbone, tmp_path):
    recipes = {"scratch": plain(tune.FullConfig(), pretrained=False),
               "supervised": Recipe(language_model=replace(STAGE, texts="labelled", vocab_size=300)),
               "semi-supervised": Recipe(language_model=STAGE)}
    results = sample_efficiency(toy, backbone, tmp_path, TINY, recipes, progress=False)
    assert results.methods == ["scratch", "supervised", "semi-supervised", "tf-idf"]
    (line,) = read_lines(tmp_path / "language_models.jsonl")
    assert line["texts"] == len(texts_of(toy)) and line["perplexity"] > 1 and (tmp_path / "language_models").is_dir()
    assert results.settings["language_models"].keys() == {"semi-supervised"}
    assert "folder" not in results.settings["language_models"]["semi-supervised"]       # no path of this machine
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    assert sample_efficiency(toy, backbone, tmp_path, TINY, recipes, progress=False).rows == results.rows
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}


def test_scratch_does_not_depend_on_the_weights_that_it_does_not_read(toy, backbone, tmp_path):
    """Two bases of the same sizes and tokenizer: scratch and the plain baseline are not run again, the tuned one is."""
    recipes = {"scratch": plain(tune.FullConfig(), pretrained=False), "supervised": Recipe()}
    sample_efficiency(toy, backbone, tmp_path / "out", TINY, recipes, progress=False)
    other = from_pretrained(backbone)
    for p in other.parameters():
        p.data = p.data * np.float32(1.01)
    other.save_pretrained(tmp_path / "other")
    sample_efficiency(toy, tmp_path / "other", tmp_path / "out", TINY, recipes, progress=False)
    methods = [line["method"] for line in read_lines(tmp_path / "out" / "results.jsonl")]
    assert {name: methods.count(name) for name in set(methods)} == {"scratch": 2, "tf-idf": 2, "supervised": 4}
