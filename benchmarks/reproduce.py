"""ULMFiT's tables 4 to 7 and its figure 3 on real data, each row beside the paper's and each ordering tested.

    MINITUNE_DATA=... python benchmarks/reproduce.py ulmfit.table7 trec --base minitune-base --workers 2

Measured on the first 5,000 test texts and chosen by the first 500 validation texts. Writes benchmarks/results/NAME_DATA.json,
docs/images/NAME_DATA.png and the table's part of docs/ulmfit.md. Stopped and started again, it goes on.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from measure import DROPPED, ROOT, gpu, machine

for name in DROPPED:                            # before NumPy: an inherited choice of kernels halves its matrix products
    os.environ.pop(name, None)

from pages import write_between_marks

import minitune as mt
from minitune.data import Dataset
from minitune.experiments.published import DATA, PUBLISHED
from minitune.experiments.reproduction import RECURRENT, Reproduction, reproduce
from minitune.experiments.runner import read_lines
from minitune.experiments.ulmfit_tables import SCALES

MEASURED_ON = {"test": 5000, "valid": 500}


def main() -> None:
    options = parse()
    stem = f"{options.name.replace('.', '_')}_{options.data}"
    file = ROOT / "benchmarks" / "results" / f"{stem}.json"
    if not options.pages:
        measure(options).to_json(file)
    write_pages(Reproduction.from_json(file), stem)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=PUBLISHED)
    parser.add_argument("data", choices=DATA)
    parser.add_argument("--base", default="minitune-base", help="folder of the pre-trained model, or a shipped one's name")
    parser.add_argument("--texts", default="wikitext2", help="data set that table 5's own models read (default: wikitext2)")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/reproduce-DATA, shared by all tables)")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where everything is computed (default: cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of activations (default: as the model has it)")
    parser.add_argument("--note", help="a sentence for the page, such as which of the runs were made on another machine")
    parser.add_argument("--pages", action="store_true", help="run nothing: write the picture and the page from the JSON anew")
    return parser.parse_args()


def cut(dataset: Dataset) -> Dataset:
    """The data set with fewer texts to measure on: the first of each split, whose order is random."""
    few = {name: split.subset(range(min(limit, len(split)))) for name, limit in MEASURED_ON.items()
           for split in [dataset.splits[name]]}
    return replace(dataset, splits=dataset.splits | few)


def measure(options: argparse.Namespace) -> Reproduction:
    """The table, with what a reader needs to judge and repeat it in its settings."""
    out = options.out or ROOT / "runs" / f"reproduce-{options.data}"
    texts = mt.data.load(options.texts) if options.name == RECURRENT else None
    dataset = cut(mt.data.load(options.data))
    found = reproduce(options.name, dataset, options.base, out, options.scale, options.workers, texts=texts,
                      device=options.device, dtype=options.dtype)
    found.results.settings |= machine() | {"minitune": mt.__version__, "seconds_of_all_runs": seconds(found, out),
                                           "device": options.device, "dtype": options.dtype, "note": options.note}
    found.results.settings["command"] = found.results.settings["command"].replace(f" --note {options.note}", "")
    found.results.settings |= gpu() if options.device == "cuda" else {}
    return found


def seconds(found: Reproduction, out: Path) -> int:
    """How long this table's runs took, added up: those that chose rates, those tested, and each language model once."""
    mine = {(row["method"], row["recipe"], row["backbone"]) for row in found.results.rows}
    swept = [line for line in read_lines(out / "sweep.jsonl") if (line["method"], line["recipe"], line["backbone"]) in mine]
    models = {repr(line): line for line in found.results.settings["language_models"].values()}
    return round(sum(line["seconds"] for line in [*found.results.rows, *swept, *models.values()]))


def write_pages(found: Reproduction, stem: str) -> None:
    """The picture and the table's part of the page."""
    print(found.table(), found.sentence(), sep="\n")
    found.plot(ROOT / "docs" / "images" / f"{stem}.png")
    write_between_marks(ROOT / "docs" / "ulmfit.md", f"{found.name} {found.data}", section(found, stem))


def section(found: Reproduction, stem: str) -> list[str]:
    """What docs/ulmfit.md says of this table and data set."""
    settings = found.results.settings
    read = [f"Test texts in what may be read of {name} without labels: {said}" for name, said in settings["overlap"].items()]
    note = settings.get("note")
    where = "as told above" if note else "on one core each"
    if "card" in settings:
        where = f"in {settings['dtype'] or 'float32'} on one {settings['card']}"
    return ["", f"### {found.title}", "", found.sentence(), "", "```", found.table(), "```", "",
            f"![{found.title}: the paper's values and ours](images/{stem}.png)", "",
            *(f"- {line}" for line in [*found.notes, *settings["notes"], *filter(None, [note]), *read]), "",
            f"The runs took {settings['seconds_of_all_runs'] / 60:,.0f} minutes added up, {where}. Best rates at the edge of "
            f"those tried: {', '.join(settings['rates_at_the_edge']) or 'none'}. From scratch, ended before validation had "
            f"stalled: {', '.join(settings['scratch_not_stalled']) or 'none'}. Texts: "
            f"{settings['citation']} (fingerprint {settings['fingerprint']}). The paper: {found.paper}. Every run: "
            f"[JSON](../benchmarks/results/{stem}.json), made by `{settings['command']}`.", ""]


if __name__ == "__main__":
    main()
