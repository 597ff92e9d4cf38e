"""How well does an AWD-LSTM model WikiText-2 after minutes on a CPU? Perplexity per token, and per word as papers give it.

    MINITUNE_DATA=... python benchmarks/awd_lstm.py --json          # 35 minutes of training, then some of measuring

Trains on the training articles as byte-pair tokens, with a linear rate and the best of some evaluations kept, on the first part
of the validation text; then reads all of the validation and of the test text once, in 16 lanes side by side, the state carried
along. For trials there is --no-test. --minutes says how long to train: the
first start times a few steps and writes into --out how many that makes. Stopped and started again, it goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from math import exp
from pathlib import Path
from statistics import median
from typing import Any

from measure import DROPPED, ROOT, Row, machine, time_steps

for name in DROPPED:                            # before NumPy: an inherited choice of kernels halves its matrix products
    os.environ.pop(name, None)

import numpy as np

import minitune as mt
from minitune.cores import keep_large_blocks
from minitune.data import Batch, LanguageModelSet, Tokenizer
from minitune.formats.folder import write_text
from minitune.models import AWDLSTM, AWDLSTMConfig
from minitune.optim import AdamW, groups_of
from minitune.train import Trainer

RESULTS = ROOT / "benchmarks" / "results" / "awd_lstm.json"
WORDS = {"valid": 217_646, "test": 245_569}     # with an <eos> a line, as published
PUBLISHED = {                                   # perplexity per word of (validation, test)
    "AWD-LSTM, 3 layers of 1150, 33 million weights, 750 epochs (Merity, Keskar and Socher 2017, table 2)": (68.6, 65.8)}
COMPARABLE = ("Comparable: the text, the whole of it, and the number of words and line ends that the nats are divided by. Not "
              "comparable: a published model chooses among the 33,278 words of the text; one of parts of words has to spell "
              "them, <unk> too, and gives a share of its probability to words that never come. The published training read its "
              "text 750 times and carried the state from row to row; here each row is begun anew.")
SHARE = 0.92                                    # of the minutes, for training steps; the rest for its evaluations


def main() -> None:
    options = options_of()
    settings = {name: value
                for name, value in vars(options).items() if name not in ("minutes", "steps", "out", "json", "no_test")}
    data = Data(settings)
    steps = planned(options, settings, data)
    mt.seed(settings["seed"])
    model = build(settings, data.tokenizer)
    trainer = trainer_of(model, data, steps, settings, options.out)
    try:
        trainer.fit(resume=True)
    except KeyboardInterrupt:
        sys.exit(f"stopped after step {trainer.step} of {steps}; started again, it goes on from there")
    rows = [{"split": split} | measure(model, data, split) for split in ("valid", "test")[: 1 if options.no_test else 2]]
    whole = machine() | {"settings": settings, "config": asdict(model.config), "parameters": model.num_parameters(),
                         "steps": steps, **about(trainer, data, settings), "rows": rows, "published": PUBLISHED,
                         "comparable": COMPARABLE, "curve": trainer.history.rows}
    for row in rows:
        print(f"{row['split']}: perplexity {row['perplexity_per_token']:.1f} per token ({row['tokens']:,}), "
              f"{row['perplexity_per_word']:.1f} per word ({row['words']:,})")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.json, json.dumps(whole, indent=1) + "\n")


def options_of() -> argparse.Namespace:
    """What the user asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=35, metavar="M", help="how long to train, about (default: 35)")
    parser.add_argument("--steps", type=int, metavar="N", help="train so many steps instead")
    sizes = {"vocab_size": 8192, "n_embd": 256, "n_hidden": 512, "n_layer": 2, "batch_size": 16, "length": 128, "seed": 0}
    for name, value in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, metavar="N", help=f"default: {value}")
    parser.add_argument("--lr", type=float, default=6e-3, metavar="RATE", help="the highest learning rate (default: 0.006)")
    parser.add_argument("--regularization", type=float, default=0.2, metavar="SHARE",
                        help="of the paper's dropouts and penalties, which are for hundreds of epochs (default: 0.2)")
    parser.add_argument("--articles", type=int, metavar="N", help="use only the first N articles of each split: to try it out")
    parser.add_argument("--no-test", action="store_true", help="leave the test text alone: for trials")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "awd_lstm", metavar="DIR", help="folder of the run")
    parser.add_argument("--json", type=Path, nargs="?", const=RESULTS, metavar="FILE",
                        help=f"write all that was measured to FILE (default: benchmarks/results/{RESULTS.name})")
    options = parser.parse_args()
    if (options.articles or options.no_test) and options.json and options.json.resolve() == RESULTS:
        parser.error("--articles and --no-test are for trials: give --json a FILE elsewhere")
    return options


