"""Tuning image models: what is frozen rests, LoRA lies on a ViT's linear layers and merges away, a CNN has none for it."""

import numpy as np
import pytest

from minitune import models, tune
from minitune.data import ImageSet, ImageSplit
from minitune.train import Trainer, predict_proba

IMAGES = ImageSet(ImageSplit(np.random.default_rng(0).integers(0, 256, (24, 8, 8)).astype(np.uint8), np.arange(24) % 3))
BACKBONES = {"cnn": lambda: models.CNN(models.CNNConfig(8, widths=(3, 5))),
             "vit": lambda: models.ViT(models.ViTConfig(8, 4, n_layer=2, n_head=2, n_embd=8, n_channels=1))}


def classifier(name):
    return models.Classifier(BACKBONES[name](), ["a", "b", "c"])


def moved_by_training(model):
    """The names of the parameters that two steps move, with decay."""
    before = {name: array.copy() for name, array in model.state_dict().items()}
    Trainer(model, IMAGES, steps=2, lr=0.01, weight_decay=0.5, schedule="constant", progress=False).fit()
    return {name for name, array in model.state_dict().items() if array.tobytes() != before[name].tobytes()}


@pytest.mark.parametrize("name, n, trains", [
    ("cnn", 1, ("backbone.blocks.1.", "head.")), ("cnn", -1, ("head.",)),
    ("vit", 1, ("backbone.blocks.", "backbone.norm.", "head.")), ("vit", 2, ("backbone.blocks.1.", "backbone.norm.", "head.")),
])
def test_freeze_to_trains_the_late_groups_and_the_early_ones_rest(name, n, trains):
    model = classifier(name)
    tune.freeze_to(model, n)
    assert moved_by_training(model) == {p for p in model.state_dict() if p.startswith(trains)}


@pytest.mark.parametrize("name, patterns, rests", [
    ("cnn", "all", "backbone."), ("vit", "all", "backbone."), ("cnn", "blocks.0", "backbone.blocks.0."),
    ("cnn", "blocks.*.first", ("backbone.blocks.0.first.", "backbone.blocks.1.first.")),
    ("vit", ["class_token", "position_embedding", "patch_embedding"],
     ("backbone.class_token", "backbone.position_embedding", "backbone.patch_embedding.")),
])
def test_freeze_config_rests_what_its_patterns_mean(name, patterns, rests):
    model = classifier(name)
    report = tune.apply(model, tune.FreezeConfig(patterns))
    trains = {p for p in model.state_dict() if not p.startswith(rests)}
    assert report.trainable == sum(model.state_dict()[p].size for p in trains)
    assert moved_by_training(model) == trains


def test_lora_lies_on_a_vits_linear_layers_starts_as_the_base_and_trains_with_the_head_alone():
    model = classifier("vit")
    before = predict_proba(model, IMAGES)
    tune.apply(model, tune.LoRAConfig(r=2))
    np.testing.assert_array_equal(predict_proba(model, IMAGES), before)
    adapted = {name for name, part in model.named_modules() if isinstance(part, tune.LoRALinear)}
    assert adapted == {f"backbone.blocks.{i}.{layer}" for i in range(2) for layer in (
        "attention.query", "attention.key", "attention.value", "attention.output", "mlp.up", "mlp.down")}
    moved = {f"{name}.{matrix}" for name in adapted for matrix in "AB"} | {"head.weight", "head.bias"}
    assert moved_by_training(model) == moved


def test_a_trained_lora_of_a_vit_merges_and_is_read_back_as_a_plain_one(tmp_path):
    model = classifier("vit")
    tune.apply(model, tune.LoRAConfig(r=2, lora_alpha=8))
    start = predict_proba(model, IMAGES)
    Trainer(model, IMAGES, steps=4, lr=0.01, progress=False).fit()
    trained = predict_proba(model, IMAGES)
    assert np.abs(trained - start).max() > 1e-3                             # else merging would have nothing to keep
    with pytest.raises(ValueError, match="merge"):
        model.save_pretrained(tmp_path)
    certificate = tune.merge(model, probe=IMAGES.batch(np.arange(24)))
    assert len(certificate.layers) == 12 and certificate.gap < 1e-5 * certificate.largest
    model.save_pretrained(tmp_path)
    # float32 weights are rounded once more in the merge: some roundings of 6e-8 in a probability
    np.testing.assert_allclose(predict_proba(models.from_pretrained(tmp_path), IMAGES), trained, atol=1e-6)
    tune.unmerge(model, certificate)
    np.testing.assert_array_equal(predict_proba(model, IMAGES), trained)


def test_lora_on_a_cnn_is_refused_and_changes_nothing():
    model = classifier("cnn")
    with pytest.raises(ValueError, match="LoRAConfig: the backbone has no linear layers"):
        tune.apply(model, tune.LoRAConfig())
    assert all(p.requires_grad for p in model.parameters())
