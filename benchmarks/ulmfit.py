"""The sample-efficiency curve of ULMFiT on real data: labels alone and with all unlabelled texts, beside scratch and TF-IDF.

    MINITUNE_DATA=... python benchmarks/ulmfit.py trec          # or ag_news_22k, or imdb: hours on 2 cores

The small grid: the first 5,000 test texts, 256 tokens of each text, 5 seeds up to 200 labels, 3 up to 1,000, 1 above.
Writes benchmarks/results/ulmfit_NAME.json, docs/images/ulmfit_NAME.png and the data set's part of docs/ulmfit.md. Stopped and
started again, it goes on; with --methods it runs some of them, and those of a later call join them.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from measure import DROPPED, ROOT

for name in DROPPED:                            # before NumPy: an inherited choice of kernels halves its matrix products
    os.environ.pop(name, None)

import minitune as mt
from minitune.data import Dataset
from minitune.experiments import ULMFIT, Protocol, sample_efficiency
from minitune.experiments.results import BASELINE

MEASURED_ON = {"test": 5000, "valid": 500}
SIZES = {"trec": ((100, 200, 500, 1000), (2000, 4800)), "ag_news_22k": ((100, 200, 500, 1000), (2000, 5000, 10000)),
         "imdb": ((100, 200, 500, 1000), (2000, 5000, 10000))}
RATES = {"scratch": (3e-4, 1e-3, 3e-3)} | dict.fromkeys(("supervised", "semi-supervised"), (1e-3, 3e-3, 1e-2))


def main() -> None:
    options = parse()
    dataset = cut(mt.data.load(options.data))
    chosen = {name: recipe for name, recipe in ULMFIT.items() if name in options.methods}
    results = sample_efficiency(dataset, options.base, options.out or ROOT / "runs" / f"ulmfit-{options.data}",
                                small(options.data), chosen, baseline=BASELINE in options.methods, workers=options.workers)
    print(results.table())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=SIZES)
    parser.add_argument("--base", type=Path, required=True, help="folder of the pre-trained model")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/ulmfit-NAME)")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=[*ULMFIT, BASELINE], metavar="A,B,...")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    return parser.parse_args()


def cut(dataset: Dataset) -> Dataset:
    """The data set with fewer texts to measure on: the first of each split, whose order is random."""
    few = {name: split.subset(range(min(limit, len(split)))) for name, limit in MEASURED_ON.items()
           for split in [dataset.splits[name]]}
    return replace(dataset, splits=dataset.splits | few)


def small(name: str) -> Protocol:
    """The grid for two cores."""
    sizes, scratch_sizes = SIZES[name]
    return Protocol(sizes=sizes, scratch_sizes=scratch_sizes, seeds=(0, 1, 2, 3, 4), fewer_seeds=((200, 3), (1000, 1)),
                    sweep_at=(500,), block_size=256, epochs=6, most_steps=800, evaluations=4, patience=3, trace_memory=False,
                    rates=RATES)


if __name__ == "__main__":
    main()
