"""The model that comes with the package: a small GPT pre-trained on books, and what its model card says of it.

    MINITUNE_DATA=... python benchmarks/minitune_base.py        # two hours on one core; stopped, it goes on when called again
    MINITUNE_DATA=... python benchmarks/minitune_base.py --device cuda --dtype bfloat16 --batch_size 64 --lr 3e-3 --steps 3500

The second made the model that ships, in minutes; the first reads a third as much, and takes its place: give another --ship.
The texts are the English prose of `data.load("gutenberg")`, in the public domain, without the books of two authors, who
are kept unseen so that fine-tuning to a style can be measured. Lines that a printer broke are joined, quotation marks
are straightened, so that the texts look like those that a user has. At the end the folder that ships is written, in
float16, and measured: on the unseen authors, on the validation books, and on WikiText-2.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

from measure import DROPPED, ROOT, gpu, machine, table

for name in DROPPED:                            # before NumPy: an inherited choice of kernels halves its matrix products
    os.environ.pop(name, None)

import minitune as mt
from minitune.data import Dataset, LanguageModelSet, Split
from minitune.experiments.pretraining import Pretraining, pretrain
from minitune.experiments.runner import read_lines
from minitune.formats.folder import write_text
from minitune.models import GPT
from minitune.show import training_curves
from minitune.train import evaluate

SETTINGS = Pretraining(vocab_size=8192, block_size=512, n_layer=4, n_head=4, n_embd=256, steps=9000, batch_size=8, lr=2e-3)
HELD_OUT = {"Joseph Conrad": ("Within the Tides", "'Twixt Land & Sea"),
            "P. G. Wodehouse": ("The Little Warrior", "The Adventures of Sally")}
VALID_CHARACTERS = 100_000                      # of each validation book: its middle
STRAIGHT = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "\ufeff": None})
MEASURED = {"kind": "texts", "title": "", "tokens": "tokens", "words": "words", "perplexity": "perplexity a token",
            "perplexity_of_words": "perplexity a word"}
CURVE = {"step": "step", "loss": "training loss", "valid_loss": "validation loss", "valid_perplexity": "validation perplexity"}


def main() -> None:
    options = parse()
    dataset = books()
    settings = replace(SETTINGS, steps=options.steps, batch_size=options.batch_size, lr=options.lr)
    gpt = pretrain(dataset, options.out, settings, device=options.device, dtype=options.dtype)
    ship(gpt, len(dataset.train), options.out, options.ship, options.image, options.dtype)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=SETTINGS.steps, help="steps of a batch of rows")
    parser.add_argument("--batch_size", type=int, default=SETTINGS.batch_size, help="rows of 512 tokens a step")
    parser.add_argument("--lr", type=float, default=SETTINGS.lr, help="highest learning rate")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it trains")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of activations")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "minitune-base", help="folder of the run")
    parser.add_argument("--ship", type=Path, default=ROOT / "minitune" / "models" / "shipped" / "minitune-base",
                        help="folder of the model that comes with the package, and its card")
    parser.add_argument("--image", type=Path, default=ROOT / "docs" / "images" / "minitune_base.png", help="the loss curve")
    return parser.parse_args()


# ---- Texts ---------------------------------------------------------------------------------------------------------------

def books() -> Dataset:
    """The books without those of the held-out authors; to watch, the middle of each validation book."""
    given = mt.data.load("gutenberg")
    held_out = [title for titles in HELD_OUT.values() for title in titles]
    assert given.train.groups and set(held_out) <= set(given.train.groups)
    train = [plain(text) for text, title in zip(given.train.texts, given.train.groups) if title not in held_out]
    valid = [middle(plain(text), VALID_CHARACTERS) for text in given.valid.texts]
    return Dataset("gutenberg, without two authors", (), {"train": Split(train), "valid": Split(valid)}, given.citation,
                   kind="text")


def plain(text: str) -> str:
    """A book's text with a line a paragraph, straight quotation marks, and without marks of italics and pictures.

    >>> plain("“A line\\nand its _end_.”\\n\\n\\n[Illustration]\\n\\nAnother.")
    '"A line and its end."\\n\\nAnother.'
    """
    text = re.sub(r"\[Illustration[^\]]*\]", "", text.translate(STRAIGHT))
    text = re.sub(r"_([^_\n]+(?:\n[^_\n]+)*)_", r"\1", text)
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def middle(text: str, characters: int) -> str:
    """So many characters of the middle of a text."""
    start = max(0, (len(text) - characters) // 2)
    return text[start : start + characters]


# ---- What ships ----------------------------------------------------------------------------------------------------------

def ship(gpt: GPT, count: int, run: Path, folder: Path, image: Path, dtype: str) -> None:
    """Writes the model, that has read so many books, in float16 into `folder`, measures what stands there, in float32, and
    writes its record, its card and the curve."""
    gpt.save_pretrained(folder, dtype="float16")
    gpu_used = gpu() if gpt.device == "cuda" else {}
    history = read_lines(run / "history.jsonl")
    record = json.loads((run / "pretraining.json").read_text(encoding="utf-8"))
    record |= {"training_seconds": round(training_seconds(history, record), 3), "history": history,
               "measured": measure(mt.models.from_pretrained(folder).to(gpt.device)),
               "machine": machine() | gpu_used, "dtype": dtype}
    write_text(folder / "pretraining.json", json.dumps(record, indent=1) + "\n")
    write_text(folder / "README.md", card(record, count))
    training_curves(history, image, "minitune-base: pre-training")
    print((folder / "README.md").read_text(encoding="utf-8"))
    print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()):,} bytes")


def training_seconds(history: list[dict[str, float]], record: dict[str, Any]) -> float:
    """What the steps took, from the speed of each stretch of them; measuring on the way is not in it."""
    starts = [0, *(row["step"] for row in history)]
    return sum((row["step"] - start) * record["batch_size"] * record["block_size"] / row["tokens_per_second"]
               for row, start in zip(history, starts))


def measure(gpt: GPT) -> list[dict[str, Any]]:
    """A row for each book of the held-out authors and of validation, whole, and for WikiText-2's test text."""
    given = mt.data.load("gutenberg")
    texts = dict(zip(given.train.groups, given.train.texts)) | dict(zip(given.valid.groups, given.valid.texts))
    titles = {**HELD_OUT, "validation": given.valid.groups}
    rows = [{"kind": kind, "title": title, **perplexities(gpt, plain(texts[title]))}
            for kind, several in titles.items() for title in several]
    wikitext = "".join(mt.data.load("wikitext2").test.texts)
    return [*rows, {"kind": "WikiText-2", "title": "test", **perplexities(gpt, wikitext, wikitext.count("\n"))}]


