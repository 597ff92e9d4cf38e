"""Does masked-language-model pre-training pay? Its loss against the budget, then TREC from 500 labels beside scratch.

    MINITUNE_DATA=... python benchmarks/masked_language_model.py --json        # about two hours on one core

1. A small BERT is pre-trained anew with 0.32, 0.4, 0.504, 0.64 and 0.8 of the budget, each with a schedule that ends
   with it. The power law L = a + b tokens^-c through their held-out losses predicts that of the whole budget, run last. All end
   behind the sudden fall of the loss that comes after some 8 million tokens: no law that is fitted before it can tell of it.
2. That model is fine-tuned on TREC with 500 labels, beside the same architecture from new weights and TF-IDF with logistic
   regression: the protocol of `experiments.sample_efficiency`, rates of both chosen on validation.

--minutes is the time of the whole budget's run alone; the five before it take 2.7 times that together. With --workers 2 they go
side by side with it. Stopped and started again, it goes on, and keeps the budget of its first start.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

from measure import DROPPED, ROOT, machine
from pages import NEAR

for name in DROPPED:                            # before NumPy: an inherited choice of kernels halves its matrix products
    os.environ.pop(name, None)

import numpy as np

import minitune as mt
from minitune.data import MaskedSet, Tokenizer
from minitune.experiments import Protocol, Results, sample_efficiency
from minitune.experiments.runner import run, worker_pool
from minitune.formats.folder import write_text
from minitune.models import BERT, BERTConfig, MaskedLanguageModel
from minitune.ops import IGNORE
from minitune.train import Trainer, remove_checkpoints
from minitune.tune import FullConfig

SHARES = (0.32, 0.4, 0.504, 0.64, 0.8, 1.0)     # of the budget; the last is predicted from the others
HELD_OUT = 1024                                 # rows of the validation texts to measure on
RATES = {name: (1e-4, 3e-4, 1e-3, 3e-3) for name in ("scratch", "full")}


@dataclass(frozen=True)
class Settings:
    """The texts, the sizes of the BERT and how it is pre-trained."""

    data: tuple[str, ...]
    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    batch_size: int
    rate: float


def main() -> None:
    options = parse()
    settings = Settings(**{name: getattr(options, name) for name in Settings.__annotations__})
    pretrained = pretrain(settings, options.minutes, options.out, options.workers)
    print(*law_lines(pretrained), f"token frequencies alone: {loss_of_frequencies(settings):.3f}", sep="\n")
    protocol = Protocol(sizes=(options.labels,), seeds=tuple(range(options.seeds)), rates=RATES, sweep_seeds=(100,),
                        evaluations=10, patience=5, longest=6, pooling=options.pooling, epochs=options.epochs)
    backbone = folder_of(options.out, pretrained[-1]) / "model"
    trec = sample_efficiency(mt.data.load("trec"), backbone, options.out / "trec", protocol,
                             {"scratch": FullConfig(), "full": FullConfig()}, workers=options.workers)
    print(trec.table(), *trec.compared(), sep="\n")
    if options.json:
        write_text(options.json, json.dumps(summary(settings, pretrained, trec), indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--minutes", type=float, default=22, help="minutes that the whole budget's pre-training takes")
    parser.add_argument("--data", nargs="+", default=("wikitext2",), help="texts to pre-train on")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--block-size", type=int, default=64, help="tokens a row")
    parser.add_argument("--n-layer", type=int, default=2)
    parser.add_argument("--n-head", type=int, default=4)
    parser.add_argument("--n-embd", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32, help="rows a step of pre-training")
    parser.add_argument("--rate", type=float, default=3e-3, help="the highest learning rate of pre-training")
    parser.add_argument("--labels", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=5, help="draws of labels and weights")
    parser.add_argument("--epochs", type=int, default=10, help="times through the labels in fine-tuning")
    parser.add_argument("--pooling", default="mean", help="how a row's features become one, of both arms")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side, each on a core")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "masked_language_model", help="folder of the runs")
    parser.add_argument("--json", type=Path, nargs="?", const=ROOT / "benchmarks" / "results" / "masked_language_model.json",
                        metavar="FILE", help="write all that was measured to FILE")
    options = parser.parse_args()
    options.data = tuple(options.data)
    return options


# ---- Pre-training ----------------------------------------------------------------------------------------------------

def pretrain(settings: Settings, minutes: float, out: Path, workers: int) -> list[dict[str, Any]]:
    """The runs with a part of the budget, and last that with the whole."""
    common = json.loads(json.dumps(asdict(settings))) | {"minitune": mt.__version__}        # as lines of JSON give it back
    tokens = settings.batch_size * settings.block_size
    with worker_pool(workers) as executor:
        speed = run([common], partial(measure_speed, settings), out / "speed.jsonl", executor)[0]["tokens_per_second"]
        specs = [common | {"minutes": minutes, "share": share, "steps": round(share * minutes * 60 * speed / tokens), "seed": 0}
                 for share in SHARES]
        order = specs[::-1] if workers > 1 else specs       # side by side the longest goes first
        lines = run(order, partial(pretrain_one, settings, out), out / "pretraining.jsonl", executor, "pre-training")
    for line in lines:
        remove_checkpoints(folder_of(out, line))       # only now: each line that says a run has ended is on disk
    return sorted(lines, key=lambda line: line["share"])


def folder_of(out: Path, spec: dict[str, Any]) -> Path:
    return out / f"pretraining-{spec['steps']}-steps"


@cache
def texts_of(settings: Settings) -> tuple[Tokenizer, MaskedSet, MaskedSet]:
    """(tokenizer, rows to train on, rows to measure on, whose masks never change)."""
    sets = [mt.data.load(name) for name in settings.data]
    train, valid = ([text for dataset in sets for text in dataset.splits[name].texts] for name in ("train", "valid"))
    tokenizer = Tokenizer.train(train, settings.vocab_size, masked=True)
    rows, held_out = (MaskedSet.from_texts(texts, tokenizer, settings.block_size) for texts in (train, valid))
    return tokenizer, rows, held_out.split(min(HELD_OUT, len(held_out) - 1))[1]


def trainer_of(settings: Settings, steps: int, seed: int, out: Path | None = None) -> Trainer:
    mt.seed(seed)
    tokenizer, train, valid = texts_of(settings)
    model = MaskedLanguageModel(BERT(BERTConfig(tokenizer.vocab_size, settings.block_size, settings.n_layer, settings.n_head,
                                                settings.n_embd)))
    model.tokenizer = tokenizer
    model.bias.data = np.log(frequencies(settings)).astype(np.float32)      # what is learned first need not be learned
    return Trainer(model, train, valid, steps=steps, lr=settings.rate, batch_size=settings.batch_size, keep_best=False,
                   evaluate_every=max(1, steps // 8), out=out, progress=False)


def measure_speed(settings: Settings, spec: dict[str, Any], steps: int = 40) -> dict[str, float]:
    """Tokens a second of training, the first steps left out, in which libraries are loaded and loops compiled."""
    trainer = trainer_of(settings, steps, seed=0)
    batches = [trainer.train.batch(np.arange(i, i + settings.batch_size)) for i in range(steps)]
    for batch in batches[: steps // 4]:
        trainer.train_step([batch], settings.rate)
    start = perf_counter()
    for batch in batches[steps // 4 :]:
        trainer.train_step([batch], settings.rate)
    return {"tokens_per_second": round(sum(batch.tokens for batch in batches[steps // 4 :]) / (perf_counter() - start))}


def pretrain_one(settings: Settings, out: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """One pre-training from new weights to its last step; the model is saved beside its history."""
    folder, start = folder_of(out, spec), perf_counter()
    trainer = trainer_of(settings, spec["steps"], spec["seed"], folder)
    history = trainer.fit(resume=True)
    trainer.model.save_pretrained(folder / "model")
    return {"tokens": spec["steps"] * settings.batch_size * settings.block_size, "loss": history["valid_loss"][-1],
            "seconds": round(perf_counter() - start, 1), "parameters": trainer.model.num_parameters(),
            "curve": [[row["step"], row["valid_loss"]] for row in history.rows]}


@cache
def frequencies(settings: Settings) -> np.ndarray:
    """(V,) the share of each token in the training texts, one added to every count."""
    tokenizer, train, _ = texts_of(settings)
    counts = 1 + np.bincount(np.concatenate([piece[1:-1] for row in train.rows for piece in row]),
                             minlength=tokenizer.vocab_size)        # between the start and the end token
    return counts / counts.sum()


def loss_of_frequencies(settings: Settings) -> float:
    """The held-out loss of who knows how frequent each token is, and nothing else: where training begins."""
    _, _, valid = texts_of(settings)
    with mt.no_grad():
        targets = valid.batch(np.arange(len(valid))).targets
    return float(-np.log(frequencies(settings))[targets[targets != IGNORE]].mean())


# ---- The law ---------------------------------------------------------------------------------------------------------

def power_law(tokens: np.ndarray, losses: np.ndarray) -> tuple[float, float, float]:
    """(a, b, c) of a + b tokens^-c with the least squared error, a not below 0: c from a grid, a and b by least squares.

    Source of the form: Kaplan et al. 2020, Scaling laws for neural language models, equation 1.2; with a: Hoffmann et al.
    2022, Training compute-optimal large language models, equation 2.
    """
    fits = []
    for c in np.linspace(0.02, 2, 199):
        powers = (tokens / tokens[0]) ** -c
        columns = np.stack([np.ones_like(powers), powers], 1)
        a, b = np.linalg.lstsq(columns, losses, rcond=None)[0]
        if a < 0:
            a, b = 0.0, powers @ losses / (powers @ powers)
        fits.append((float(((columns @ [a, b] - losses) ** 2).sum()), float(a), float(b * tokens[0] ** c), float(c)))
    return min(fits)[1:]


def prediction(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the runs before the last predict for it, and what it gave. The range is what it is where one of them is left out: a
    hint at how much hangs on each, and no interval."""
    tokens, losses = (np.array([line[name] for line in runs[:-1]], float) for name in ("tokens", "loss"))

    def predicted(kept: np.ndarray) -> float:
        a, b, c = power_law(tokens[kept], losses[kept])
        return a + b * runs[-1]["tokens"] ** -c

    every = np.arange(len(tokens))
    without_one = [predicted(np.delete(every, i)) for i in every]
    return {"law": dict(zip("abc", power_law(tokens, losses))), "predicted": predicted(every),
            "range": [min(without_one), max(without_one)], "measured": runs[-1]["loss"], "run_before": runs[-2]["loss"]}


