"""How well a small CNN or ViT reads small images in a given time: rate and epoch are chosen on valid, test is touched once.

    MINITUNE_DATA=... python benchmarks/vision.py mnist --model cnn --json               # a quarter of an hour on 2 cores
    MINITUNE_DATA=... python benchmarks/vision.py fashion_mnist --model vit --minutes 30
    python benchmarks/vision.py digits --model cnn --minutes 1                           # needs no file

A fifth of the time goes to short trainings, one for each learning rate; then the best rate trains for the rest of it. All of
that, with evaluation, aims at the time. Writes benchmarks/results/vision_DATA_MODEL.json where --json names no other file.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from time import perf_counter
from typing import Any

from measure import DROPPED, ROOT, blas_kernels, report, spread, table, threads_of

for name in DROPPED:                            # before NumPy: an inherited choice of kernels halves its matrix products
    os.environ.pop(name, None)

import numpy as np

import minitune as mt
from minitune import models
from minitune.data import Augmentation, ImageSet
from minitune.train import Trainer, classification_metrics, predict_proba

RATES = {"cnn": (2.5e-3, 5e-3, 1e-2), "vit": (1e-3, 2e-3, 4e-3)}
AUGMENTATION = {"mnist": Augmentation(shift=1), "digits": Augmentation(shift=1), "fashion_mnist": Augmentation(flip=True)}
MODELS = {
    ("cnn", 28): models.CNNConfig(image_size=28, widths=(16, 32, 64), dropout=0.1),
    ("cnn", 8): models.CNNConfig(image_size=8, widths=(32, 64), dropout=0.1),
    ("vit", 28): models.ViTConfig(image_size=28, patch_size=4, n_channels=1, n_layer=6, n_head=4, n_embd=64, n_inner=128),
    ("vit", 8): models.ViTConfig(image_size=8, patch_size=2, n_channels=1, n_layer=4, n_head=4, n_embd=64, n_inner=128),
}
BATCH_SIZE, EPOCHS = 64, 200                    # images a step; no training is longer, however much time there is
FOR_RATES, SAFE = 0.2, 0.9                      # shares of the time: for the choice of a rate; planned, as speed varies


class Run:
    """The data, and the models trained on it, all from one seed."""

    def __init__(self, data: str, model: str, seed: int, images: int | None) -> None:
        self.dataset, self.seed = mt.data.load(data), seed
        train = self.dataset.train if images is None else self.dataset.train.subset(range(images))
        self.train, self.valid = ImageSet(train, AUGMENTATION[data]), ImageSet(self.dataset.valid)
        self.config = MODELS[model, train.images.shape[1]]

    def model(self) -> models.Classifier:
        """New, the same each time."""
        mt.seed(self.seed)
        backbone: Any = models.CNN if isinstance(self.config, models.CNNConfig) else models.ViT
        return models.Classifier(backbone(self.config), self.dataset.labels)

    def fit(self, rate: float, seconds: float) -> Trainer:
        """A training that takes about so long, evaluated after each epoch."""
        epoch = -(-len(self.train) // BATCH_SIZE)
        steps = max(1, min(round(SAFE * seconds / self.seconds_a_step()), EPOCHS * epoch))
        trainer = Trainer(self.model(), self.train, self.valid, steps=steps, lr=rate, batch_size=BATCH_SIZE, weight_decay=0.05,
                          schedule="linear", evaluate_every=min(epoch, steps), progress=f"rate {rate:g}")
        trainer.fit()
        return trainer

    def seconds_a_step(self) -> float:
        """The median of a few steps, with their share of an evaluation: as fast as this machine is now."""
        trainer, times = Trainer(self.model(), self.train, steps=1, lr=1e-6, progress=False), []
        for _ in range(8):
            start = perf_counter()
            trainer.train_step([self.train.batch(np.arange(BATCH_SIZE))], 1e-6)
            times.append(perf_counter() - start)
        evaluated = len(self.valid) / len(self.train) / 3           # an image's forward pass is a third of its step
        return spread(times[1:])[0] * (1 + evaluated)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=AUGMENTATION)
    parser.add_argument("--model", choices=RATES, default="cnn")
    parser.add_argument("--minutes", type=float, default=15.0, help="for all trainings together (default: 15)")
    parser.add_argument("--rate", type=float, help="the learning rate, instead of a choice")
    parser.add_argument("--images", type=int, metavar="N", help="train on the first N images only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-test", action="store_true", help="report valid and leave test alone: for trials")
    parser.add_argument("--json", type=Path, nargs="?", const=Path(), metavar="FILE", help="write all that was measured")
    options = parser.parse_args()
    if options.json == Path() and (options.no_test or options.images):
        parser.error("--no-test and --images are for trials: give --json a FILE")
    if options.json == Path():
        options.json = ROOT / "benchmarks" / "results" / f"vision_{options.data}_{options.model}.json"
    options.page = False
    row, more = measure(options)
    report(options, "vision", [row], table([row], COLUMNS), more)


COLUMNS = {"data": "data", "model": "model", "parameters": "parameters", "rate": "rate", "epochs": "epochs",
           "valid_accuracy": "valid, %", "accuracy": "test, %", "low": "95 % from", "high": "to", "seconds": "seconds",
           "images_a_second": "images/s"}


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the figures, what a reader needs to judge and repeat them)"""
    start, seconds = perf_counter(), 60 * options.minutes
    run = Run(options.data, options.model, options.seed, options.images)
    rates = {}
    for rate in [] if options.rate else RATES[options.model]:
        best = run.fit(rate, FOR_RATES * seconds / len(RATES[options.model])).best
        rates[rate] = best.measured["error"]    # type: ignore[union-attr]
    rate = options.rate or min(rates, key=rates.__getitem__)
    trainer = run.fit(rate, seconds - (perf_counter() - start))
    seconds = perf_counter() - start
    row = {"data": options.data, "model": options.model, "parameters": trainer.model.num_parameters(), "rate": f"{rate:g}",
           "epochs": trainer.step * BATCH_SIZE / len(run.train), "seconds": seconds,
           "valid_accuracy": f"{100 * (1 - trainer.best.measured['error']):.2f}",
           "images_a_second": spread(r["tokens_per_second"] for r in trainer.history.rows)[0]}
    if not options.no_test:
        test = run.dataset.test
        found = classification_metrics(test.labels, predict_proba(trainer.model, ImageSet(test)), run.dataset.labels)
        row |= {key: f"{100 * value:.2f}" for key, value in zip(("accuracy", "low", "high"),
                                                                (found.accuracy, *found.accuracy_interval))}
    more = {"seed": options.seed, "images": len(run.train), "batch_size": BATCH_SIZE, "config": repr(run.config),
            "augmentation": repr(run.train.augment), "valid_error_by_rate": {f"{r:g}": e for r, e in rates.items()},
            "best_step": trainer.best.step, "steps": trainer.steps, "curve": trainer.history.rows,
            "fingerprint": run.dataset.fingerprint, "citation": run.dataset.citation, "threads": threads_of(),
            "blas": blas_kernels()}
    return row, more


if __name__ == "__main__":
    main()
