"""A classifier from 200 rows of one's own: how long it takes and how well it does, beside the plain baseline.

    MINITUNE_DATA=... python benchmarks/two_hundred_rows.py          # about half an hour on 2 cores, alone

For each data set and each of several draws, 200 rows are written as a CSV and read as a user's would be. TextClassifier with
its defaults, on the model that comes with the package, and TF-IDF with logistic regression learn the same rows (its
validation rows included for the baseline's choice of strength) and are measured on test rows that neither has seen.
Writes benchmarks/results/two_hundred_rows.json and the figures in docs/howto_csv_to_classifier.md. Stopped and started again,
it goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import tempfile
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.pop("OPENBLAS_CORETYPE", None)       # before NumPy: an inherited choice of kernels halves its matrix products

import numpy as np
from pages import write_between_marks

import minitune as mt
from minitune.experiments.baseline import tfidf
from minitune.experiments.finetuning import DEFAULT_BASE
from minitune.experiments.runner import run
from minitune.formats.folder import WEIGHTS, find_model

ROOT = Path(__file__).resolve().parent.parent
SETS, ROWS, TEST_ROWS = ("pydocs", "trec", "ag_news_22k", "sst2"), 200, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=5, metavar="N", help="draws of 200 rows for each set (default: 5)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "two_hundred_rows")
    options = parser.parse_args()
    gpt = mt.models.from_pretrained(DEFAULT_BASE)
    base = {"name": DEFAULT_BASE, "parameters": gpt.num_parameters(),
            "digest": sha256((find_model(DEFAULT_BASE) / WEIGHTS).read_bytes()).hexdigest()[:8]}
    specs = [{"data": name, "draw": draw, "base": base["digest"], "minitune": mt.__version__}
             for name in SETS for draw in range(options.draws)]
    rows = run(specs, lambda spec: measure(spec["data"], spec["draw"]), options.out / "runs.jsonl", progress="draws")
    whole = {"command": f"python benchmarks/two_hundred_rows.py --draws {options.draws}", "rows": ROWS, "base": base,
             "runs": rows, "python": platform.python_version(), "numpy": np.__version__, "cores": os.cpu_count(),
             "processor": platform.processor() or platform.machine()}
    file = ROOT / "benchmarks" / "results" / "two_hundred_rows.json"
    file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    lines = page(whole)
    print("\n".join(lines))
    write_between_marks(ROOT / "docs" / "howto_csv_to_classifier.md", "figures", lines)


def measure(data: str, draw: int) -> dict[str, Any]:
    """One draw: accuracies on the test rows and the seconds of each fit."""
    dataset, random = mt.data.load(data), np.random.default_rng(draw)
    chosen = dataset.train.subset(random.choice(len(dataset.train), ROWS, replace=False))
    test = dataset.test.subset(np.random.default_rng(0).permutation(len(dataset.test))[:TEST_ROWS])
    truth = [dataset.labels[i] for i in test.labels]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "own.csv"
        with open(file, "w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([("text", "label"), *((text, dataset.labels[i]) for text, i in zip(*pairs(chosen)))])
        own = mt.data.read(file, test=0, seed=draw)
    start = perf_counter()
    texts, labels = own.train.texts + own.valid.texts, [*own.train.labels, *own.valid.labels]
    classifier = mt.TextClassifier(seed=draw).fit(texts, [own.labels[i] for i in labels])
    fitted = perf_counter()
    accuracy = classifier.score(test.texts, truth)
    known = {label: i for i, label in enumerate(own.labels)}
    found = tfidf(own.train.texts, own.train.labels, own.valid.texts, own.valid.labels, test.texts)
    plain = float(np.mean(found.predictions == [known.get(label, -1) for label in truth]))
    return {"accuracy": accuracy, "baseline_accuracy": plain, "test_rows": len(truth), "seconds": round(fitted - start, 1),
            "classes": len(own.labels), "fingerprint": own.fingerprint}


def pairs(split: Any) -> tuple[list[str], list[int]]:
    return split.texts, split.labels.tolist()


def page(whole: dict[str, Any]) -> list[str]:
    """What the how-to page says."""
    base = whole["base"]
    lines = ["", f"Measured on {whole['cores']} cores, from {base['name']} with its {base['parameters']:,} weights and 200 "
             f"rows; means over {len(whole['runs']) // len(SETS)} draws with their range:", "",
             "| data | classes | accuracy, fine-tuned | accuracy, TF-IDF | test rows | seconds to fit |",
             "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row["data"] for row in whole["runs"]):
        runs = [row for row in whole["runs"] if row["data"] == name]
        cells = [f"{100 * np.mean(v):.1f} % ({100 * min(v):.1f} to {100 * max(v):.1f})"
                 for v in ([row[key] for row in runs] for key in ("accuracy", "baseline_accuracy"))]
        seconds = np.mean([row["seconds"] for row in runs])
        lines.append(f"| {name} | {runs[0]['classes']} | {cells[0]} | {cells[1]} | {runs[0]['test_rows']:,} | {seconds:.0f} |")
    return [*lines, "", f"Every run: [JSON](../benchmarks/results/two_hundred_rows.json), made by `{whole['command']}`.", ""]


if __name__ == "__main__":
    main()
