"""Small data of one's own for tests: texts about two places, and what a folder holds."""

import csv
import shutil

import numpy as np

from minitune.data import Dataset, Split
from minitune.experiments import Pretraining, pretrain

WORDS = {"sea": "wave tide shell boat", "wood": "tree leaf bark moss"}


def rows(count, seed=0):
    draw = np.random.default_rng(seed)
    return [(" ".join(draw.choice(words.split(), 6)), label) for _ in range(count // 2) for label, words in WORDS.items()]


def write_csv(file, table, header=("text", "label")):
    with open(file, "w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([header, *table])
    return file


def contents(folder):
    """{file: bytes} of everything in a folder."""
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def ship(model, folder, monkeypatch):
    """Makes the model in a folder the "minitune-base" that comes with the package, by a copy in another one."""
    shutil.copytree(model, folder / "minitune-base")
    monkeypatch.setattr("minitune.formats.folder.SHIPPED", folder)


def pretrain_tiny(folder, seed=0):
    """Pre-trains a tiny GPT on such texts, in half a second."""
    texts = [text for text, _ in rows(120, seed=1)]
    settings = Pretraining(vocab_size=300, block_size=16, n_layer=1, n_head=2, n_embd=16, steps=4, batch_size=4, held_out=2,
                           seed=seed)
    pretrain(Dataset("words", (), {"train": Split(texts)}, "", kind="text"), folder, settings, progress=False)
