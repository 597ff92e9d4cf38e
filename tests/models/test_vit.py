"""ViT: its sizes, its patches, its groups. Against Hugging Face's: test_against_transformers."""

import numpy as np
import pytest

import minitune as mt
from minitune import models, tune
from minitune.data import ImageBatch

SIZES = dict(image_size=6, patch_size=2, n_layer=2, n_head=2, n_embd=8, n_channels=1)


def vit(**sizes):
    return models.ViT(models.ViTConfig(**SIZES | sizes))


def test_the_count_of_parameters_is_that_of_vit_base():
    """86.4 million without a head (Dosovitskiy et al. 2021, table 1: 86 M)."""
    with mt.nn.shapes_only():
        base = models.ViT(models.ViTConfig(224, 16, 12, 12, 768))
    assert base.num_parameters() == 85_798_656 and base.config.patches == 196


def test_shapes_of_features_and_logits():
    model = vit()
    assert model(np.zeros((3, 6, 6), np.uint8)).shape == (3, 10, 8)
    classifier = models.Classifier(model, ["a", "b", "c"])
    assert classifier.pooling == "first" and classifier(np.zeros((3, 1, 6, 6), np.float32)).shape == (3, 3)
    assert repr(model) == f"ViT({model.config}, {model.num_parameters():,} parameters)"


def test_an_image_sees_its_own_patches_alone_and_each_of_them():
    model, images = vit().eval(), np.random.default_rng(0).standard_normal((2, 1, 6, 6)).astype(np.float32)
    before = model(images).numpy()
    for row, column in np.ndindex(3, 3):
        changed = images.copy()
        changed[1, 0, 2 * row, 2 * column] += 1
        after = model(changed).numpy()
        np.testing.assert_array_equal(after[0], before[0])
        assert (after[1] != before[1]).any(1).all()                         # every position, the class token too


def test_patches_are_read_row_by_row():
    """Without blocks in between, position 1 + p is patch p alone."""
    model = vit(n_layer=1)
    for parameter in model.blocks[0].parameters():
        parameter.data[:] = 0
    images = np.random.default_rng(0).standard_normal((1, 1, 6, 6)).astype(np.float32)
    before = model(images).numpy()
    images[0, 0, 2:4, 4:6] += 1                                             # second row, third column: patch 5
    assert np.flatnonzero((model(images).numpy() != before)[0].any(1)).tolist() == [6]


def test_the_layer_groups_hold_every_parameter_once_and_freeze():
    model = models.Classifier(vit(), ["a", "b", "c"])
    groups = model.layer_groups()
    assert [name for name, _ in groups] == ["embeddings", "blocks.0", "blocks.1", "head"]
    held = [id(p) for _, modules in groups for module in modules for p in module.parameters()]
    assert len(held) == len(set(held)) and set(held) == {id(p) for p in model.parameters()}
    tune.freeze_to(model, 1)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"backbone.{name}" for name in ("class_token", "position_embedding", "patch_embedding.weight",
                                                      "patch_embedding.bias")}


def test_recomputation_changes_no_gradient():
    model = models.Classifier(vit(dropout=0.2), ["a", "b", "c"])
    batch = ImageBatch(np.random.default_rng(0).standard_normal((4, 1, 6, 6)).astype(np.float32), np.array([0, 1, 2, 1]))
    gradients = []
    for model.recompute in False, True:
        mt.seed(1)
        model.zero_grad()
        model.loss(batch)["classification"][0].backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        np.testing.assert_array_equal(plain, again)


def test_images_of_another_size_are_told_with_the_repair():
    with pytest.raises(ValueError, match=r"ViT: expected images \(B, channels, H, W\) = \(B, 1, 6, 6\), got \(2, 3, 6, 6\)"):
        vit()(np.zeros((2, 3, 6, 6), np.float32))


@pytest.mark.parametrize(("sizes", "message"), [
    ({"n_layer": 0}, "n_layer must be a positive integer, got 0"), ({"n_head": 3}, "n_head must divide n_embd, got 3 and 8"),
    ({"patch_size": 4}, "patch_size must divide image_size, got 4 and 6"),
])
def test_sizes_that_make_no_model_are_told(sizes, message):
    with pytest.raises(ValueError, match=f"ViTConfig: {message}"):
        models.ViTConfig(**SIZES | sizes)
