"""minitune pretrain: a tokenizer and a small GPT from texts."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from typing import Any

from ..data import Dataset
from ..experiments import Pretraining, pretrain
from ..formats.folder import write_text
from ..models import GPT
from .arguments import add_data, add_device, natural, positive
from .evaluate import draw_history
from .model_card import model_card
from .run_folder import add_run, begin, finish, open_run

SIZES = {"steps": "steps of the optimizer", "n_layer": "layers", "n_head": "heads", "n_embd": "channels",
         "vocab_size": "tokens of the vocabulary, at most", "block_size": "tokens of a row, the longest context",
         "batch_size": "rows of a step"}


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser("pretrain", help="a language model from texts", description=(
        "Trains a tokenizer and a small GPT on texts, and keeps the weights that predict held-out text best. The model is the "
        "base that finetune starts from, and generate writes with it."))
    add_data(parser, optional=True)
    add_run(parser, "runs/pretrain")
    defaults = {field.name: field.default for field in fields(Pretraining)}
    for name, meaning in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=positive, default=defaults[name], metavar="N",
                            help=f"{meaning} (default: {defaults[name]})")
    parser.add_argument("--lr", type=float, default=defaults["lr"], metavar="RATE", help=f"default: {defaults['lr']}")
    parser.add_argument("--seed", type=natural, default=0, metavar="N")
    parser.add_argument("--backward", action="store_true",
                        help="read every text from its end: the second model of a pair for experiments.ulmfit")
    add_device(parser)
    parser.set_defaults(run=run)


def run(options: Any) -> None:
    """Reads, pre-trains, records."""
    options, dataset = open_run(options)
    if not options.resume:
        begin(options)
    settings = Pretraining(**{name: getattr(options, name) for name in (*SIZES, "lr", "seed", "backward")})
    folder = options.out / "model"
    model = pretrain(dataset, folder, settings, out=options.out, device=options.device, dtype=options.dtype)
    results = json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))
    perplexity = results["perplexity"]
    print(f"\nPre-trained: {model}\nPerplexity on held-out text: {perplexity:.1f}")
    draw_history(options.out, f"pre-training on {dataset.name}")
    finish(options.out, dataset, results)
    write_text(folder / "README.md", _card(dataset, model, settings, perplexity))
    print(f"\nThe model is in {folder}. Go on with\n"
          f"  minitune generate {options.out} \"Once\"\n  minitune finetune DATA --base {options.out}")


def _card(dataset: Dataset, model: GPT, settings: Pretraining, perplexity: float) -> str:
    facts = {"model": f"GPT, {model.num_parameters():,} parameters", "settings": settings}
    use = 'import minitune as mt\n\ngpt = mt.models.from_pretrained("model")\nprint(gpt.generate("Once"))'
    return model_card(f"A language model of {dataset.name}", dataset, facts,
                      f"perplexity on held-out text: {perplexity:.2f}", use)
