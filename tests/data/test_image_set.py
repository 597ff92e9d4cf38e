"""ImageSet: scaled batches, and augmentation that is random, counted, and absent from evaluation."""

import numpy as np
import pytest

import minitune as mt
from minitune import backend, models
from minitune.data import Augmentation, ImageBatch, ImageSet, ImageSplit
from minitune.nn import Linear, Module
from minitune.ops import IGNORE
from minitune.train import Trainer, evaluate

EVERY = Augmentation(shift=2, flip=True)
IMAGES = np.random.default_rng(0).integers(1, 256, (40, 6, 5)).astype(np.uint8)         # no pixel is 0
SPLIT = ImageSplit(IMAGES, np.arange(40) % 3)
POINT = np.zeros((4000, 7, 9), np.uint8)        # one white pixel, off the middle to the left
POINT[:, 3, 2] = 255


def test_a_batch_holds_the_rows_asked_for_from_minus_one_to_one():
    batch = ImageSet(SPLIT).batch(np.array([7, 2]))
    assert (batch.images.shape, batch.images.dtype) == ((2, 1, 6, 5), np.float32)
    np.testing.assert_allclose(batch.images[:, 0], IMAGES[[7, 2]] / 127.5 - 1, atol=1e-6)      # some roundings of 6e-8
    assert batch.targets.tolist() == [1, 2]
    assert (len(batch), batch.tokens, batch.supervised, batch.valid) == (2, 2, 2, None)
    ends = ImageSet(ImageSplit(np.array([[[0, 255]]], np.uint8), np.array([0]))).batch(np.array([0])).images
    assert ends.ravel().tolist() == [-1, 1]


def test_images_without_targets_are_a_batch_too():
    batch = ImageBatch.of_images(IMAGES[:2])
    np.testing.assert_array_equal(batch.images, ImageSet(SPLIT).batch(np.arange(2)).images)
    assert batch.targets.tolist() == [IGNORE] * 2 and batch.supervised == 0
    given = np.ones((2, 3, 4, 4), np.float32)
    assert ImageBatch.of_images(given).images is given                      # scaled already
    wide = ImageBatch.of_images(IMAGES[:2] / 255).images
    assert wide.dtype == np.float32 and wide.shape == (2, 1, 6, 5)


@pytest.mark.parametrize("images", [IMAGES[0], IMAGES.astype(int), np.zeros((1, 1, 1, 2, 2), np.uint8)])
def test_what_is_no_batch_of_images_is_refused(images):
    with pytest.raises(ValueError, match=r"ImageBatch: images must be \(B, H, W\) or .*, got .*write image\[None\]"):
        ImageBatch.of_images(images)


# ---- What augmentation does ------------------------------------------------------------------------------------------

def test_shifts_reach_every_place_equally_often_and_bring_in_zeros():
    """4,000 images, 25 places of probability 1 / 25: 160 each, deviation 12.4; five of these are rarer than 1 in 60,000."""
    moved = Augmentation(shift=2)(POINT)
    assert moved.sum() == POINT.sum()
    _, row, column = moved.nonzero()
    counts = np.zeros((7, 9), int)
    np.add.at(counts, (row, column), 1)
    assert (abs(counts[1:6, 0:5] - 160) < 62).all() and counts[1:6, 0:5].sum() == 4000
    whole = Augmentation(shift=3)(IMAGES)
    rows, columns = ((whole != 0).any(axis) for axis in (2, 1))
    assert rows.sum(1).min() == 3 and columns.sum(1).min() == 2              # of 6 and 5; all that is left is together
    for image, source in zip(whole, IMAGES):
        inside = image[np.ix_((image != 0).any(1), (image != 0).any(0))]
        height, width = inside.shape
        assert any(np.array_equal(inside, source[r : r + height, c : c + width]) for r, c in np.ndindex(4, 4))


def test_half_of_the_images_are_flipped():
    """4,000 images: 2,000 expected, deviation 31.6."""
    flipped = Augmentation(flip=True)(POINT)
    assert abs((flipped[:, 3, 6] == 255).sum() - 2000) < 158 and ((flipped[:, 3, 6] == 255) ^ (flipped[:, 3, 2] == 255)).all()
    np.testing.assert_array_equal(Augmentation()(IMAGES), IMAGES)


