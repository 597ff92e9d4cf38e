"""reproduce: a paper's table run anew, its rows beside ours, and each ordering that it states tested as an inequality."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from math import isinf
from pathlib import Path
from typing import Any

from .. import __version__, backend
from ..data import Dataset, overlap
from ..formats.folder import read_json, write_text
from ..models import AWDLSTM, AWDLSTMConfig, from_pretrained
from ..show import interval_curves
from ..show.reproduction import paper_and_here
from ..train import remove_checkpoints
from .finetuning import model_folder
from .published import CURVES, DATA, FACTORS_AT, PUBLISHED, TRAINING_TEXTS, VALIDATION, figures
from .recipe import texts_of, tune_language_model
from .results import SCRATCH, Estimate, Results
from .runner import refuse_threads
from .sample_efficiency import sample_efficiency
from .ulmfit_tables import PAPERS_FACTOR, RATES, RATES_OF_CURVE, ROWS, SCALES, Row, Scale

CURVE, RECURRENT = "ulmfit.figure3", "ulmfit.table5"
COMPARABLE = ("Comparable: which of two rows errs less. They are made with the same labels, seeds and test texts, and differ "
              "in what their names say.")


@dataclass(frozen=True)
class Claim:
    """An ordering that a paper states: `lower` errs less than `higher`, there by `published` points (None: not printed).

    `here` is error(lower) - error(higher) in points, with the ends of its 95 % interval.
    """

    lower: str
    higher: str
    labels: int
    published: float | None
    here: Estimate

    @property
    def verdict(self) -> str:
        """"holds" or "reversed" where the interval lies on one side of 0, else "not distinguishable"."""
        _, low, high = self.here
        return "holds" if high < 0 else "reversed" if low > 0 else "not distinguishable"

    def __str__(self) -> str:
        there = "" if self.published is None else f"paper {self.published:+.2f} points, "
        return f"{self.lower} < {self.higher} at {self.labels:,} labels: {self.verdict} ({there}here {_signed(self.here)})"


class Reproduction:
    """A paper's table beside our runs. `name` is the table's, `notes` say what is comparable and what is not.

    Intervals are those of `results`: 95 %, by a bootstrap paired over seeds and test texts.
    """

    def __init__(self, name: str, results: Results, notes: Sequence[str] = ()) -> None:
        self.name, self.results, self.notes = name, results, tuple(notes)
        self.data: str = results.settings["dataset"]
        self.figures = figures(name, self.data)
        self.labels = min(results.sizes, key=lambda n: abs(n - FACTORS_AT))

    @property
    def paper(self) -> str:
        """Whose table it is."""
        return PUBLISHED[self.name][0].paper

    @property
    def title(self) -> str:
        """The table and the data set, as the paper calls them."""
        kind, number = self.name[len("ulmfit."):-1], self.name[-1]
        return f"ULMFiT, {kind.capitalize()} {number}, {DATA[self.data]}"

    def claims(self) -> list[Claim]:
        """Every ordering that the paper states between its whole recipe and another row, whichever way it goes, on our runs."""
        return [Claim(lower, higher, self.labels, published, self._difference(lower, higher))
                for lower, higher, published in self._orderings()]

    def _orderings(self) -> list[tuple[str, str, float | None]]:
        """(the row that errs less, the other, by how many points), as printed; the whole recipe is the last row."""
        *others, whole = self.figures
        pairs = [sorted((whole, other), key=lambda figure: figure.value) for other in others if other.value != whole.value]
        return [(lower.row, higher.row, lower.value - higher.value) for lower, higher in pairs]

    def _error(self, row: str, labels: int | None = None) -> Estimate:
        """The test error in percent, with its interval."""
        value, low, high = self.results.error(row, labels or self.labels)
        return 100 * value, 100 * low, 100 * high

    def _difference(self, row: str, other: str) -> Estimate:
        """error(row) - error(other) in points, with its interval."""
        value, low, high = self.results.difference(row, other, self.labels)
        return 100 * value, 100 * low, 100 * high

    def _verdicts(self) -> dict[str, str]:
        """{row: what of its order beside the whole recipe holds}."""
        whole = self.figures[-1].row
        return {row: claim.verdict for claim in self.claims() for row in (claim.lower, claim.higher) if row != whole}

    def sentence(self) -> str:
        """How many orderings hold, and how many are reversed."""
        verdicts = [claim.verdict for claim in self.claims()]
        return (f"{verdicts.count('holds')} of {len(verdicts)} orderings hold, {verdicts.count('reversed')} are reversed, the "
                "rest cannot be told apart.")

    def table(self) -> str:
        """The paper's rows beside ours, how much more each errs than the whole recipe, and what of the paper's order holds."""
        verdicts = self._verdicts()
        *others, whole = self.figures
        lines = [["row", "paper", "here", "above the whole recipe: paper", "here", "the paper's order"]]
        lines += [[figure.row, f"{figure.value:.2f}", _plain(self._error(figure.row)), f"{figure.value - whole.value:+.2f}",
                   _signed(self._difference(figure.row, whole.row)), verdicts.get(figure.row, "")] for figure in others]
        lines.append([whole.row, f"{whole.value:.2f}", _plain(self._error(whole.row)), "", "", ""])
        head = f"error in %: the paper's on validation texts, here on test texts, at {self.labels:,} labels [95 % interval]"
        return _aligned([self.title, head], lines)

    def plot(self, file: str | Path | None = None) -> Any:
        """The paper's values and ours with intervals, row by row, and what of its order holds. Returns the matplotlib Figure.

        Whether it holds is told from the differences, which are paired: intervals of rows may overlap all the same.
        """
        verdicts = self._verdicts()
        rows = [(figure.row, figure.value, self._error(figure.row), verdicts.get(figure.row, "")) for figure in self.figures]
        sides = "the paper: validation error, %", f"here: test error, %, {self.labels:,} labels"
        return paper_and_here(rows, sides, self.title, file)

    def to_json(self, file: str | Path) -> None:
        """Writes the paper's figures, notes, table, claims and every run, whole or not at all."""
        claims = [asdict(claim) | {"verdict": claim.verdict} for claim in self.claims()]
        whole = {"name": self.name, "sentence": self.sentence(), "notes": self.notes,
                 "published": [asdict(figure) for figure in self.figures], "table": self.table().splitlines(), "claims": claims,
                 "settings": self.results.settings, "runs": self.results.rows}
        write_text(file, json.dumps(whole, indent=1) + "\n")

    @staticmethod
    def from_json(file: str | Path) -> Reproduction:
        """Reads what `to_json` wrote; the claims are made anew from the runs. Raises ValueError for another file."""
        stored = read_json(Path(file))
        if lacking := {"name", "runs", "settings", "notes"} - set(stored):
            raise ValueError(f"Reproduction.from_json: {file} has no {', '.join(sorted(lacking))}. Was it written by to_json?")
        return _reproduction(stored["name"], Results(stored["runs"], stored["settings"]), stored["notes"])


