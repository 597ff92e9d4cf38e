"""minitune plan: how much memory a fine-tuning takes and how long a step, before it is begun."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..experiments import Plan, plan
from ..experiments.plan import PLANNED
from ..formats.folder import write_text
from .arguments import positive, words
from .info import warn_of_slow_settings


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser("plan", help="memory and time of a step, before a run", description=(
        "Says how much memory a training step takes, what it goes to, and how long the step is, for one method or for several. "
        "The model's memory is not needed for that. The first time, this machine is measured for some ten seconds."))
    parser.add_argument("base", metavar="BASE", help="the folder of a model or a run, or a model that comes with the package")
    parser.add_argument("--method", type=words, default=("full",), metavar="A,B,...", help=f"one or several of "
                        f"{', '.join(PLANNED)} (default: full)")
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="rows read at once (default: 16)")
    parser.add_argument("--block-size", type=positive, metavar="N", help="tokens of a row (default: all that the model reads)")
    parser.add_argument("--labels", type=positive, metavar="N", help="classes of a classifier (default: a language model)")
    parser.add_argument("--no-time", action="store_true", help="memory alone: nothing is measured")
    parser.add_argument("--measure", action="store_true", help="make a few steps too, and compare")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.set_defaults(run=run)


def run(options: Any) -> None:
    """Plans each method, prints it, and beside each other if there are several."""
    if not options.no_time:
        warn_of_slow_settings()
    plans = []
    for method in options.method:
        found = plan(options.base, method, options.batch_size, options.block_size, labels=options.labels,
                     rates=not options.no_time)
        if options.measure:
            found.measure()
        print(f"{found}\n")
        plans.append(found)
    if len(plans) > 1:
        print(compared(plans))
    if options.json:
        write_text(options.json, json.dumps([found.row() for found in plans], indent=1) + "\n")


def compared(plans: list[Plan]) -> str:
    """A line a method."""
    lines = [f"{'method':10}{'trained':>14}{'weights':>12}{'moments':>12}{'gradients':>12}{'activations':>13}{'peak MB':>12}"
             f"{'ms a step':>12}"]
    for found in plans:
        sizes = (found.weights, found.moments, found.gradients)
        seconds = "" if found.seconds is None else f"{1000 * found.seconds:,.1f}"
        lines.append(f"{found.method:10}{found.trainable:14,}" + "".join(f"{n / 2**20:12,.1f}" for n in sizes)
                     + f"{found.activations / 2**20:13,.1f}{found.peak / 2**20:12,.1f}{seconds:>12}")
    return "\n".join(lines)
