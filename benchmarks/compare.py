"""LoRA or full fine-tuning? Every method beside each other on real data; results go to benchmarks/results and docs/.

    MINITUNE_DATA=... python benchmarks/compare.py ag_news_22k --workers 2
    MINITUNE_DATA=... python benchmarks/compare.py imdb --methods full,lora,ia3

Measured on the first 5,000 test texts and chosen by the first 500 validation texts. Writes
benchmarks/results/compare_NAME.json, the plots in docs/images/compare_NAME and the data set's part of docs/lora_or_full.md.
Stopped and started again, it goes on. The result holds the methods that were named last; runs of others stay in the folder.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from measure import DROPPED, ROOT, machine

for name in DROPPED:                            # before NumPy: an inherited choice of kernels halves its matrix products
    os.environ.pop(name, None)

from pages import write_between_marks
from reproduce import cut

import minitune as mt
from minitune.experiments import Comparison, Protocol, compare
from minitune.experiments.comparison import PLOTS
from minitune.experiments.runner import read_lines
from minitune.experiments.tuning_methods import KNOWN

STEPS = {"least_steps": 100, "epochs": 5, "most_steps": 1250, "evaluations": 6}         # 1,250: twice through 10,000 labels
SETTINGS: dict[str, tuple[tuple[str, ...], Protocol]] = {
    "ag_news_22k": (tuple(KNOWN), Protocol(sizes=(100, 1_000, 10_000), sweep_at=(100, 1_000), block_size=64, rates={},
                                           **STEPS)),
    "imdb": (("full", "head", "lora"), Protocol(sizes=(100, 1_000), block_size=256, rates={}, **STEPS))}


def main() -> None:
    options = parse()
    file = ROOT / "benchmarks" / "results" / f"compare_{options.data}.json"
    if not options.pages:
        measure(options).to_json(file)
    write_pages(Comparison.from_json(file), options.data)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=SETTINGS)
    parser.add_argument("--base", default="minitune-base", help="folder of the pre-trained model, or a shipped one's name")
    parser.add_argument("--methods", type=lambda text: tuple(text.split(",")), help="default: all for ag_news_22k, "
                        "full,head,lora for imdb, whose texts are long")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/compare-NAME)")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side; one gives times to rely on (default: 1)")
    parser.add_argument("--pages", action="store_true", help="run nothing: write the plots and the page from the JSON anew")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> Comparison:
    """The comparison, with what a reader needs to judge and repeat it in its settings."""
    usual, protocol = SETTINGS[options.data]
    out = options.out or ROOT / "runs" / f"compare-{options.data}"
    found = compare(cut(mt.data.load(options.data)), options.base, options.methods or usual, out, protocol,
                    workers=options.workers)
    found.results.settings |= machine() | {"minitune": mt.__version__, "seconds_of_all_runs": seconds(found, out)}
    return found


def seconds(found: Comparison, out: Path) -> int:
    """How long these runs took, added up: those that chose rates and those tested."""
    mine = {(row["method"], row["recipe"], row["backbone"]) for row in found.results.rows}
    swept = [line for line in read_lines(out / "sweep.jsonl") if (line["method"], line["recipe"], line["backbone"]) in mine]
    return round(sum(line["seconds"] for line in [*found.results.rows, *swept]))


def write_pages(found: Comparison, name: str) -> None:
    """The plots and the data set's part of the page."""
    print(found.table(), found.rates(), found.beside_papers(), found.sentence(), sep="\n\n")
    found.plot(ROOT / "docs" / "images" / f"compare_{name}")
    write_between_marks(ROOT / "docs" / "lora_or_full.md", name, section(found, name))


def section(found: Comparison, name: str) -> list[str]:
    """What docs/lora_or_full.md says of this data set."""
    settings, images = found.results.settings, f"images/compare_{name}"
    base, general, titles = settings["base"], settings["general"], [file[:-4].replace("_", " ") for file in PLOTS]
    return ["", *(f"- {found.sentence(labels=n)}" for n in found.sizes), "", "```", found.table(), "```", "",
            *(f"![{title} on {name}]({images}/{file})" for title, file in zip(titles, PLOTS)), "",
            "The rates, and what papers report:", "", "```", found.rates(), "", found.beside_papers(), "```", "",
            f"The base is {base['name']}, a {base['model']} of {base['parameters']:,} weights; texts are cut to "
            f"{settings['protocol']['block_size']} tokens. Forgetting is measured on {general['tokens']:,} tokens of "
            f"{general['name']}. Runs at a time: {settings['workers']}, on {settings['cores']} of the cores of "
            f"{settings['processor']}; "
            f"all of them, the choice of rates included, took {settings['seconds_of_all_runs'] / 3600:,.1f} hours added up. "
            f"Texts: {settings['citation']} (fingerprint {settings['fingerprint']}). Every run: "
            f"[JSON](../benchmarks/results/compare_{name}.json), made by `{settings['command']}`.", ""]


if __name__ == "__main__":
    main()