class CurveReproduction(Reproduction):
    """Figure 3 beside our curves: how many labels from scratch are so many labels here. Its orderings are at 100 labels."""

    def _orderings(self) -> list[tuple[str, str, float | None]]:
        return [(lower, higher, None) for lower, higher in CURVES[DATA[self.data]]]

    def factor(self, method: str, labels: int) -> Estimate:
        """How many times as many labels scratch needs to err as `method` does with `labels`; infinity: more than were tried."""
        value, low, high = self.results.worth(method, labels)
        return value / labels, low / labels, high / labels

    def table(self) -> str:
        """The error of each method, and how many times as many labels scratch needs for it, beside the paper's factor."""
        published = {figure.row: f"{figure.value:g}" for figure in self.figures}
        lines = [["labels", "method", "test error", "times: paper", "here"]]
        for n in self.results.sizes:
            for method in self.results.methods:
                there = published.get(method, "") if n == FACTORS_AT else ""
                lines.append([f"{n:,}", method, _plain(self._error(method, n)), there, self._times(method, n)])
        lines += [[f"{n:,}", method, _plain(self._error(method, n)), "", ""] for n in self.results.all_sizes
                  for method in self.results.methods if n not in self.results.sizes and n in self.results.sizes_of(method)]
        head = "test error in %, and how many times as many labels scratch needs [95 % intervals]"
        return _aligned([self.title, head], lines)

    def _times(self, method: str, labels: int) -> str:
        """A factor with its interval; beyond what was tried, in words."""
        tried = self.results.sizes_of(SCRATCH)

        def said(times: float) -> str:
            if isinf(times):
                return f"more than {tried[-1] / labels:.2g}"
            return f"{times:.2g}" if times else f"under {tried[0] / labels:.2g}"

        value, low, high = map(said, self.factor(method, labels))
        return "" if method == SCRATCH else f"{value} [{low}, {high}]"

    def plot(self, file: str | Path | None = None) -> Any:
        """Our curves with intervals, and points where the paper's factors would have scratch's curve pass."""
        curves = {name: [(float(n), *self._error(name, n)) for n in self.results.sizes_of(name)]
                  for name in self.results.methods}
        for figure in self.figures if FACTORS_AT in self.results.sizes else ():
            error, _, _ = self._error(figure.row, FACTORS_AT)
            curves[f"the paper's {figure.value:g} x {figure.row}"] = [(figure.value * FACTORS_AT, error, error, error)]
        return interval_curves(curves, "labelled examples", "test error, %", self.title, file)


