"""A run's folder: run.json (what was asked and what came out), history, plots, checkpoints, and model/ with its card."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..data import Dataset
from ..formats.folder import write_text
from ..train.checkpoint import checkpoints
from .arguments import check_device, read_data, show_data
from .info import warn_of_slow_settings

RECORD = "run.json"
NOT_ASKED = ("run", "command", "resume", "out", "device")       # of the arguments: they do not say what a run makes


def add_run(parser: argparse.ArgumentParser, out: str) -> None:
    """--out and --resume."""
    parser.add_argument("--out", type=Path, default=Path(out), metavar="DIR", help=f"the run's folder (default: {out})")
    parser.add_argument("--resume", action="store_true",
                        help="go on with the interrupted run in --out; all but --device is read from there")


def open_run(options: Any) -> tuple[Any, Dataset]:
    """What is asked for, and the data, read and shown. Nothing is written yet: `begin` does that once the base is read.

    With --resume, what was asked when the run was begun, on the device that is asked for now. Raises ValueError where --out is
    a file, holds results already, or nothing to resume, and as `check_device` does.
    """
    options = _asked(options)
    check_device(options)
    warn_of_slow_settings()
    dataset = read_data(options)
    show_data(dataset)
    return options, dataset


def _asked(options: Any) -> Any:
    """What is asked for; with --resume, what was asked when the run was begun."""
    out, record = options.out, read_record(options.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    if options.resume:
        if options.data is not None:
            raise ValueError("--resume reads everything from the run's folder. Leave DATA and all options but --device out")
        if record is None or record["command"] != options.command:
            raise ValueError(f"--out {out} holds no {options.command} to resume")
        return argparse.Namespace(**{**vars(options), **record["arguments"], "resume": True})
    if record is not None and ((out / "model").exists() or checkpoints(out)):
        raise ValueError(f"--out {out} holds a run already: {record['command']} of {record['arguments'].get('data')}. Go on "
                         "with it by --resume, or give another --out")
    if options.data is None:
        raise ValueError("expected DATA: a file, a folder or the name of a data set")
    return options


def begin(options: Any) -> None:
    """Makes a new run's folder and writes down what was asked, once data and base have been read without an error.

    Raises ValueError where the folder holds a run of another command.
    """
    record = read_record(options.out)
    if record is not None and record["command"] != options.command:
        raise ValueError(f"--out {options.out} holds a run of {record['command']}. Give another --out")
    arguments = {name: value for name, value in vars(options).items() if name not in NOT_ASKED}
    write_record(options.out, {"command": options.command, "arguments": arguments, "minitune": __version__,
                               "python": platform.python_version(), "numpy": np.__version__})


def read_record(folder: Path) -> dict[str, Any] | None:
    """run.json of a run's folder, or None where there is none."""
    file = folder / RECORD
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as damage:
        raise ValueError(f"{file}: not valid JSON ({damage})") from damage


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes run.json, whole or not at all."""
    write_text(folder / RECORD, json.dumps(record, indent=1, default=str) + "\n")


def finish(folder: Path, dataset: Dataset, results: dict[str, Any]) -> dict[str, Any]:
    """Adds the data and what came out to run.json, and returns it."""
    record = read_record(folder) or {}
    about = {"name": dataset.name, "kind": dataset.kind, "labels": dataset.labels, "fingerprint": dataset.fingerprint,
             "rows": {name: len(split) for name, split in dataset.splits.items()}, "notes": dataset.notes}
    if dataset.kind == "completion":
        prompts = [example.text[: example.supervised[0][0]] for example in dataset.train.examples]
        about["prompts_end_with"] = "\n" if all(prompt.endswith("\n") for prompt in prompts) else ""
    record |= {"data": about, "results": results}
    write_record(folder, record)
    return record