class Data:
    """WikiText-2: each split as one text, and as one stream of tokens."""

    def __init__(self, settings: Row) -> None:
        dataset = mt.data.load("wikitext2")
        articles = {name: split.texts[: settings["articles"]] for name, split in dataset.splits.items()}
        self.fingerprint, self.citation = dataset.fingerprint, dataset.citation
        self.texts = {name: "".join(texts) for name, texts in articles.items()}
        self.tokenizer = Tokenizer.train(articles["train"], settings["vocab_size"])
        self.ids = {name: np.concatenate(self.tokenizer.encode_batch(texts)) for name, texts in articles.items()}
        self.train = LanguageModelSet([self.ids["train"]], settings["length"])
        self.watched = LanguageModelSet([self.ids["valid"][:65_536]], 256)      # enough to see which weights are best

    def words(self, split: str) -> int:
        """The words of a split, and one <eos> for each line."""
        return len(self.texts[split].split()) + self.texts[split].count("\n")


# ---- Training ------------------------------------------------------------------------------------------------------

def build(settings: Row, tokenizer: Tokenizer) -> AWDLSTM:
    """A new model; `regularization` scales every dropout and penalty of the paper."""
    sizes = {name: settings[name] for name in ("n_embd", "n_hidden", "n_layer")}
    paper = asdict(AWDLSTMConfig(tokenizer.vocab_size))
    scaled = {name: settings["regularization"] * value for name, value in paper.items()
              if "dropout" in name or "regularization" in name}
    model = AWDLSTM(AWDLSTMConfig(tokenizer.vocab_size, **sizes, **scaled))
    model.tokenizer = tokenizer
    return model


def trainer_of(model: AWDLSTM, data: Data, steps: int, settings: Row, out: Path | None = None) -> Trainer:
    """Adam with the moments of ULMFiT (Howard and Ruder 2018, section 4.1), gradients clipped as in the paper."""
    optimizer = AdamW(groups_of(model, 1.2e-6), settings["lr"], betas=(0.7, 0.99))
    return Trainer(model, data.train, data.watched if out else None, steps=steps, lr=settings["lr"], optimizer=optimizer,
                   batch_size=settings["batch_size"], schedule="linear", clip=0.25, evaluate_every=max(1, steps // 8),
                   checkpoint_every=max(1, steps // 40), out=out)


def planned(options: argparse.Namespace, settings: Row, data: Data) -> int:
    """The number of steps, decided at the first start and read from --out at the next."""
    file = options.out / "plan.json"
    if file.exists():
        plan = json.loads(file.read_text(encoding="utf-8"))
        if plan["settings"] != settings:
            sys.exit(f"{options.out} holds a run with other settings, {plan['settings']}. Give another --out")
        return plan["steps"]
    steps = options.steps or max(1, round(60 * SHARE * options.minutes / seconds_of_step(settings, data)))
    write_text(file, json.dumps({"steps": steps, "settings": settings}) + "\n")
    return steps


def seconds_of_step(settings: Row, data: Data) -> float:
    """The median over some steps of a model that is thrown away."""
    keep_large_blocks()
    trainer = trainer_of(build(settings, data.tokenizer), data, 1, settings)
    batch = data.train.batch(np.arange(settings["batch_size"]))
    return median(time_steps(lambda: trainer.train_step([batch], settings["lr"] / 100), 20, 15))


def about(trainer: Trainer, data: Data, settings: Row) -> Row:
    """How long it took and how much was read."""
    a_step, done, seconds = settings["batch_size"] * settings["length"], 0, 0.0
    for row in trainer.history.rows:
        seconds += (row["step"] - done) * a_step / row["tokens_per_second"]
        done = row["step"]
    return {"training_seconds": round(seconds), "tokens_read": done * a_step, "epochs": done * a_step / data.train.ids.size,
            "best_step": trainer.best.step if trainer.best else done, "fingerprint": data.fingerprint,
            "citation": data.citation}


# ---- Measuring -----------------------------------------------------------------------------------------------------

def measure(model: AWDLSTM, data: Data, split: str) -> Row:
    """Perplexities of a whole split: e to the nats of all its tokens, by the number of tokens or of words."""
    nats, tokens, words = nats_of(model, data.ids[split]), len(data.ids[split]), data.words(split)
    return {"nats": nats, "tokens": tokens, "words": words, "words_as_published": words == WORDS[split],
            "perplexity_per_token": exp(nats / tokens), "perplexity_per_word": exp(nats / words),
            "bits_per_byte": nats / np.log(2) / len(data.texts[split].encode())}


def nats_of(model: AWDLSTM, ids: np.ndarray, lanes: int = 16, length: int = 1024) -> float:
    """The sum of -ln p of every token given those before it, the first given an end token.

    The stream is cut into `lanes` that are read side by side, `length` tokens at a time, each with its state carried along: no
    token but the first few of a lane lacks what came before it.
    """
    before = np.concatenate([[model.tokenizer.end], ids[:-1]])
    columns = -(-len(ids) // lanes)
    padding = (0, lanes * columns - len(ids))
    inputs = np.pad(before, padding).reshape(lanes, columns)
    targets = np.pad(ids, padding, constant_values=mt.ops.IGNORE).reshape(lanes, columns)
    nats, cache = 0.0, model.new_cache(length)
    with model.evaluating():
        for start in range(0, columns, length):
            part = slice(start, start + length)
            batch: Any = Batch.of_ids(inputs[:, part])
            batch.positions = batch.positions + start
            nats += model.language_loss(model.features(batch, cache), targets[:, part]).item()
    return nats


if __name__ == "__main__":
    main()
