"""Figures into pages: what a script measured stands between marks that name it.

    python benchmarks/pages.py          # measures nothing: writes what was asked beside what was measured, from the results
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from minitune.formats.folder import write_text

ROOT = Path(__file__).resolve().parent.parent
NEAR = 0.05                                     # nats: a loss no further from what was predicted is "as predicted"
OURS = ("minitune", "cache")                    # the names of minitune's rows
LONG = {"V": 8192, "C": 256, "layers": 6, "heads": 8, "T": 2048, "B": 1}
BARS: list[tuple[str, str, dict[str, Any], str, str, float]] = [        # what, its result, rows and figure, what was asked
    ("full step of size M, to its floor", "train_step", {"size": "M", "mode": "full"}, "ratio_to_floor", "at most", 1.55),
    ("full step of size L, to its floor", "train_step", {"size": "L", "mode": "full"}, "ratio_to_floor", "at most", 1.28),
    *((f"full step of size {size}, to PyTorch (AMD with AVX-512)", "train_step", {"size": size, "mode": "full"},
       "ratio_to_torch_eager", "at most", asked) for size, asked in (("S", 0.62), ("M", 0.46), ("L", 0.50))),
    ("LoRA step of size M, to a full step", "train_step", {"size": "M", "mode": "lora"}, "ratio_to_own_full", "at most", 0.78),
    ("last block's step of size M, to a full step", "train_step", {"size": "M", "mode": "last"}, "ratio_to_own_full",
     "at most", 0.58),
    ("LoRA step of size M, to Hugging Face with PEFT", "train_step", {"size": "M", "mode": "lora"}, "ratio_to_hugging_face",
     "at most", 0.40),
    ("peak memory of 2,048 tokens in one row, to rows of 128", "memory", {"size": LONG}, "ratio", "at most", 1.30),
    ("memory of a LoRA step above imports, to Hugging Face with PEFT", "memory", {"mode": "lora"}, "ratio_to_hugging_face",
     "at most", 0.40),
    ("tokens a second of one row, to Hugging Face", "generate", {"batch": 1}, "times_hugging_face", "at least", 3.00),
]


def write_between_marks(file: Path, name: str, lines: list[str]) -> None:
    """Replaces what stands in a file between `<!-- name: ... -->` and `<!-- end of name -->`."""
    text = file.read_text(encoding="utf-8")
    mark = re.compile(f"<!-- {name}: .*?<!-- end of {name} -->", re.DOTALL)
    if not mark.search(text):
        sys.exit(f"{file} has no place for {name}: add '<!-- {name}: --> <!-- end of {name} -->' to it")
    script = Path(sys.argv[0]).name
    whole = "\n".join([f"<!-- {name}: written by benchmarks/{script} -->", *lines, f"<!-- end of {name} -->"])
    write_text(file, mark.sub(lambda _: whole, text))


def asked_and_measured(results: Path) -> list[str]:
    """A table of all that was asked, beside what the results say; several rows of a result give the range of their figures."""
    found = {name: json.loads((results / f"{name}.json").read_text(encoding="utf-8")) for name in {bar[1] for bar in BARS}}
    lines = ["| ratio | asked | measured | |", "|---|---|---|---|"]
    for what, name, wanted, figure, bound, asked in BARS:
        figures = [row[figure] for row in found[name]["rows"]
                   if row["name"] in OURS and all(row[key] == value for key, value in wanted.items())]
        met = max(figures) <= asked if bound == "at most" else min(figures) >= asked
        shown = " to ".join(dict.fromkeys(f"{value:.2f}" for value in (min(figures), max(figures))))
        lines.append(f"| {what} | {bound} {asked:.2f} | {shown} | {'met' if met else 'missed'} |")
    machine = found["train_step"]
    if "AMD" not in machine["processor"] or "avx512f" not in machine["vector_flags"]:
        lines += ["", "Ratios to PyTorch were asked for an AMD processor with AVX-512. They have not been measured on one: the "
                      f"results are of {machine['processor']} with {', '.join(machine['vector_flags'])}."]
    return lines


# ---- What the models reach ---------------------------------------------------------------------------------------------

def vision(results: Path) -> list[str]:
    """The accuracy of every data set and model of benchmarks/vision.py."""
    lines = ["| data | model | parameters | rate | epochs | seconds | threads | valid, % | test, % | 95 % interval |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for file in sorted(results.glob("vision_*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        row = found["rows"][0]
        lines.append(f"| {row['data']} | {row['model']} | {row['parameters']:,} | {row['rate']} | {row['epochs']:.1f} | "
                     f"{row['seconds']:.0f} | {found['threads']} | {row['valid_accuracy']} | {row['accuracy']} | "
                     f"{row['low']} to {row['high']} |")
    return [*lines, "", "One seed each: the interval is Wilson's, of the test images alone."]


def awd_lstm(results: Path) -> list[str]:
    """The perplexities of benchmarks/awd_lstm.py, beside those of the paper, and what of them compares."""
    found = json.loads((results / "awd_lstm.json").read_text(encoding="utf-8"))
    valid, test = found["rows"]
    lines = ["| model | parameters | epochs | perplexity per word, validation | test | per token, test |",
             "|---|---|---|---|---|---|",
             f"| this one | {found['parameters']:,} | {found['epochs']:.1f} | {valid['perplexity_per_word']:.1f} | "
             f"{test['perplexity_per_word']:.1f} | {test['perplexity_per_token']:.1f} |"]
    lines += [f"| {name} | | | {first} | {second} | |" for name, (first, second) in found["published"].items()]
    return [*lines, "", f"{found['training_seconds'] / 60:.0f} minutes of training, {found['tokens_read']:,} tokens. "
                        f"{found['comparable']}"]


def masked_language_model(results: Path) -> list[str]:
    """The losses of benchmarks/masked_language_model.py by budget, what was predicted, and the errors on TREC."""
    found = json.loads((results / "masked_language_model.json").read_text(encoding="utf-8"))
    law, trec = found["prediction"], found["trec"]
    a, b, c = (law["law"][name] for name in "abc")
    low, high = law["range"]
    lines = ["| tokens read | seconds | held-out loss, nats a hidden token |", "|---|---|---|",
             *(f"| {run['tokens']:,} | {run['seconds']:,.0f} | {run['loss']:.3f} |" for run in found["pretraining"]), "",
             f"Who knows only how frequent each token is has a loss of {found['loss of token frequencies']:.3f}. The law "
             f"through all runs but the last, {a:.3f} + {b:.3g} tokens^-{c:.2f}, predicts {law['predicted']:.3f} for the last "
             f"({low:.3f} to {high:.3f} where one of them is left out, which is no interval); it gave {law['measured']:.3f}, "
             f"{'as predicted' if abs(law['measured'] - law['predicted']) <= NEAR else 'not as predicted'}, within {NEAR}.", "",
             "| TREC, 500 labels | error on the 500 test questions, % | 95 % interval | against fine-tuned, points |",
             "|---|---|---|---|"]
    for name, (error, low, high) in trec["errors"].items():
        difference, less, more = trec["full minus"].get(name, (0, 0, 0))
        against = f"{-100 * difference:+.1f} ({-100 * more:+.1f} to {-100 * less:+.1f})" if name in trec["full minus"] else ""
        lines.append(f"| {name} | {100 * error:.1f} | {100 * low:.1f} to {100 * high:.1f} | {against} |")
    return lines


if __name__ == "__main__":
    results, docs = ROOT / "benchmarks" / "results", ROOT / "docs"
    write_between_marks(docs / "performance.md", "bars", ["", *asked_and_measured(results), ""])
    for write in (vision, awd_lstm, masked_language_model):
        write_between_marks(docs / "models_measured.md", write.__name__, ["", *write(results), ""])