def perplexities(gpt: GPT, text: str, more_words: int = 0) -> dict[str, Any]:
    """e^(nats a token), and e^(nats of the whole text / its words): those that white space parts, and so many more.

    The text is read in rows of the longest context, each from nothing. The last tokens, too few for a row, count as the mean.
    """
    assert gpt.tokenizer is not None
    ids = gpt.tokenizer.frame(gpt.tokenizer.encode(text))
    tokens, words = len(ids) - 1, len(text.split()) + more_words
    loss = evaluate(gpt, LanguageModelSet([ids], min(gpt.config.block_size, len(ids))))["loss"]
    return {"tokens": tokens, "words": words, "perplexity": exp(loss), "perplexity_of_words": exp(loss * tokens / words)}


def card(record: dict[str, Any], count: int) -> str:
    """The model card, README.md of the folder."""
    made, threads = record["machine"], record["machine"]["threads_set"].get("OPENBLAS_NUM_THREADS", "all")
    read, seconds = record["tokens_read"], record["training_seconds"]
    versions = {"minitune": mt.__version__} | made["versions"] | made.get("gpu_versions", {})
    used = {name: versions[name] for name in ("minitune", "numpy", "numba", "cupy-cuda12x", "cupy-cuda13x") if name in versions}
    on_cpu = f"{made['processor']}, {threads} of {made['cores']} cores, no GPU"
    facts = {"model": f"GPT in GPT-2's form: {record['n_layer']} layers, {record['n_head']} heads, {record['n_embd']} channels",
             "parameters": f"{record['parameters']:,}, stored as float16, read as float32",
             "context": f"{record['block_size']} tokens",
             "vocabulary": f"{record['vocab_size']:,} tokens at most, byte-level BPE made from the same texts",
             "texts": f"{count} books, {record['training_tokens']:,} tokens; digest {record['fingerprint']}",
             "read": f"{read:,} tokens, {read / record['training_tokens']:.2f} times the texts: {record['steps']:,} steps of "
                     f"{record['batch_size']} rows",
             "optimizer": f"AdamW, rate {record['lr']:g} with warm-up and a cosine's fall, seed {record['seed']}",
             "time": f"{seconds / 60:,.0f} minutes of training steps, {read / seconds:,.0f} tokens a second",
             "hardware": f"{made['card']}, activations in {record['dtype']}" if "card" in made else on_cpu,
             "versions": ", ".join(f"{name} {version}" for name, version in used.items()) + f", Python {made['python']}",
             "command": f"`MINITUNE_DATA=... {made['command']}`"}
    parts = {"held_out": [f"- {author}: {', '.join(titles)}" for author, titles in HELD_OUT.items()],
             "facts": [f"| {name} | {value} |" for name, value in facts.items()], "curve": table(record["history"], CURVE),
             "measured": table(record["measured"], MEASURED)}
    return CARD.format(block_size=record["block_size"], **{name: "\n".join(lines) for name, lines in parts.items()})


