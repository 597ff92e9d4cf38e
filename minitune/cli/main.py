"""main: reads the arguments, runs a command, turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from . import compare, data, demo, evaluate, finetune, generate, info, plan, predict, pretrain, sample_efficiency
from .run_folder import RECORD

COMMANDS = (demo, pretrain, finetune, evaluate, predict, generate, sample_efficiency, compare, plan, data, info)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 2 for what could not be done, 130 when interrupted."""
    options = make_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)       # a polite kill ends the workers too, like Ctrl-C
    try:
        options.run(options)
    except (ValueError, OSError, ImportError, RuntimeError, ArithmeticError, KeyError) as error:
        reason = error.args[0] if isinstance(error, KeyError) else error       # a KeyError shows its message in quotes
        print(f"minitune {options.command}: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        command = f"minitune {options.command}"
        begun = hasattr(options, "resume") and (options.out / RECORD).exists()
        device = "" if getattr(options, "device", "cpu") == "cpu" else f" --device {options.device}"
        again = f"{command} --resume --out {options.out}{device}" if begun else "the same command"
        print(f"\n{command}: interrupted. What is finished is kept: {again} goes on from there.", file=sys.stderr)
        return 130
    return 0


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="minitune", description="Transfer learning from scratch: pre-train a small language model, "
                    "fine-tune it on data of your own, use it, and see what pre-training is worth.")
    parser.add_argument("--version", action="version", version=f"minitune {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_command(commands)
    return parser