def _reproduction(name: str, results: Results, notes: Sequence[str]) -> Reproduction:
    return (CurveReproduction if name == CURVE else Reproduction)(name, results, notes)


def reproduce(name: str, dataset: Dataset, base: str | Path, out: str | Path, scale: str | Scale = "small", workers: int = 1,
              progress: bool = True, executor: Executor | None = None, texts: Dataset | None = None, device: str = "cpu",
              dtype: str | None = None) -> Reproduction:
    """Runs a table or a figure of a paper on a data set and returns it beside the paper's, run by run in the folder `out`.

    `name` is "ulmfit.table4" to "ulmfit.table7" or "ulmfit.figure3"; `dataset` one of those that the paper reports; `base` the
    folder of the pre-trained model or of the run that made it, or the name of one that comes with the package. `scale` says
    how large: "small" is for two cores, "medium" for minutes on a GPU, "full" the whole training set. Table 5 makes two bases
    of its own, with the tokenizer of `base`, from `texts`. Tables may share `out`: a language model that they have in common
    is tuned once. Called again it goes on where it stopped; `workers`, `executor`, `device` and `dtype` are as in
    `sample_efficiency`.
    Raises ValueError for a name, data set or scale that is not there, an executor of threads, and for table 5 without texts.
    """
    figures(name, dataset.name)
    refuse_threads(executor)
    size, base = _scale(scale), model_folder(base)
    rows = ROWS[name](size)
    protocol = (size.protocol_of_curve if name == CURVE else size.protocol_of)(rows, len(dataset.train))
    measure = partial(sample_efficiency, dataset, out=out, protocol=protocol, baseline=name == CURVE, workers=workers,
                      progress=progress, executor=executor, device=device, dtype=dtype)
    if name == RECURRENT:
        if texts is None:
            raise ValueError(f"reproduce: {name} pre-trains its own language models. Give it something to read: "
                             "texts=data.load('wikitext2')")
        folders = {row.name: _recurrent_base(Path(out), base, texts, size, share, progress, device, dtype)
                   for row, share in zip(rows, (0.0, size.regularization), strict=True)}
        bases = {row: read_json(folder / "pretraining.json") for row, folder in folders.items()}
        results = _together([measure(backbone=folders[row.name], methods={row.name: row.recipe}) for row in rows])
        results.settings["overlap"] |= {texts.name: str(overlap(texts_of(texts), dataset.test.texts))}
    else:
        bases = {"every row": _described(from_pretrained(base))}        # before the runs: what is wrong with it is told now
        results = measure(backbone=base, methods={row.name: row.recipe for row in rows})
    results.settings["bases"] = bases
    results.settings["scale"] = scale if isinstance(scale, str) else repr(scale)
    return _reproduction(name, results, _notes(name, dataset, rows, size, results))


def _scale(scale: str | Scale) -> Scale:
    if isinstance(scale, str) and scale not in SCALES:
        raise ValueError(f"reproduce: scale must be one of {', '.join(SCALES)}, or a Scale, got {scale!r}")
    return SCALES[scale] if isinstance(scale, str) else scale


def _described(model: Any) -> dict[str, Any]:
    return {"model": type(model).__name__, "parameters": model.num_parameters()}