CARD = """# minitune-base

A small language model of English prose, which comes with minitune: something to fine-tune from at once, without a download.

```python
import minitune as mt

gpt = mt.models.from_pretrained("minitune-base")
print(gpt.generate("The old man", max_new_tokens=60))

classifier = mt.TextClassifier()                # starts from it: classifier.fit(texts, labels)
```

On the command line `minitune finetune DATA` starts from it, and `minitune generate minitune-base "The old man"` writes with it.

| | |
|---|---|
{facts}

## Data

English prose of Project Gutenberg, in the public domain in the USA: novels, stories, essays, letters, history, most of it from
the 18th to the early 20th century. No web page, no news, no film review and no text of a benchmark was read. Left out are the
books of two authors, so that fine-tuning to a style can be measured on texts that the model has not seen:

{held_out}

Cleaning: the lines of a paragraph are joined, curly quotation marks made straight, marks of italics and pictures taken away.
Producers' credits and tables of contents are still there.

## Loss

Nats a token. Validation is the middle of each of four other books, one of them by Conrad; the weights that did best on it
are kept.

{curve}

![Loss of training and validation over the steps](../../../../docs/images/minitune_base.png)

## Perplexity

Of the weights as they are here, in float16. Books are whole, cleaned as above, and read in rows of {block_size} tokens, each
from nothing. A perplexity a token compares with that of no other tokenizer; that a word is e^(nats of the text / its words),
where white space parts the words.

{measured}

WikiText-2 is text in tokens, with spaces around punctuation, `<unk>` for rare words and ` @-@ ` for hyphens: forms that this
model has never seen and must spell out in pieces. Its words are counted as published, with an end for each line.

## Intended use, limits, licence

For learning, tests and experiments, and to start a classifier or a model of a style from. It does not know facts, follows no
instructions and holds no thought for longer than some sentences. It knows no English of today and hardly any other language.
Its books speak of people as their times did: with the prejudices of these, which the model has learned. Do not show what it
writes to people unread, and do not decide about people with it. It may repeat well-known passages word for word.

The weights are under minitune's licence, Apache-2.0. The texts are in the public domain in the USA; elsewhere some may not be.
"""


if __name__ == "__main__":
    main()
