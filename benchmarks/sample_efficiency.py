"""How many labels is pre-training worth? The full protocol on one data set; results go to benchmarks/results and docs/.

    python benchmarks/sample_efficiency.py pydocs                                      # the settings of `minitune demo`
    MINITUNE_DATA=... python benchmarks/sample_efficiency.py ag_news_22k               # about half an hour on 2 cores

Writes benchmarks/results/sample_efficiency_NAME.json, docs/images/sample_efficiency_NAME.png and the tables in
docs/what_pretraining_is_worth.md. Stopped and started again, it goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

os.environ.pop("OPENBLAS_CORETYPE", None)       # before NumPy: an inherited choice of kernels halves its matrix products

import numpy as np
from pages import write_between_marks

import minitune as mt
from minitune.cli.demo import DEMO, DEMO_PRETRAINING
from minitune.experiments import Pretraining, Protocol, Results, pretrain, sample_efficiency
from minitune.experiments.runner import read_lines

ROOT = Path(__file__).resolve().parent.parent
IN_README = {"pydocs": 64, "ag_news_22k": 16}      # the label count whose sentence stands there
PAGE = ROOT / "docs" / "what_pretraining_is_worth.md"
SETTINGS = {
    "pydocs": (DEMO_PRETRAINING, DEMO),
    "ag_news_22k": (Pretraining(vocab_size=4096, block_size=64, batch_size=32, steps=3000),
                    Protocol(sizes=(16, 64, 256), scratch_sizes=(1024, 4096), seeds=(0, 1, 2, 3, 4), sweep_at=(64,))),
    "imdb": (Pretraining(vocab_size=4096, block_size=256, batch_size=16, steps=4000),
             Protocol(sizes=(16, 64, 256, 1024), scratch_sizes=(4096, 16384))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=SETTINGS)
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/NAME)")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--pages", action="store_true", help="run nothing: write the picture and the pages from the JSON anew")
    options = parser.parse_args()
    file = ROOT / "benchmarks" / "results" / f"sample_efficiency_{options.data}.json"
    if not options.pages:
        measure(options.data, options.out or ROOT / "runs" / options.data, options.workers).to_json(file)
    stored = json.loads(file.read_text(encoding="utf-8"))
    write_pages(options.data, Results(stored["runs"], stored["settings"]))


def measure(name: str, out: Path, workers: int) -> Results:
    """The experiment, with what a reader needs to judge and repeat it in its settings."""
    pretraining, protocol = SETTINGS[name]
    dataset = mt.data.load(name)
    pretrain(dataset, out / "model", pretraining)
    results = sample_efficiency(dataset, out / "model", out, protocol, workers=workers)
    lines = [line for runs in ("sweep", "results") for line in read_lines(out / f"{runs}.jsonl")]
    results.settings |= {
        "command": f"python benchmarks/sample_efficiency.py {name}",
        "seconds_of_all_runs": round(sum(line["seconds"] for line in lines)),
        "pretraining": json.loads((out / "model" / "pretraining.json").read_text(encoding="utf-8")),
        "python": platform.python_version(), "numpy": np.__version__, "minitune": mt.__version__,
        "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
    }
    return results


def write_pages(name: str, results: Results) -> None:
    """The picture, the data set's section and the README's sentence."""
    print(results.table(), *results.compared(), results.sentence(), sep="\n")
    results.plot(ROOT / "docs" / "images" / f"sample_efficiency_{name}.png")
    write_between_marks(PAGE, name, section(name, results))
    if name in IN_README:
        write_between_marks(ROOT / "README.md", f"{name} sentence", [f"**{results.sentence(IN_README[name])}**"])


def section(name: str, results: Results) -> list[str]:
    """What docs/what_pretraining_is_worth.md says of this data set."""
    pretraining = results.settings["pretraining"]
    return ["", *(f"- {results.sentence(n)}" for n in results.sizes), "",
            f"![test error against labels on {name}](images/sample_efficiency_{name}.png)", "", "```", results.table(), "",
            *results.compared(), "```", "",
            f"Pre-training: {pretraining['tokens_read']:,} tokens read, perplexity {pretraining['perplexity']:.1f} on held-out "
            f"rows. The runs, the choice of rates included, took {results.settings['seconds_of_all_runs'] / 60:.0f} minutes "
            f"added up, on one core each. Best rates at the edge of those tried: "
            f"{', '.join(results.settings['rates_at_the_edge']) or 'none'}. From scratch, ended before validation had stalled: "
            f"{', '.join(results.settings['scratch_not_stalled']) or 'none'}. Texts: {results.settings['citation']} "
            f"(fingerprint {results.settings['fingerprint']}). Every run: "
            f"[JSON](../benchmarks/results/sample_efficiency_{name}.json), made by `{results.settings['command']}`.", ""]


if __name__ == "__main__":
    main()
