"""CNN: against PyTorch, its sizes, its groups, and clear words for images that it cannot read."""

import numpy as np
import pytest

import minitune as mt
from minitune import backend, models, tune
from minitune.data import Augmentation, ClassificationSet, ImageBatch, ImageSet, ImageSplit
from minitune.train import Trainer, evaluate

# float32: sums of some hundred products in another order; float64: the same with roundings of 1e-16. The parameters and what
# the optimizer sees are exact in both.
TOLERANCES = {np.float32: dict(rtol=1e-4, atol=1e-5), np.float64: dict(rtol=1e-9, atol=1e-11)}


def classifier(pooling="mean", **sizes):
    config = models.CNNConfig(**dict(image_size=9, n_channels=2, widths=(3, 5)) | sizes)
    return models.Classifier(models.CNN(config), ("a", "b", "c"), pooling)


def batch_of(model, count=4, dtype=np.float32):
    rng, config = np.random.default_rng(0), model.backbone.config
    images = rng.standard_normal((count, config.n_channels, config.image_size, config.image_size)).astype(dtype)
    return ImageBatch(images, rng.integers(0, 3, count))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", [{}, {"image_size": 7, "n_channels": 1, "widths": (4,)},
                                   {"image_size": 11, "widths": (2, 3, 4)}])
def test_logits_loss_and_every_gradient_agree_with_torch(sizes, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
    model = classifier(**sizes)
    for parameter in model.parameters():
        parameter.data = np.random.default_rng(parameter.size).standard_normal(parameter.shape).astype(dtype)
    batch = batch_of(model, dtype=dtype)
    layers = []
    for block in model.backbone.blocks:
        for convolution in block.first, block.second:
            F, C = convolution.weight.shape[:2]
            layers += [torch.nn.Conv2d(C, F, 3, padding=1), torch.nn.ReLU()]
        layers.append(torch.nn.MaxPool2d(2))
    theirs = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                                 torch.nn.Linear(model.backbone.config.n_embd, 3)).to(getattr(torch, np.dtype(dtype).name))
    pairs = list(zip(model.parameters(), theirs.parameters(), strict=True))
    with torch.no_grad():
        for ours, other in pairs:
            other.copy_(torch.from_numpy(ours.data))
    expected = theirs(torch.from_numpy(batch.images))
    loss = torch.nn.functional.cross_entropy(expected, torch.from_numpy(batch.targets), reduction="sum")
    loss.backward()
    (found, count, weight), = model.loss(batch).values()
    found.backward()
    assert (count, weight) == (4, 1.0)
    np.testing.assert_allclose(model(batch).numpy(), expected.detach().numpy(), **TOLERANCES[dtype])
    np.testing.assert_allclose(found.item(), loss.item(), **TOLERANCES[dtype])
    for ours, other in pairs:
        scale = other.grad.abs().max().item()
        np.testing.assert_allclose(ours.grad / scale, other.grad.numpy() / scale, **TOLERANCES[dtype])


def test_sizes_of_features_and_the_count_of_parameters():
    """A convolution of C to F channels has 9 C F + F numbers."""
    model = classifier()
    assert model.backbone(np.zeros((2, 2, 9, 9), np.float32)).shape == (2, 4, 5)
    assert model(np.zeros((2, 2, 9, 9), np.uint8)).shape == (2, 3)
    counts = [9 * C * F + F for C, F in ((2, 3), (3, 3), (3, 5), (5, 5))]
    assert model.num_parameters() == sum(counts) + 3 * 5 + 3
    assert repr(model.backbone) == f"CNN({model.backbone.config}, {sum(counts):,} parameters)"
    with mt.nn.shapes_only():
        first_six_of_vgg = models.CNN(models.CNNConfig(224, 3, (64, 128, 256)))
    assert first_six_of_vgg.num_parameters() == 1_792 + 36_928 + 73_856 + 147_584 + 295_168 + 590_080


def test_the_layer_groups_hold_every_parameter_once_from_input_to_output():
    model = classifier()
    groups = model.layer_groups()
    assert [name for name, _ in groups] == ["blocks.0", "blocks.1", "head"]
    held = [id(p) for _, modules in groups for module in modules for p in module.parameters()]
    assert len(held) == len(set(held)) and set(held) == {id(p) for p in model.parameters()}


