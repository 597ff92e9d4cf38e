"""minitune compare: LoRA, full fine-tuning and other methods beside each other, on any data set with labels."""

from __future__ import annotations

import argparse
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..experiments import Comparison, compare
from ..experiments.compare import PROTOCOL, check_general, check_methods
from ..experiments.finetuning import model_folder
from ..experiments.sample_efficiency import check
from ..experiments.tuning_methods import KNOWN, chosen_methods
from .arguments import add_data, natural, numbers, positive, read_data, show_data, words
from .info import warn_of_slow_settings
from .run_folder import begin, finish


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser("compare", help="LoRA against full fine-tuning, on your data",
                                                          description=(
        "Tunes a base with several methods on the same labels, with several seeds and as many steps, each at the rate that did "
        "best on validation. Says which errs less, with intervals, and what each costs: parameters, time, memory, the size of "
        "its file, and what the base forgets of general text. Started again with the same arguments it goes on where it "
        "stopped. It takes hours on larger sets: try --sizes 64 --seeds 1 first."))
    parser.add_argument("base", metavar="BASE", type=Path, help="the pre-trained model's folder, or minitune-base, which comes "
                        "with the package")
    add_data(parser)
    parser.add_argument("--methods", type=words, default=("full", "lora"), metavar="A,B,...",
                        help=f"of {', '.join(KNOWN)} (default: full,lora)")
    parser.add_argument("--sizes", type=numbers, default=PROTOCOL.sizes, metavar="N,N,...",
                        help=f"label counts (default: {','.join(map(str, PROTOCOL.sizes))})")
    parser.add_argument("--seeds", type=positive, default=len(PROTOCOL.seeds), metavar="N",
                        help=f"how many (default: {len(PROTOCOL.seeds)})")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="the first of them (default: 0)")
    parser.add_argument("--block-size", type=positive, metavar="N", help="cut texts after so many tokens (default: where the "
                        "base does); what is shorter trains faster")
    parser.add_argument("--general", metavar="TEXT", help="a file, or a data set's name, of texts on which forgetting is "
                        "measured (default: docstrings of Python's library)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), metavar="DIR",
                        help="where results go (default: runs/compare)")
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="runs side by side, a process each, "
                        "which slow each other (default: 1, for times to rely on)")
    parser.set_defaults(run=run)


def run(options: Any) -> None:
    """Reads, runs the comparison, shows it."""
    recipes = chosen_methods(options.methods)
    warn_of_slow_settings()
    dataset = read_data(options)
    show_data(dataset)
    protocol = replace(PROTOCOL, sizes=options.sizes, block_size=options.block_size, sweep_seeds=(options.seed,),
                       seeds=tuple(range(options.seed, options.seed + options.seeds)))
    check(dataset, replace(protocol, rates=dict.fromkeys(recipes, ())), list(recipes), "compare")
    base, general = model_folder(options.base), general_texts(options)
    check_general(dataset, base, general)
    check_methods(dataset, base, recipes, protocol)
    if find_spec("matplotlib") is None:
        raise ImportError('compare draws its results: pip install "minitune[plots]"')
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out} is a file; give a folder")
    begin(options)
    found = compare(dataset, base, options.methods, options.out, protocol, general=general, workers=options.workers)
    show(found, options.out)
    finish(options.out, dataset, {"sentences": [found.sentence(labels=n) for n in found.sizes]})
    print(f"\n{found.sentence()}")


def general_texts(options: Any) -> list[str] | None:
    """The texts that --general names, those of a validation split where there is one."""
    if options.general is None:
        return None
    asked = {"data": options.general, "text": None, "label": None, "labels": None, "kind": "text", "valid": 0.0, "test": 0.0}
    splits: dict[str, Any] = dict(read_data(argparse.Namespace(**{**vars(options), **asked})).splits)
    return list(splits.get("valid", next(iter(splits.values()))).texts)


def show(found: Comparison, out: Path) -> None:
    """Prints the tables; writes comparison.json and the plots."""
    print(f"\n{found.table()}\n\n{found.rates()}")
    if beside := found.beside_papers():
        print(f"\n{beside}")
    found.to_json(out / "comparison.json")
    found.plot(out)
    print(f"\nPlots: {', '.join(sorted(file.name for file in out.glob('*_against_*.png')))} in {out}")