def law_lines(runs: list[dict[str, Any]]) -> list[str]:
    """The table of the runs, and whether the last was as predicted, within NEAR."""
    found = prediction(runs)
    a, b, c = found["law"].values()
    low, high = found["range"]
    return [*(f"{line['tokens']:>12,} tokens, {line['seconds']:>7,.0f} s: loss {line['loss']:.3f}" for line in runs),
            f"predicted from the first {len(runs) - 1}: {a:.3f} + {b:.3g} tokens^-{c:.2f} = {found['predicted']:.3f} "
            f"({low:.3f} to {high:.3f} leaving one out); measured {found['measured']:.3f}, "
            f"{'as predicted' if abs(found['measured'] - found['predicted']) <= NEAR else 'not as predicted'} (within {NEAR})"]


def summary(settings: Settings, pretrained: list[dict[str, Any]], trec: Results) -> dict[str, Any]:
    """All that was measured, and what a reader needs to judge and repeat it."""
    n = trec.sizes[-1]
    differences = {other: trec.difference("full", other, n) for other in trec.methods if other != "full"}
    return {**machine(), "settings": asdict(settings), "citations": [mt.data.load(name).citation for name in settings.data],
            "loss of token frequencies": loss_of_frequencies(settings), "pretraining": pretrained,
            "prediction": prediction(pretrained),
            "trec": {"settings": trec.settings, "errors": {name: trec.error(name, n) for name in trec.methods},
                     "full minus": differences, "compared": trec.compared(), "runs": trec.rows}}


if __name__ == "__main__":
    main()
