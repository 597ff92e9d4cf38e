"""minitune sample-efficiency: how many labels is pre-training worth, on any data set with labels."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..experiments import Protocol, sample_efficiency
from ..experiments.finetuning import DEFAULT_BASE, model_folder
from ..experiments.sample_efficiency import METHODS, check
from .arguments import add_data, natural, numbers, positive, read_data, show_data, words
from .demo import check_before_work, show_results
from .info import warn_of_slow_settings
from .run_folder import begin, finish


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser("sample-efficiency", help="what pre-training is worth, in labels",
                                                          description=(
        "Trains classifiers on few labels from scratch and from a pre-trained model, with several seeds, and says how many "
        "labels pre-training is worth, with intervals, beside the plain baseline. Started again with the same arguments it "
        "goes on where it stopped. It takes hours on larger sets: try few sizes and --seeds 1 first."))
    add_data(parser)
    protocol = Protocol()
    parser.add_argument("--base", type=Path, default=Path(DEFAULT_BASE), metavar="DIR", help="the pre-trained model "
                        f"(default: {DEFAULT_BASE}, which comes with the package)")
    parser.add_argument("--out", type=Path, default=Path("runs/sample-efficiency"), metavar="DIR",
                        help="where results go (default: runs/sample-efficiency)")
    parser.add_argument("--sizes", type=numbers, default=protocol.sizes, metavar="N,N,...", help="label counts for every "
                        f"method (default: {','.join(map(str, protocol.sizes))})")
    parser.add_argument("--scratch-sizes", type=numbers, default=(), metavar="N,N,...",
                        help="further label counts for scratch and the baseline alone")
    parser.add_argument("--methods", type=words, default=tuple(METHODS), metavar="A,B,...",
                        help=f"default: {','.join(METHODS)}")
    parser.add_argument("--seeds", type=positive, default=len(protocol.seeds), metavar="N", help="how many (default: "
                        f"{len(protocol.seeds)})")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="the first of them (default: 0)")
    parser.add_argument("--workers", type=positive, default=min(2, os.cpu_count() or 1), metavar="N",
                        help="runs side by side, a process each (default: 2, or 1 on a single core)")
    parser.set_defaults(run=run)


def run(options: Any) -> None:
    """Reads, runs the experiment, shows the results."""
    unknown = [name for name in options.methods if name not in METHODS]
    if unknown:
        raise ValueError(f"--methods: there is no {unknown[0]!r}; there are {', '.join(METHODS)}")
    warn_of_slow_settings()
    dataset = read_data(options)
    show_data(dataset)
    protocol = replace(Protocol(), sizes=options.sizes, scratch_sizes=options.scratch_sizes, sweep_seeds=(options.seed,),
                       seeds=tuple(range(options.seed, options.seed + options.seeds)))
    check(dataset, protocol, options.methods)
    check_before_work(options.out)
    base = model_folder(options.base)
    begin(options)
    methods = {name: METHODS[name] for name in options.methods}
    results = sample_efficiency(dataset, base, options.out, protocol, methods, workers=options.workers)
    show_results(results, options.out)
    finish(options.out, dataset, {"sentence": results.sentence(), "compared": results.compared()})
    print(f"\n{results.sentence()}")
