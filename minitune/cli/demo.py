"""minitune demo: the main job."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from .. import tune
from ..data import Dataset, load
from ..experiments import Pretraining, Protocol, Results, pretrain, sample_efficiency
from ..experiments.sample_efficiency import METHODS, as_recipes
from ..models import Classifier, from_pretrained
from .arguments import natural, positive
from .info import warn_of_slow_settings

DEMO_PRETRAINING = Pretraining(block_size=64, batch_size=32, steps=900)
DEMO = Protocol(sizes=(16, 64, 256), sweep_at=(64,), longest=2, evaluations=6, patience=3,
                rates={"scratch": (1e-3, 3e-3, 1e-2), "frozen": (3e-3, 1e-2, 3e-2), "full": (3e-4, 1e-3, 3e-3),
                       "lora": (3e-3, 1e-2, 3e-2)})
QUICK_PRETRAINING = replace(DEMO_PRETRAINING, steps=150)
QUICK = Protocol(sizes=(16, 64), seeds=(0, 1), sweep_at=(64,), longest=1, epochs=7, evaluations=3, patience=3, least_steps=30,
                 rates={"scratch": (3e-3,), "frozen": (1e-2,), "full": (1e-3,), "lora": (1e-2,)})


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser("demo", help="the main job, in four to eight minutes", description=(
        "Pre-trains a small GPT on English that your Python carries with it (its manual and docstrings), then trains "
        "classifiers on 16, 64 and 256 labels in four ways: from scratch, only a new head (frozen), every weight (full), "
        "and low-rank adapters (lora). Shows a table, a plot and what pre-training is worth in labels. All of it is done "
        "before your eyes: it does not start from minitune-base, the larger model that comes with the package. Started again "
        "with the same --out, it goes on where it stopped."))
    parser.add_argument("--quick", action="store_true", help="a smaller run of about a minute; its figures are rough")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results.jsonl, sample_efficiency.png and model/ go "
                      "(default: runs/demo, runs/demo-quick, runs/demo-NAME)")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="the first of the seeds (default: 0)")
    parser.add_argument("--data", default="pydocs", metavar="NAME",
                      help="pydocs (default, needs no file), ag_news_22k, imdb, sst2 or trec (files in $MINITUNE_DATA)")
    parser.add_argument("--workers", type=positive, default=min(2, os.cpu_count() or 1), metavar="N",
                      help="runs side by side, a process each (default: 2, or 1 on a single core)")
    parser.set_defaults(run=run)


def run(options: Any) -> None:
    """Pre-training, fine-tuning, table, plot, sentence."""
    start = perf_counter()
    pretraining, protocol = (QUICK_PRETRAINING, QUICK) if options.quick else (DEMO_PRETRAINING, DEMO)
    out = options.out or default_out(options)
    protocol = replace(protocol, seeds=tuple(options.seed + seed for seed in protocol.seeds), sweep_seeds=(options.seed,))
    check_before_work(out)
    warn_of_slow_settings()
    dataset = load(options.data)
    print(f"Texts: {dataset}\nBase: made here, from these texts; minitune-base, which comes with the package, is not used")
    folder = out / "model"
    gpt = pretrain(dataset, folder, replace(pretraining, seed=options.seed))
    print(f"Pre-trained: {gpt}\n")
    _show_methods(dataset, folder, protocol)
    results = sample_efficiency(dataset, folder, out, protocol, workers=options.workers)
    show_results(results, out)
    print(f"\n{out / 'sample_efficiency.png'} shows the curve. {perf_counter() - start:.0f} s in all.")
    print(f"\n{results.sentence()}")


def default_out(options: Any) -> Path:
    """The folder where a demo goes unless told."""
    name = "demo" + ("-quick" if options.quick else "") + ("" if options.data == "pydocs" else f"-{options.data}")
    return Path("runs") / name


def check_before_work(out: Path) -> None:
    """What would fail after minutes of training fails now."""
    for package, name in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        if find_spec(package) is None:
            raise ImportError(f'the demo needs {name}: pip install "minitune[demo]"')
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)


def _show_methods(dataset: Dataset, folder: Path, protocol: Protocol) -> None:
    """What each method trains."""
    print("What trains:")
    for name, recipe in as_recipes(METHODS).items():
        report = tune.apply(Classifier(from_pretrained(folder), dataset.labels, protocol.pooling), recipe.method)
        print(f"  {name:8} {report.trainable:10,} of {report.total:,} parameters ({report.trainable / report.total:.2%})")
    print()


def show_results(results: Results, out: Path) -> None:
    """Prints table and comparison; writes sample_efficiency.png and results.json."""
    print(f"\n{results.table()}\n")
    print("\n".join(results.compared()))
    results.to_json(out / "results.json")
    results.plot(out / "sample_efficiency.png")