def test_early_layers_freeze_and_the_rest_trains():
    """As transfer began: the first filters are kept, what lies above them learns."""
    model = classifier(image_size=8, n_channels=1)
    assert tune.freeze_to(model, 1) == ["blocks.1", "head"]
    before = {name: array.copy() for name, array in model.state_dict().items()}
    split = ImageSplit(np.random.default_rng(0).integers(0, 256, (24, 8, 8)).astype(np.uint8), np.arange(24) % 3)
    Trainer(model, ImageSet(split, Augmentation(shift=1)), steps=2, lr=0.01, progress=False).fit()
    moved = {name for name, array in model.state_dict().items() if not np.array_equal(array, before[name])}
    assert moved == {name for name in before if not name.startswith("backbone.blocks.0.")}


def test_dropout_acts_in_training_alone_and_recomputation_changes_nothing():
    model = classifier(dropout=0.5)
    batch = batch_of(model)
    assert not np.array_equal(model(batch).numpy(), model(batch).numpy())
    gradients = []
    for model.recompute in False, True:
        mt.seed(1)
        model.zero_grad()
        model.loss(batch)["classification"][0].backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        np.testing.assert_array_equal(plain, again)
    model.eval()
    np.testing.assert_array_equal(model(batch).numpy(), model(batch).numpy())


def test_a_small_cnn_tells_stripes_apart():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (120, 8, 8)).astype(np.uint8)
    images[:60, ::2] += 180
    images[60:, :, ::2] += 180
    order = rng.permutation(120)
    split = ImageSplit(images, np.arange(120) // 60).subset(order)
    model = models.Classifier(models.CNN(models.CNNConfig(8, widths=(4, 8))), ("rows", "columns"))
    train, test = ImageSet(split.subset(range(90)), Augmentation(shift=1)), ImageSet(split.subset(range(90, 120)))
    Trainer(model, train, steps=60, lr=0.01, progress=False).fit()
    assert evaluate(model, test)["error"] == 0


@pytest.mark.parametrize("shape", [(1, 2, 9, 8), (1, 1, 9, 9), (1, 9, 9)])
def test_images_of_another_size_are_told_with_the_repair(shape):
    model = classifier()
    with pytest.raises(ValueError, match=r"CNN: expected images .* = \(B, 2, 9, 9\), got \(1, .*\. Scale them, or"):
        model(np.zeros(shape, np.uint8))


def test_a_set_of_images_of_another_size_is_told_before_training():
    split = ImageSplit(np.zeros((3, 9, 9), np.uint8), np.arange(3))
    with pytest.raises(ValueError, match=r"CNN: expected images .* got \(1, 1, 9, 9\)"):
        Trainer(classifier(), ImageSet(split), steps=1, lr=0.1)
    fits = ImageSet(ImageSplit(np.zeros((3, 9, 9), np.uint8), np.arange(3)), Augmentation(shift=1))
    Trainer(classifier(n_channels=1), fits, steps=1, lr=0.1)
    assert not backend.random.counters["augment"]                           # looking at a set uses up no random numbers
    with pytest.raises(ValueError, match=r"CNN: expected a set of images, as in data.ImageSet\(split\), got ClassificationSet"):
        Trainer(classifier(), ClassificationSet([[1, 2]], [0], 4), steps=1, lr=0.1)


@pytest.mark.parametrize(("sizes", "message"), [
    ({"image_size": 0}, "image_size must be a positive integer, got 0"), ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
    ({"widths": ()}, r"widths must be positive integers, one for each block, got \(\)"),
    ({"widths": (8, 0)}, r"widths must be positive integers.* got \(8, 0\)"),
    ({"image_size": 7, "widths": (1, 1, 1)}, "3 blocks halve an image of 7 x 7 to nothing. Give fewer widths"),
])
def test_sizes_that_make_no_model_are_told(sizes, message):
    with pytest.raises(ValueError, match=f"CNNConfig: {message}"):
        models.CNNConfig(**{"image_size": 28} | sizes)
