"""A data set in which four words decide the label, and a model pre-trained on it for a moment."""

import numpy as np
import pytest

from minitune.data import Dataset, Split
from minitune.experiments import Pretraining, pretrain

WORDS = {"sea": "wave tide shell boat", "wood": "tree leaf bark moss"}
TINY = Pretraining(vocab_size=300, block_size=16, n_layer=1, n_head=2, n_embd=16, steps=3, batch_size=4, held_out=2)


def _split(random, count):
    labels = np.arange(count) % 2
    texts = [" ".join(random.choice(list(WORDS.values())[label].split(), 6)) for label in labels]
    return Split(texts, labels)


@pytest.fixture(scope="session")
def toy():
    random = np.random.default_rng(0)
    splits = {name: _split(random, count) for name, count in {"train": 40, "valid": 20, "test": 30}.items()}
    return Dataset("toy", tuple(WORDS), {**splits, "unlabelled": Split(splits["train"].texts * 3)}, citation="made up")


@pytest.fixture(scope="session")
def backbone(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    pretrain(toy, folder, TINY, progress=False)
    return folder
