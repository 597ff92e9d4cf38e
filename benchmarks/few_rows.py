"""A classifier from 100 rows of one's own: how long it takes and how well it does, beside scratch and the plain baseline.

    MINITUNE_DATA=... python benchmarks/few_rows.py          # about half an hour on 2 cores, alone

For each data set and each of several draws, 100 rows are written as a CSV and read as a user's would be. TextClassifier with
its defaults, on the model that comes with the package and on one of its sizes with new weights, and TF-IDF with logistic
regression learn all of these rows and are measured on test rows that none has seen. The baseline's strength is chosen by
cross-validation on the rows, in five parts balanced over the classes; between equals the weaker regularisation is taken, and
the baseline is then fitted to all rows. Writes benchmarks/results/few_rows.json and the figures in
docs/howto_csv_to_classifier.md. Stopped and started again, it goes on.
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
from measure import machine
from pages import write_between_marks

import minitune as mt
from minitune.experiments.baseline import STRENGTHS, require_scikit_learn
from minitune.experiments.finetuning import DEFAULT_BASE
from minitune.experiments.recipe import starting_model
from minitune.experiments.runner import run
from minitune.experiments.statistics import Bootstrap, interval
from minitune.formats.folder import WEIGHTS, find_model

ROOT = Path(__file__).resolve().parent.parent
SETS, ROWS, TEST_ROWS = ("pydocs", "trec", "ag_news_22k", "sst2"), 100, 1000
PARTS = 5                                       # of the rows, to choose the baseline's strength by


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=5, metavar="N", help="draws of rows for each set (default: 5)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "few_rows")
    options = parser.parse_args()
    gpt = mt.models.from_pretrained(DEFAULT_BASE)
    base = {"name": DEFAULT_BASE, "parameters": gpt.num_parameters(),
            "digest": sha256((find_model(DEFAULT_BASE) / WEIGHTS).read_bytes()).hexdigest()[:8]}
    fingerprints = {name: mt.data.load(name).fingerprint for name in SETS}
    specs = [{"data": name, "fingerprint": fingerprints[name], "rows": ROWS, "test_rows": TEST_ROWS, "draw": draw,
              "base": base["digest"], "minitune": mt.__version__, "baseline": f"cross-validated in {PARTS}"}
             for name in SETS for draw in range(options.draws)]
    rows = run(specs, lambda spec: measure(spec["data"], spec["draw"]), options.out / "runs.jsonl", progress="draws")
    whole = {"command": f"python benchmarks/few_rows.py --draws {options.draws}", "rows": ROWS, "base": base,
             "runs": rows, "python": platform.python_version(), "numpy": np.__version__, "cores": machine()["cores"],
             "processor": platform.processor() or platform.machine()}
    file = ROOT / "benchmarks" / "results" / "few_rows.json"
    file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    lines = page(whole)
    print("\n".join(lines))
    write_between_marks(ROOT / "docs" / "howto_csv_to_classifier.md", "figures", lines)


def measure(data: str, draw: int) -> dict[str, Any]:
    """One draw: which test rows each classifier puts into a wrong class, as hex digits of bits, and the seconds of a fit."""
    dataset, random = mt.data.load(data), np.random.default_rng(draw)
    chosen = dataset.train.subset(random.choice(len(dataset.train), ROWS, replace=False))
    test = dataset.test.subset(np.random.default_rng(0).permutation(len(dataset.test))[:TEST_ROWS])
    truth = [dataset.labels[i] for i in test.labels]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "own.csv"
        with open(file, "w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([("text", "label"), *((text, dataset.labels[i]) for text, i in zip(*pairs(chosen)))])
        own = mt.data.read(file, test=0, seed=draw)
    texts, labels = own.train.texts + own.valid.texts, [own.labels[i] for i in (*own.train.labels, *own.valid.labels)]
    start = perf_counter()
    tuned = mt.TextClassifier(seed=draw).fit(texts, labels)
    seconds = perf_counter() - start
    scratch = mt.TextClassifier(new_weights(draw), seed=draw).fit(texts, labels)
    answers = {"tuned": tuned.predict(test.texts), "scratch": scratch.predict(test.texts),
               "tf-idf": baseline(texts, labels, draw).predict(test.texts)}
    wrong = {name: [a != b for a, b in zip(given, truth)] for name, given in answers.items()}
    return {"wrong": {name: np.packbits(bits).tobytes().hex() for name, bits in wrong.items()}, "tested": len(truth),
            "seconds": round(seconds, 1), "classes": len(own.labels)}


def baseline(texts: list[str], labels: list[str], seed: int) -> Any:
    """TF-IDF and logistic regression on all rows, as strong as does best in cross-validation on them."""
    require_scikit_learn()
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    def fitted(strength: float, rows: np.ndarray) -> Any:
        features = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), dtype=np.float32)
        model = make_pipeline(features, LogisticRegression(C=strength, max_iter=1000))
        return model.fit([texts[i] for i in rows], [labels[i] for i in rows])

    part, every, errors = balanced_parts(labels, seed), np.arange(len(texts)), {}
    for strength in sorted(STRENGTHS, reverse=True):            # min takes the first of equals
        models = [(fitted(strength, every[part != left]), every[part == left]) for left in range(PARTS)]
        errors[strength] = sum(int((model.predict([texts[i] for i in rows]) != [labels[i] for i in rows]).sum())
                               for model, rows in models)
    return fitted(min(errors, key=errors.__getitem__), every)


def balanced_parts(labels: list[str], seed: int) -> np.ndarray:
    """Which part of the rows each is in, (N,): every class is spread over the parts as evenly as it can be."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(np.array(labels)[order], kind="stable")]
    part = np.empty(len(labels), int)
    part[by_class] = np.arange(len(labels)) % PARTS
    return part