def _recurrent_base(out: Path, base: str | Path, texts: Dataset, scale: Scale, share: float, progress: bool,
                    device: str = "cpu", dtype: str | None = None) -> Path:
    """The folder of a recurrent model that has read `texts` with this share of the paper's regularisers; made once."""
    tokenizer: Any = from_pretrained(base).tokenizer
    paper: dict[str, Any] = asdict(AWDLSTMConfig(tokenizer.vocab_size))
    scaled = {name: share * value for name, value in paper.items() if "dropout" in name or "regularization" in name}
    config = AWDLSTMConfig(tokenizer.vocab_size, **scale.recurrent, **scaled)
    asked = {"config": asdict(config), "stage": asdict(scale.pretraining), "texts": texts.name,
             "fingerprint": texts.fingerprint, "minitune": __version__,
             "tokenizer": _digest((Path(base) / "tokenizer.json").read_bytes())}
    folder = out / "bases" / _digest(json.dumps(asked, sort_keys=True).encode())
    if (folder / "model.safetensors").exists():
        return folder
    backend.seed(0)
    model = AWDLSTM(config)
    model.tokenizer = tokenizer
    model.to(device, dtype)
    valid = texts.valid.texts if "valid" in texts.splits else None
    trainer = tune_language_model(model, texts_of(texts), scale.pretraining, valid, folder,
                                  progress="pre-training an LSTM" if progress else False)
    rows: Any = trainer.train
    measured = {"tokens_read": trainer.step * trainer.batch_size * rows.ids.shape[1],
                "perplexity": trainer.best.measured["perplexity"] if trainer.best else None}       # of the weights kept
    write_text(folder / "pretraining.json", json.dumps(asked | _described(model) | measured, indent=2) + "\n")
    model.save_pretrained(folder)               # last: it says that the folder is whole
    remove_checkpoints(folder)
    return folder


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:8]


def _together(parts: Sequence[Results]) -> Results:
    """The runs of several experiments that differ in their base alone."""
    settings = dict(parts[0].settings)
    for name in ("recipes", "language_models"):
        settings[name] = {key: value for part in parts for key, value in part.settings[name].items()}
    for name in ("rates_at_the_edge", "scratch_not_stalled", "sweep"):
        settings[name] = [entry for part in parts for entry in part.settings[name]]
    return Results([row for part in parts for row in part.rows], settings)


# ---- What is comparable --------------------------------------------------------------------------------------------

def _notes(name: str, dataset: Dataset, rows: Sequence[Row], scale: Scale, results: Results) -> list[str]:
    """Sentences on what of a reproduction compares with the paper and what does not."""
    used = "" if name == CURVE else f", of which {results.sizes[0]:,} are used"
    bases = "; ".join(f"{_base(base)} ({row})" for row, base in results.settings["bases"].items())
    chosen = ", ".join(f"{row.name} {results.runs(row.name, results.sizes[0])[0]['rate']:g}" for row in rows)
    notes = [COMPARABLE,
             f"Not comparable: the errors themselves. The paper's: {VALIDATION}. Here: the error on {len(dataset.test):,} test "
             f"texts of the weights that did best on {len(dataset.valid):,} validation texts.",
             _seeds(results),
             f"The paper has {TRAINING_TEXTS[DATA[dataset.name]]:,} training texts with labels; here there are "
             f"{len(dataset.train):,}{used}.",
             "The paper's base is an AWD-LSTM of 3 layers of 1,150 units that has read 103 million words of Wikipedia. Here: "
             f"{bases}.",
             f"{RATES_OF_CURVE if name == CURVE else RATES} Chosen: {chosen}.", f"Scale: {scale.note or 'as given'}."]
    stages = [stage for row in rows if (stage := row.recipe.language_model)]
    factors = sorted({stage.rate_factor for stage in stages} - {1.0, PAPERS_FACTOR})
    notes += [f"Discriminative rates of the language model's stage: each layer learns at the rate of the one above divided by "
              f"{factor:g}; the paper divides by {PAPERS_FACTOR:g}, as the classifier's stage does here." for factor in factors]
    return [*notes, *(f"{row.name}: {row.note}." for row in rows if row.note)]


def _seeds(results: Results) -> str:
    """How many seeds each label count has, and what that means for the intervals."""
    counts = {n: max(len(results.runs(name, n)) for name in results.methods if n in results.sizes_of(name))
              for n in results.all_sizes}
    said = ", ".join(f"{seeds} at {n:,} labels" for n, seeds in counts.items())
    return (f"Seeds: {said}. Intervals from 2 to 5 seeds tend to be too narrow even though they are widened for it; with 1 "
            "seed an interval is of the test texts alone, and does not say how runs differ.")


def _base(base: dict[str, Any]) -> str:
    read = f" that has read {base['tokens_read']:,} tokens of {base['texts']}" if "texts" in base else ""
    perplexity = f" (perplexity {base['perplexity']:.1f} on its validation texts)" if base.get("perplexity") else ""
    return f"{base['model']} of {base['parameters']:,} weights{read}{perplexity}"


def _plain(estimate: Estimate) -> str:
    value, low, high = estimate
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _signed(estimate: Estimate) -> str:
    value, low, high = estimate
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _aligned(head: list[str], lines: list[list[str]]) -> str:
    """Lines whose columns stand under each other, after some lines of text."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join([*head, *("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)])
