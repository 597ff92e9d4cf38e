"""standardize: features of mean 0 and deviation 1 before the head, as by PyTorch's batch_norm; fold: a plain head again."""

import numpy as np
import pytest
from small_models import LABELS, ROWS, awd_lstm, bert, gpt, labelled, llama, randomise

from minitune import models, tune
from minitune.data import ClassificationSet
from minitune.experiments import Recipe
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
    with pytest.raises(ValueError, match="no place for head.standardized"):
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


def test_what_cannot_be_standardised_is_told():
    model, rows = classifier(gpt)
    with pytest.raises(ValueError, match="expected texts to take the features' mean and deviation of, got none"):
        tune.standardize(model, rows.subset(np.arange(0)))
    tune.standardize(model, rows)
    with pytest.raises(TypeError, match="expected a head that is a Linear, got StandardizedLinear"):
        tune.standardize(model, rows)


def test_a_recipe_standardises_its_classifier_and_says_so_only_then():
    recipe = Recipe(standardize=True)
    model, rows = classifier(gpt)
    recipe.trainer(model, rows, None, rate=1e-2, steps=2, batch_size=4, progress=False).fit()
    assert isinstance(model.head, tune.StandardizedLinear)
    assert "standardize" not in repr(Recipe()) and repr(recipe).endswith("standardize=True)")
