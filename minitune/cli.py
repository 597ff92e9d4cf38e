"""The `minitune` command."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import NoReturn

import numpy as np

from . import __version__, backend, tune
from .data import Dataset, load
from .experiments import Pretraining, Protocol, Results, pretrain, sample_efficiency
from .experiments.runner import RunFailed
from .experiments.sample_efficiency import METHODS
from .models import Classifier, from_pretrained

DEMO_PRETRAINING = Pretraining(block_size=64, batch_size=32, steps=900)
DEMO = Protocol(sizes=(16, 64, 256), sweep_at=64, longest=2, evaluations=6, patience=3,
                rates={"scratch": (1e-3, 3e-3, 1e-2), "frozen": (3e-3, 1e-2, 3e-2), "full": (3e-4, 1e-3, 3e-3),
                       "lora": (3e-3, 1e-2, 3e-2)})
QUICK_PRETRAINING = replace(DEMO_PRETRAINING, steps=150)
QUICK = Protocol(sizes=(16, 64), seeds=(0, 1), sweep_at=64, longest=1, epochs=7, evaluations=3, patience=3, least_steps=30,
                 rates={"scratch": (3e-3,), "frozen": (1e-2,), "full": (1e-3,), "lora": (1e-2,)})


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 2 for wrong input, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)       # a polite kill ends the workers too, like Ctrl-C
    try:
        options.run(options)
    except (ValueError, OSError, ImportError, RunFailed) as error:
        print(f"minitune {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nminitune {options.command}: interrupted. What is finished is kept: the same command goes on from there.",
              file=sys.stderr)
        return 130
    return 0


def _parser() -> Parser:
    parser = Parser(prog="minitune", description="Transfer learning from scratch: pre-train a small language model, "
                    "fine-tune it on few labels, and see what pre-training is worth.")
    parser.add_argument("--version", action="version", version=f"minitune {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the main job, in about four minutes", description=(
        "Pre-trains a small GPT on English that your Python carries with it (its manual and docstrings), then trains "
        "classifiers on 16, 64 and 256 labels in four ways: from scratch, only a new head (frozen), every weight (full), "
        "and low-rank adapters (lora). Shows a table, a plot and what pre-training is worth in labels. Started again "
        "with the same --out, it goes on where it stopped."))
    demo.add_argument("--quick", action="store_true", help="a smaller run that ends within a minute; its figures are rough")
    demo.add_argument("--out", type=Path, metavar="DIR", help="where results.jsonl, sample_efficiency.png and model/ go "
                      "(default: runs/demo, runs/demo-quick, runs/demo-NAME)")
    demo.add_argument("--seed", type=_seed, default=0, metavar="N", help="the first of the seeds (default: 0)")
    demo.add_argument("--data", default="pydocs", metavar="NAME",
                      help="pydocs (default, needs no file), ag_news_22k or imdb (files in $MINITUNE_DATA)")
    demo.add_argument("--workers", type=_workers, default=min(2, os.cpu_count() or 1), metavar="N",
                      help="runs side by side, a process each (default: 2, or 1 on a single core)")
    demo.set_defaults(run=run_demo)

    info = commands.add_parser("info", help="versions, cores, BLAS, compiled twins, data sets",
                               description="Shows what minitune found on this machine, and what would make it faster.")
    info.set_defaults(run=run_info)
    return parser


def _seed(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def _workers(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


# ---- minitune demo -----------------------------------------------------------------------------------------------

def run_demo(options: argparse.Namespace) -> None:
    """Pre-training, fine-tuning, table, plot, sentence."""
    start = perf_counter()
    pretraining, protocol = (QUICK_PRETRAINING, QUICK) if options.quick else (DEMO_PRETRAINING, DEMO)
    out = options.out or _default_out(options)
    protocol = replace(protocol, seeds=tuple(options.seed + seed for seed in protocol.seeds), sweep_seeds=(options.seed,))
    _check_before_work(out)
    _warn_of_slow_settings()
    dataset = load(options.data)
    print(f"Texts: {dataset}")
    folder = out / "model"
    gpt = pretrain(dataset, folder, replace(pretraining, seed=options.seed))
    print(f"Pre-trained: {gpt}\n")
    _show_methods(dataset, folder, protocol)
    results = sample_efficiency(dataset, folder, out, protocol, workers=options.workers)
    show_results(results, out)
    print(f"\n{out / 'sample_efficiency.png'} shows the curve. {perf_counter() - start:.0f} s in all.")
    print(f"\n{results.sentence()}")


def _default_out(options: argparse.Namespace) -> Path:
    name = "demo" + ("-quick" if options.quick else "") + ("" if options.data == "pydocs" else f"-{options.data}")
    return Path("runs") / name


def _check_before_work(out: Path) -> None:
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
    for name, method in METHODS.items():
        report = tune.apply(Classifier(from_pretrained(folder), dataset.labels, protocol.pooling), method)  # type: ignore
        print(f"  {name:8} {report.trainable:10,} of {report.total:,} parameters ({report.trainable / report.total:.2%})")
    print()


def show_results(results: Results, out: Path) -> None:
    """Prints table and comparison; writes sample_efficiency.png and results.json."""
    print(f"\n{results.table()}\n")
    print("\n".join(results.compared()))
    results.to_json(out / "results.json")
    results.plot(out / "sample_efficiency.png")


# ---- minitune info -----------------------------------------------------------------------------------------------

def run_info(options: argparse.Namespace) -> None:
    """Prints what was found, then what to mend."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]       # type: ignore[call-overload,index]
    rows = {"minitune": __version__, "Python": f"{platform.python_version()} on {platform.platform()}",
            "cores": str(os.cpu_count()), "BLAS": f"{blas['name']} {blas['version']}"}
    for package in ("numpy", "tokenizers", "safetensors", "numba", "cupy", "matplotlib", "scikit-learn"):
        rows[package] = _version(package)
    gelu = backend.twin("cpu", "elementwise", "gelu")
    rows["CPU twins"] = "compiled by numba" if gelu else 'none: the references run. pip install "minitune[fast]"'
    folder = os.environ.get("MINITUNE_DATA")
    rows["MINITUNE_DATA"] = folder or "not set (pydocs needs no files)"
    for name, value in rows.items():
        print(f"{name:14} {value}")
    _warn_of_slow_settings()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _warn_of_slow_settings() -> None:
    kernels = os.environ.get("OPENBLAS_CORETYPE")
    if kernels:
        print(f"Note: OPENBLAS_CORETYPE={kernels} is set, which keeps NumPy from choosing the fastest matrix products for "
              "this processor. Unset it unless you need it.")


if __name__ == "__main__":
    sys.exit(main())
