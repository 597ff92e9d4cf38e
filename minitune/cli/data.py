"""minitune data: what a data set holds, as a model will read it, before anything is trained."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from ..data import Dataset
from ..data.example_set import ExampleSet
from ..experiments.finetuning import as_set, base_model, cut_note
from ..formats.folder import write_text
from ..show import mask
from .arguments import add_data, read_data, show_data


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser("data", help="look at data before training", description=(
        "Shows what DATA holds: its kind, columns, splits, labels, duplicates. With --base, how long the texts are in tokens, "
        "and which tokens of the first example are learned. With --out, writes the splits as .jsonl."))
    add_data(parser)
    parser.add_argument("--base", type=Path, metavar="DIR", help="a model whose tokens to count")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a folder for train.jsonl, valid.jsonl, test.jsonl")
    parser.set_defaults(run=run)


def run(options: Any) -> None:
    """Reads and shows."""
    dataset = read_data(options)
    show_data(dataset)
    for name, split in dataset.splits.items():
        if dataset.labels and split.labels is not None:
            counts = Counter(split.labels.tolist())
            print(f"  {name:6} " + ", ".join(f"{label} {counts[i]:,}" for i, label in enumerate(dataset.labels)))
    if options.base:
        _show_tokens(dataset, options.base)
    if options.out:
        _write(dataset, options.out)


def _show_tokens(dataset: Dataset, base: Path) -> None:
    gpt = base_model(base)
    assert gpt.tokenizer is not None
    size = gpt.config.block_size
    rows = as_set(dataset.train, dataset.kind, gpt.tokenizer, size, gpt.causal)
    if isinstance(rows, ExampleSet):
        lengths = sorted(rows.lengths)
    else:
        lengths = sorted(len(ids) + 1 for ids in gpt.tokenizer.encode_batch(dataset.train.texts))      # and the end token
    print(f"  tokens of a text: median {lengths[len(lengths) // 2]:,}, longest {lengths[-1]:,}"
          + (f"; {cut_note(rows, len(dataset.train), size)}" if cut_note(rows, len(dataset.train), size) else ""))
    if isinstance(rows, ExampleSet):
        print(f"  {len(dataset.train):,} examples are packed into {len(rows):,} rows; the first row:\n\n{mask(rows.view(0))}")


def _write(dataset: Dataset, out: Path) -> None:
    """Each split as JSON lines that `read` takes."""
    if dataset.kind not in ("classification", "text"):
        raise ValueError(f"--out writes texts with or without labels, not data of kind {dataset.kind!r}")
    there = [name for name in dataset.splits if (out / f"{name}.jsonl").exists()]
    if there:
        raise ValueError(f"--out {out} holds {there[0]}.jsonl already. Give another folder")
    for name, split in dataset.splits.items():
        rows = ({"text": text} if split.labels is None else {"text": text, "label": dataset.labels[split.labels[i]]}
                for i, text in enumerate(split.texts))         # type: ignore[union-attr]
        write_text(out / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"  written to {out}: {', '.join(f'{name}.jsonl' for name in dataset.splits)}")