def new_weights(seed: int) -> mt.models.GPT:
    """A model of the base's sizes, with its tokenizer, that has read nothing."""
    mt.seed(seed)
    return starting_model(DEFAULT_BASE, pretrained=False)


def wrong_of(runs: list[dict[str, Any]], name: str) -> np.ndarray:
    """(draws, test rows): whether the classifier of each draw put each row into a wrong class."""
    bits = [np.frombuffer(bytes.fromhex(run["wrong"][name]), np.uint8) for run in runs]
    return np.stack([np.unpackbits(b)[: run["tested"]] for b, run in zip(bits, runs)])


def pairs(split: Any) -> tuple[list[str], list[int]]:
    return split.texts, split.labels.tolist()


def page(whole: dict[str, Any]) -> list[str]:
    """What the how-to page says."""
    base = whole["base"]
    cores = "1 core" if whole["cores"] == 1 else f"{whole['cores']} cores"
    lines = ["", f"Measured on {cores}, from {base['name']} with its {base['parameters']:,} weights and {whole['rows']} rows; "
             f"means over {len(whole['runs']) // len(SETS)} draws, differences with the 95 % interval of "
             "a bootstrap over draws and test rows:", "",
             "| data | classes | fine-tuned | scratch | TF-IDF | above scratch by | above TF-IDF by | test rows | seconds |",
             "|---|---|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row["data"] for row in whole["runs"]):
        runs = [row for row in whole["runs"] if row["data"] == name]
        wrong = {arm: wrong_of(runs, arm) for arm in ("tuned", "scratch", "tf-idf")}
        cells = [f"{100 * (1 - bits.mean()):.1f} %" for bits in wrong.values()]
        bootstrap = Bootstrap(runs[0]["tested"])
        for other in ("scratch", "tf-idf"):
            low, high = interval(bootstrap.errors(wrong[other]) - bootstrap.errors(wrong["tuned"]))
            gain = wrong[other].mean() - wrong["tuned"].mean()
            cells.append(f"{100 * gain:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
        seconds = np.mean([row["seconds"] for row in runs])
        cells += [f"{runs[0]['tested']:,}", f"{seconds:.0f}"]
        lines.append(f"| {name} | {runs[0]['classes']} | {' | '.join(cells)} |")
    return [*lines, "", f"Accuracy in %, differences in points. Every run: [JSON](../benchmarks/results/few_rows.json), made "
            f"by `{whole['command']}`.", ""]


if __name__ == "__main__":
    main()
