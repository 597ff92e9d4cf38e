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
OURS = ("minitune", "cache")                    # the names of minitune's rows
LONG = {"V": 8192, "C": 256, "layers": 6, "heads": 8, "T": 2048, "B": 1}
BARS: list[tuple[str, str, dict[str, Any], str, str, float]] = [        # what, its result, rows and figure, what was asked
    ("full step of size M, to its floor", "train_step", {"size": "M", "mode": "full"}, "ratio_to_floor", "at most", 1.55),
    ("full step of size L, to its floor", "train_step", {"size": "L", "mode": "full"}, "ratio_to_floor", "at most", 1.28),
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


if __name__ == "__main__":
    table = asked_and_measured(ROOT / "benchmarks" / "results")
    write_between_marks(ROOT / "docs" / "performance.md", "bars", ["", *table, ""])
