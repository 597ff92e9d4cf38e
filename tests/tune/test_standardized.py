"""standardize: features of mean 0 and deviation 1 before the head, as by PyTorch's batch_norm; fold: a plain head again."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import LABELS, ROWS, awd_lstm, bert, gpt, labelled, llama, randomise

from minitune import models, tune
from minitune.backend import random
from minitune.data import ClassificationSet
from minitune.experiments import Recipe
from minitune.experiments.tuning_methods import LoRAPlus, Prompting
from minitune.experiments.ulmfit_tables import TwoRates
from minitune.nn import Linear
from minitune.optim import AdamW
from minitune.train import Trainer

every_model = pytest.mark.parametrize("make", [gpt, bert, llama, awd_lstm])
MORE = [[3 + i % 5, 1 + i % 7, *range(i % 4, i % 4 + 3)] for i in range(20)]


def classifier(make, pooling="concat"):
    model = models.Classifier(make(), ["no", "yes"], pooling)
    randomise(model.parameters())
    return model.eval(), ClassificationSet(ROWS + MORE, LABELS + [i % 2 for i in range(20)], 12, causal=model.causal)


def pooled(model, batch):
    """The features as the head reads them."""
    head, model.head = model.head, tune.standardized._Nothing()
    try:
        return model(batch).numpy()
    finally:
        model.head = head


@every_model
def test_the_head_computes_what_pytorchs_batch_norm_and_linear_do(make):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    model, rows = classifier(make)
    features = torch.tensor(pooled(model, rows.batch(np.arange(len(rows)))))
    normal = torch.nn.functional.batch_norm(features, features.mean(0), features.var(0, unbiased=False), eps=1e-5)
    bias = None if model.head.bias is None else torch.tensor(model.head.bias.data)
    expected = torch.nn.functional.linear(normal, torch.tensor(model.head.weight.data), bias)
    tune.standardize(model, rows, batch_size=5)
    # float32: a feature that hardly varies is divided by little, so its rounding counts up to a hundred times
    np.testing.assert_allclose(model(rows.batch(np.arange(len(rows)))).numpy(), expected, rtol=1e-3, atol=1e-4)


@every_model
@pytest.mark.parametrize("pooling", ["concat", "last"])
def test_a_folded_head_computes_the_same_and_goes_into_a_folder_and_back(make, pooling, tmp_path):
    model, rows = classifier(make, pooling)
    tune.standardize(model, rows)
    before = model(labelled(model)).numpy()
    with pytest.raises(ValueError, match="no place for a standardised head. Fold it first"):
        model.save_pretrained(tmp_path)
    tune.fold(model)
    assert type(model.head) is Linear and model.head.bias is not None
    np.testing.assert_allclose(model(labelled(model)).numpy(), before, rtol=1e-4, atol=1e-5)   # float32, more terms
    model.save_pretrained(tmp_path)
    assert np.array_equal(models.from_pretrained(tmp_path)(labelled(model)).numpy(), model(labelled(model)).numpy())


def test_hugging_faces_class_without_a_bias_is_not_claimed_for_a_head_that_has_one(tmp_path):
    model, rows = classifier(gpt, "last")
    assert model.to_hugging_face()[0]["architectures"] == ["GPT2ForSequenceClassification"]
    tune.standardize(model, rows)
    tune.fold(model)
    assert model.to_hugging_face()[0]["model_type"] == "minitune_gpt2_classifier"


def test_folding_another_head_changes_nothing():
    model, _ = classifier(gpt)
    head = model.head
    tune.fold(model)
    assert model.head is head


def test_training_is_of_the_same_parameters_and_modes_stay():
    model, rows = classifier(gpt)
    weight, model = model.head.weight, model.train()
    tune.standardize(model, rows)
    assert model.head.standardized is weight and model.training and model.head.training
    before = weight.data.copy()
    Trainer(model, rows, optimizer=AdamW(model.parameters(), 1e-2), lr=1e-2, steps=2, batch_size=4, progress=False).fit()
    assert (weight.data != before).any()
    frozen = model.head.standardized.requires_grad = False
    tune.fold(model)
    assert model.head.weight.requires_grad is frozen


def test_a_folded_bias_trains_with_its_weight_and_draws_nothing():
    model, rows = classifier(gpt)
    tune.standardize(model, rows)
    before = dict(random.counters)
    tune.fold(model)
    assert model.head.bias.requires_grad and model.head.weight.requires_grad and dict(random.counters) == before


def test_nothing_is_changed_where_it_fails_and_every_part_keeps_its_mode():
    model, rows = classifier(gpt)
    head, model = model.head, model.train()
    model.backbone.blocks[0].eval()
    with pytest.raises(IndexError):
        tune.standardize(model, ClassificationSet([[19, 89]], [0], 12))          # an id that the model has not
    assert model.head is head and model.training
    tune.standardize(model, rows)
    assert model.training and not model.backbone.blocks[0].training and model.backbone.blocks[1].training
    with pytest.raises(TypeError, match="such as a Classifier, got TokenClassifier"):
        tune.standardize(models.TokenClassifier(gpt(), ["no", "yes"]), rows)


def test_an_adapter_is_written_with_a_folded_head_alone_and_comes_back(tmp_path):
    model, rows = classifier(gpt)
    base = {name: p.data.copy() for name, p in model.backbone.named_parameters()}
    tune.apply(model, tune.LoRAConfig(r=2))
    tune.standardize(model, rows)
    with pytest.raises(ValueError, match="save_adapter: the head is standardised"):
        tune.save_adapter(model, tmp_path)
    tune.fold(model)
    tune.save_adapter(model, tmp_path)
    again = models.Classifier(gpt(), ["no", "yes"], "concat")
    again.backbone.load_state_dict(base)
    tune.load_adapter(again, tmp_path)
    assert np.array_equal(again.eval()(labelled(again)).numpy(), model.eval()(labelled(model)).numpy())


def test_texts_that_do_not_differ_are_only_moved_to_0():
    model, _ = classifier(gpt)
    tune.standardize(model, ClassificationSet([ROWS[0]] * 3, [0] * 3, 12))
    assert all(0.99 < float(inverse) <= 1 for inverse in model.head.moments[1])


def test_the_head_of_another_adapter_gets_no_bias(tmp_path):
    model, rows = classifier(gpt)
    base = {name: p.data.copy() for name, p in model.backbone.named_parameters()}
    tune.apply(model, tune.LoRAConfig(r=2))
    tune.standardize(model, rows)
    tune.fold(model)
    tune.save_adapter(model, tmp_path)
    again = models.Classifier(gpt(), ["no", "yes"], "concat")
    again.backbone.load_state_dict(base)
    tune.apply(again, tune.LoRAConfig(r=2))
    tune.load_adapter(again, tmp_path, name="second")
    assert again.head.bias is not None
    tune.set_adapter(again, "default")
    assert again.head.bias is None


def test_hugging_faces_folder_with_a_bias_is_no_head_of_ours(tmp_path):
    model, _ = classifier(gpt, "last")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors") | {"score.bias": np.ones(2, np.float32)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="head.bias: unknown"):
        models.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_standardised_head_follows_the_precision_of_its_model(dtype):
    model, rows = classifier(gpt)
    tune.standardize(model, rows)
    for wanted in np.float64, dtype:
        for p in model.parameters():
            p.data = p.data.astype(wanted)
    assert model(labelled(model)).dtype == model.head.weight.dtype == dtype


def test_what_cannot_be_standardised_is_told():
    model, rows = classifier(gpt)
    with pytest.raises(ValueError, match="expected texts to take the features' mean and deviation of, got none"):
        tune.standardize(model, rows.subset(np.arange(0)))
    tune.standardize(model, rows)
    with pytest.raises(TypeError, match="got Classifier with StandardizedLinear"):
        tune.standardize(model, rows)


def test_a_recipe_standardises_its_classifier_and_says_so_only_then():
    recipe = Recipe(standardize=True)
    model, rows = classifier(gpt)
    recipe.trainer(model, rows, None, rate=1e-2, steps=2, batch_size=4, progress=False).fit()
    assert isinstance(model.head, tune.StandardizedLinear)
    again = recipe.trainer(model, rows, None, rate=1e-2, steps=2, batch_size=4, progress=False)         # as it is
    assert again.model is model


@pytest.mark.parametrize("kind", [Recipe, TwoRates, LoRAPlus, Prompting])
def test_a_recipes_text_names_a_newer_switch_only_where_it_is_on(kind):
    """Runs are known by it: one that does another thing has another text, and runs of before have theirs."""
    assert "standardize=" not in repr(kind(standardize=False)) and ", standardize=True" in repr(kind(standardize=True))
    assert repr(Recipe()).endswith("pooling='concat', dropout=None, betas=(0.7, 0.99))")