def test_a_negative_shift_is_refused():
    with pytest.raises(ValueError, match="Augmentation: .* at least 0, got -1"):
        Augmentation(shift=-1)


# ---- Where its random numbers come from ------------------------------------------------------------------------------

def test_a_seed_and_a_counter_bring_the_same_images_back_and_the_source_stays_as_it_was():
    dataset, before = ImageSet(SPLIT, EVERY), IMAGES.copy()
    mt.seed(5)
    one, two = (dataset.batch(np.arange(40)).images for _ in range(2))
    mt.seed(5)
    np.testing.assert_array_equal(dataset.batch(np.arange(40)).images, one)
    counters = dict(backend.random.counters)
    mt.seed(6)
    other = dataset.batch(np.arange(40)).images
    assert not np.array_equal(one, two) and not np.array_equal(one, other)
    assert counters == {"augment": 40}                                      # one step of the generator an image
    mt.seed(5)
    backend.random.counters.update(counters)
    np.testing.assert_array_equal(dataset.batch(np.arange(40)).images, two)
    np.testing.assert_array_equal(IMAGES, before)


def test_four_small_batches_are_augmented_like_one_large():
    dataset = ImageSet(SPLIT, EVERY)
    mt.seed(1)
    whole = dataset.batch(np.arange(40)).images
    mt.seed(1)
    parts = [dataset.batch(rows).images for rows in np.array_split(np.arange(40), 4)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_evaluation_neither_augments_nor_takes_random_numbers():
    model = models.Classifier(models.CNN(models.CNNConfig(8, widths=(2,))), list("abc"))
    split = ImageSplit(np.random.default_rng(0).integers(0, 256, (20, 8, 8)).astype(np.uint8), np.arange(20) % 3)
    measured = [evaluate(model, ImageSet(split, augment)) for augment in (None, EVERY)]
    assert measured[0] == measured[1] and not backend.random.counters["augment"]


def test_the_fingerprint_covers_pixels_labels_and_augmentation():
    changed = IMAGES.copy()
    changed[3, 2, 1] ^= 1
    sets = [ImageSet(SPLIT), ImageSet(SPLIT, Augmentation(shift=1)), ImageSet(SPLIT, Augmentation(flip=True)),
            ImageSet(ImageSplit(changed, SPLIT.labels)), ImageSet(ImageSplit(IMAGES, 2 - SPLIT.labels))]
    assert len({dataset.fingerprint for dataset in sets}) == 5
    assert ImageSet(SPLIT).fingerprint == ImageSet(SPLIT).fingerprint


class Pixels(Module):
    """The least that trains on images."""

    def __init__(self):
        self.layer = Linear(30, 3)

    def loss(self, batch):
        x = self.layer(mt.Tensor(batch.images.reshape(len(batch), -1)))
        return {"classification": (mt.ops.cross_entropy(x, batch.targets), batch.supervised, 1.0)}

    def counts(self, batch):
        return {"classification": batch.supervised}

    def measure(self, batch):
        loss, count, _ = self.loss(batch)["classification"]
        return {"loss": (loss.item(), count)}


def test_a_training_that_is_resumed_sees_the_images_it_would_have_seen(tmp_path):
    def trained(steps, out, resume=False):
        mt.seed(3)
        model = Pixels()
        trainer = Trainer(model, ImageSet(SPLIT, EVERY), steps=6, lr=0.01, batch_size=8, checkpoint_every=1, out=out,
                          progress=False)
        if steps < 6:
            stop_after(trainer, steps)
        else:
            trainer.fit(resume=resume)
        return model.layer.weight.data

    whole = trained(6, tmp_path / "whole")
    trained(3, tmp_path / "parts")
    np.testing.assert_array_equal(trained(6, tmp_path / "parts", resume=True), whole)


def stop_after(trainer, steps):
    class Stop(Exception):
        pass

    step = trainer.train_step

    def limited(*arguments):
        if trainer.step == steps:
            raise Stop
        return step(*arguments)

    trainer.train_step = limited
    with pytest.raises(Stop):
        trainer.fit()
