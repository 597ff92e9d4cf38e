"""sample_efficiency: how many labels is pre-training worth? The experiment of ULMFiT's figure 3, for any data set.

Nested, class-balanced label subsets; a fixed validation set; several seeds; learning rates swept for every method,
scratch included, on validation only; the test set is read once, by the weights that did best on validation.
Source of the design: Howard and Ruder 2018, ULMFiT, section 5 (low-shot learning).
"""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from math import log
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import __version__, backend
from ..data import ClassificationSet, Dataset, Split, nested_subsets, overlap
from ..formats.folder import WEIGHTS
from ..models import Classifier, from_pretrained
from ..train import Callback, Trainer, predict, remove_checkpoints
from ..tune import FullConfig
from ..tune.apply import Method
from ..tune.nf4 import quantized_count
from ..tune.patterns import backbone_of
from .baseline import require_scikit_learn, tfidf
from .finetuning import TUNING, model_folder
from .recipe import LanguageModelStage, Recipe, plain, starting_model, texts_of, tune_language_model
from .results import BASELINE, SCRATCH, Results
from .runner import append_line, read_lines, refuse_threads, run, worker_pool

METHODS: dict[str, Method | Recipe] = {SCRATCH: plain(FullConfig(), pretrained=False), **TUNING}
ULMFIT: dict[str, Method | Recipe] = {
    SCRATCH: METHODS[SCRATCH], "supervised": Recipe(language_model=LanguageModelStage("labelled", epochs=10)),
    "semi-supervised": Recipe(language_model=LanguageModelStage("unlabelled"))}
RATES = {SCRATCH: (1e-4, 3e-4, 1e-3, 3e-3), "frozen": (3e-3, 1e-2, 3e-2, 1e-1), "full": (3e-5, 1e-4, 3e-4, 1e-3),
         "lora": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)} | dict.fromkeys(("supervised", "semi-supervised"), (1e-3, 3e-3, 1e-2))
SWEPT = "method", "labels", "seed", "rate", "valid_error", "valid_loss"         # what a result tells of a run that chose rates
DIVERGED = 1e9                                  # the loss written for a rate whose training came to nothing


@dataclass(frozen=True)
class Protocol:
    """How every run is made.

    Tuned runs make `steps(labels)` steps, with `evaluations` on the validation set on the way. Scratch makes as many and
    goes on until validation has stalled for `patience` evaluations, up to `longest` times as many. `scratch_sizes` are
    label counts for scratch and the plain baseline alone, to see how many labels it takes them. `sweep_at` are the label
    counts at which rates are chosen, each for the counts that are nearest; none: for each count anew. `fewer_seeds`, pairs
    (labels, seeds), give label counts above so many only the first so many of the seeds. `block_size`, tokens, cuts texts
    shorter than the model must. `trace_memory` measures each run's peak memory, which takes from a tenth of its time to, where
    steps are tiny, half of it.
    """

    sizes: tuple[int, ...] = (16, 64, 256)
    scratch_sizes: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: dict(RATES))
    sweep_seeds: tuple[int, ...] = (0,)
    sweep_at: tuple[int, ...] = ()
    fewer_seeds: tuple[tuple[int, int], ...] = ()
    block_size: int | None = None
    least_steps: int = 60
    most_steps: int | None = None
    epochs: int = 10
    longest: int = 4
    evaluations: int = 8
    patience: int = 4
    batch_size: int = 16
    pooling: str = "mean"
    trace_memory: bool = True

    def sizes_of(self, method: str) -> tuple[int, ...]:
        """The label counts that a method is run with."""
        return tuple(dict.fromkeys((*self.sizes, *(self.scratch_sizes if method in (SCRATCH, BASELINE) else ()))))

    def seeds_of(self, labels: int) -> tuple[int, ...]:
        """The seeds of the runs with so many labels."""
        return self.seeds[: min([len(self.seeds), *(seeds for above, seeds in self.fewer_seeds if labels > above)])]

    def swept_at(self, labels: int) -> int:
        """The label count at which the rate for so many labels is chosen: the nearest by its ratio."""
        return min(self.sweep_at or (labels,), key=lambda n: abs(log(n / labels)))

    def steps(self, labels: int) -> int:
        """Steps of a tuned run: `epochs` times through the labels, but at least `least_steps` and at most `most_steps`."""
        steps = max(self.least_steps, self.epochs * labels // self.batch_size)
        return min(steps, self.most_steps or steps)


@dataclass(frozen=True)
class Measure:
    """What a tested run measures beside its error. `key`, entries of its line, says what that is: with others, another run.

    It goes to the processes that run, so a subclass holds what can be pickled.
    """

    key: Mapping[str, Any]

    def columns(self, task: Task, spec: Mapping[str, Any], rows: np.ndarray, trainer: Trainer | None) -> dict[str, Any]:
        """More entries of the line of a run that has trained on the labels `rows`; its model holds the best weights.

        Without a trainer, the run trained nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} measures nothing")


@dataclass(frozen=True)
class Task:
    """What every run reads: the pre-trained folder, the splits, and these encoded for its model. Sent to workers as it is."""

    folder: str
    labels: tuple[str, ...]
    train: ClassificationSet
    valid: ClassificationSet
    test: ClassificationSet
    splits: dict[str, Split]                # train, valid and test
    methods: Mapping[str, Recipe]
    protocol: Protocol
    device: str = "cpu"
    dtype: str | None = None
    language_models: Mapping[str, str] = field(default_factory=dict)       # {method: folder}, of those tuned for all its runs
    measure: Measure | None = None


def sample_efficiency(dataset: Dataset, backbone: str | Path, out: str | Path, protocol: Protocol | None = None,
                      methods: Mapping[str, Method | Recipe] | None = None, baseline: bool = True, workers: int = 1,
                      progress: bool = True, executor: Executor | None = None, device: str = "cpu",
                      dtype: str | None = None, measure: Measure | None = None) -> Results:
    """Trains every method on every label count with every seed and returns the results, written to `out` as they come.

    `backbone` is the folder of a pre-trained model of texts with its tokenizer, or the name of one that comes with minitune;
    "scratch" starts from new weights of the same sizes. `methods` maps names to recipes or plain tuning methods; their rates
    stand in `protocol.rates`. A language model that a recipe tunes on unlabelled texts is tuned once, before all runs, in this
    process; `seconds` of its line are of the call that ended it. sweep.jsonl holds the runs that chose the rates, results.jsonl
    the others, a line a run. Called again it goes on where it stopped.
    Runs go side by side in the processes of `executor`, of `concurrent.futures`' kind though not a pool of threads, or else in
    `workers` processes of their own: call it under `if __name__ == "__main__":`. `device` and `dtype` are those of `Module.to`,
    and no part of a line. `measure` adds entries to the lines of results.jsonl.
    The results' settings say what else to know: `overlap`, how many of the test texts occur in those that may be read without
    labels; `rates_at_the_edge`; `scratch_not_stalled`, runs from scratch that ended before validation had stalled.
    Raises ValueError for a method without rates, a seed given twice, a backbone without tokenizer, one that is no language
    model where a recipe tunes that first, an executor of threads, or more labels than the set has.
    """
    protocol, recipes = protocol or Protocol(), as_recipes(methods or METHODS)
    names, backbone = [*recipes, BASELINE] if baseline else list(recipes), model_folder(backbone)
    check(dataset, protocol, names)
    refuse_threads(executor)
    task, common = make_task(dataset, backbone, recipes, protocol), _common(dataset, backbone, recipes)
    task = replace(task, device=device, dtype=dtype, measure=measure)
    tested = {name: entries | dict(measure.key if measure else {}) for name, entries in common.items()}
    sweep_specs = _sweep_specs(protocol, recipes, common)
    final_specs = _final_specs(protocol, recipes, names, {}, tested)        # here only to be counted: rates come from the sweep
    with tqdm(total=len(sweep_specs) + len(final_specs), unit="run", disable=not progress) as bar:
        lines = _tune_language_models(task, dataset, Path(out), common, bar)
        task = replace(task, language_models={name: str(_kept_in(out, line)) for name, line in lines.items()})
        work: Callable[[dict[str, Any]], dict[str, Any]] = partial(run_one, task)
        pool: AbstractContextManager[Executor | None] = nullcontext(executor) if executor else worker_pool(workers)
        with pool as given:
            bar.set_description("choosing rates")
            sweep = run(sweep_specs, work, Path(out) / "sweep.jsonl", given, bar)
            best = _best_rates(sweep)
            bar.set_description("fine-tuning")
            rows = run(_final_specs(protocol, recipes, names, best, tested), work, Path(out) / "results.jsonl", given, bar)
    return Results(rows, {"dataset": dataset.name, "version": dataset.version, "citation": dataset.citation,
                          "fingerprint": dataset.fingerprint, "protocol": asdict(protocol), "notes": dataset.notes,
                          "recipes": {name: repr(recipe) for name, recipe in recipes.items()},
                          "language_models": {name: {k: v for k, v in line.items() if k != "folder"}
                                              for name, line in lines.items()},
                          "overlap": {dataset.name: str(overlap(texts_of(dataset), dataset.test.texts))},
                          "rates_at_the_edge": _at_the_edge(best, protocol),
                          "scratch_not_stalled": not_stalled(rows, recipes, protocol), "test_groups": dataset.test.groups,
                          "sweep": [{name: row[name] for name in SWEPT} for row in sweep]})


def as_recipes(methods: Mapping[str, Method | Recipe]) -> dict[str, Recipe]:
    """Recipes as they are; plain tuning methods as recipes of one rate, without schedules; the one named "scratch" from new
    weights."""
    return {name: method if isinstance(method, Recipe) else plain(method, pretrained=name != SCRATCH)
            for name, method in methods.items()}


def check(dataset: Dataset, protocol: Protocol, names: Sequence[str], caller: str = "sample_efficiency") -> None:
    """Whatever can be seen to fail later fails now, before hours of work: raises ValueError or ImportError."""
    lacking = [name for name in ("train", "valid", "test") if name not in dataset.splits]
    if dataset.kind != "classification" or lacking:
        raise ValueError(f"{caller}: expected texts with labels, split into train, valid and test; {dataset.name} is "
                         f"of kind {dataset.kind!r}" + (f" and has no split named {lacking[0]!r}" if lacking else ""))
    lacking = [name for name in names if name != BASELINE and name not in protocol.rates]
    if lacking:
        raise ValueError(f"{caller}: protocol.rates has no learning rates for {', '.join(lacking)}")
    for name, rates in protocol.rates.items():
        if not isinstance(rates, Sequence) or not all(rate >= 0 for rate in rates):
            raise ValueError(f"{caller}: protocol.rates[{name!r}] must be a tuple of learning rates, none below "
                             f"0, got {rates!r}")
    for name in ("sizes", "seeds", "sweep_seeds"):
        given: tuple[int, ...] = getattr(protocol, name)
        if not isinstance(given, Sequence) or not given:
            raise ValueError(f"{caller}: protocol.{name} must be a tuple of at least one number, got {given!r}")
        if name != "sizes" and len(set(given)) < len(given):
            raise ValueError(f"{caller}: protocol.{name} has a seed twice, {given}: the same run would count as two")
    for size in {n for name in names for n in protocol.sizes_of(name)}:
        nested_subsets(dataset.train.labels, [size], seed=0)        # type: ignore[arg-type]
    if BASELINE in names:
        require_scikit_learn()


def _common(dataset: Dataset, backbone: str | Path, recipes: Mapping[str, Recipe]) -> dict[str, dict[str, Any]]:
    """{method: what all its runs share}. It is part of every line, so that lines of another data set, backbone or version in
    the same file are never taken for these. Of a backbone, a run with new weights reads sizes and tokenizer alone."""
    weights = [file.read_bytes() for file in sorted(Path(backbone).glob("model*.safetensors"))]         # one, or the shards
    stored = from_pretrained(backbone)
    sizes = [repr(backbone_of(stored).config).encode(), (Path(backbone) / "tokenizer.json").read_bytes()]
    sizes += [b"backward"] if stored.tokenizer.backward else []        # tokenizer.json does not say it
    known = {True: _digest([*weights, *sizes]), False: _digest(sizes)}
    shared = {"dataset": dataset.name, "fingerprint": dataset.fingerprint, "minitune": __version__, "backbone": ""}
    return {BASELINE: shared} | {name: shared | {"backbone": known[recipe.pretrained]} for name, recipe in recipes.items()}


def _digest(contents: Sequence[bytes]) -> str:
    digest = sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()[:8]


def _recipe(protocol: Protocol, recipe: Recipe | None) -> str:
    """Eight hex digits of how a run is made, beside what its line says: the method's recipe and the protocol's settings."""
    free = ("sizes", "scratch_sizes", "seeds", "fewer_seeds", "rates", "sweep_seeds", "sweep_at")   # in the line, or behind it
    kept = {name: value for name, value in asdict(protocol).items() if name not in free}
    return sha256(repr((kept, recipe)).encode()).hexdigest()[:8]


def _tune_language_models(task: Task, dataset: Dataset, out: Path, common: Mapping[str, dict[str, Any]],
                          bar: tqdm) -> dict[str, dict[str, Any]]:
    """{method: the line of the language model that all its runs begin with}, for the recipes that tune one on all texts."""
    lines, file = {}, out / "language_models.jsonl"
    for name, recipe in task.methods.items():
        stage = recipe.language_model
        if stage and stage.texts == "unlabelled":
            spec = {"pretrained": recipe.pretrained, "stage": repr(stage), "dropout": recipe.dropout, **common[name]}
            new = spec | {"folder": _digest([json.dumps(spec, sort_keys=True).encode()])}
            folder = _kept_in(out, new)
            known = [line for line in read_lines(file) if _kept_in(out, line) == folder]
            if not known or not (folder / WEIGHTS).exists():
                bar.set_description("tuning the language model")
                known = [new | _tune_on_all(task, recipe, dataset, folder, bar)]
                append_line(file, known[0])
                remove_checkpoints(folder)      # last: without them an interrupted training would begin anew
            lines[name] = known[-1]
    return lines


def _kept_in(out: str | Path, line: Mapping[str, Any]) -> Path:
    """The folder of a language model; its line has the name alone, so that `out` can be moved."""
    return Path(out) / "language_models" / Path(line["folder"]).name


class _Told(Callback):
    """Shows a training's steps behind the bar of the whole experiment."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar

    def on_step_begin(self, trainer: Trainer) -> None:
        self.bar.set_postfix_str(f"step {trainer.step:,} of {trainer.steps:,}, loss {trainer.seen:.3f}")


def _tune_on_all(task: Task, recipe: Recipe, dataset: Dataset, folder: Path, bar: tqdm) -> dict[str, Any]:
    """Tunes a language model on every text that may be read, saves it in `folder`, and returns what was measured."""
    assert recipe.language_model is not None
    backend.seed(0)
    start, model, texts = perf_counter(), language_model(task, recipe), texts_of(dataset)
    trainer = tune_language_model(model, texts, recipe.language_model, dataset.valid.texts, folder, (_Told(bar),),
                                  dropout=recipe.dropout)
    bar.set_postfix_str("")
    model.save_pretrained(folder)
    rows: Any = trainer.train
    assert trainer.best
    return {"texts": len(texts), "tokens": rows.ids.size, "tokens_read": trainer.step * trainer.batch_size * rows.ids.shape[1],
            "perplexity": trainer.best.measured["perplexity"], "best_step": trainer.best.step,
            "seconds": round(perf_counter() - start, 1)}


def _sweep_specs(protocol: Protocol, recipes: Mapping[str, Recipe],
                 common: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that choose rates; where there is one rate there is nothing to choose."""
    return [{"method": name, "labels": n, "seed": seed, "rate": rate, "sweep": True, "recipe": _recipe(protocol, recipe),
             **common[name]}
            for name, recipe in recipes.items() if len(protocol.rates[name]) > 1
            for n in dict.fromkeys(map(protocol.swept_at, protocol.sizes_of(name)))
            for rate in protocol.rates[name] for seed in protocol.sweep_seeds]


def _final_specs(protocol: Protocol, recipes: Mapping[str, Recipe], names: Sequence[str],
                 best: Mapping[tuple[str, int], float], common: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that are tested, each at the rate chosen for it; the baseline has none."""
    def rate(name: str, n: int) -> float | None:
        return best.get((name, protocol.swept_at(n)), protocol.rates.get(name, (None,))[0])

    return [{"method": name, "labels": n, "seed": seed, "rate": rate(name, n), "recipe": _recipe(protocol, recipes.get(name)),
             **common[name]}
            for name in names for n in protocol.sizes_of(name) for seed in protocol.seeds_of(n)]


def _best_rates(sweep: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], float]:
    """{(method, labels): rate} with the lowest mean validation error; the mean loss decides between equals."""
    scores: dict[tuple[str, int], dict[float, list[tuple[float, float]]]] = {}
    for row in sweep:
        at_rate = scores.setdefault((row["method"], row["labels"]), {})
        at_rate.setdefault(row["rate"], []).append((row["valid_error"], row["valid_loss"]))
    return {key: min(by_rate, key=lambda rate: tuple(np.mean(by_rate[rate], 0))) for key, by_rate in scores.items()}


def _at_the_edge(best: Mapping[tuple[str, int], float], protocol: Protocol) -> list[str]:
    """Where the best rate is the lowest or highest that was tried, and a wider sweep might find a better one."""
    return [f"{name} at {n} labels: {rate:g}" for (name, n), rate in best.items()
            if rate in (min(protocol.rates[name]), max(protocol.rates[name]))]


def not_stalled(rows: Sequence[Mapping[str, Any]], recipes: Mapping[str, Recipe], protocol: Protocol) -> list[str]:
    """Where runs from scratch made all the steps they might and validation had not stalled: longer ones might err less."""
    scratch = [row for row in rows if row["method"] in recipes and recipes[row["method"]].from_scratch and "steps" in row]
    ended = Counter((row["method"], row["labels"], row["steps"] == protocol.steps(row["labels"]) * protocol.longest)
                    for row in scratch)
    return [f"{name} at {n} labels: {ended[name, n, True]} of {ended[name, n, True] + ended[name, n, False]} runs"
            for name, n in dict.fromkeys((row["method"], row["labels"]) for row in scratch) if ended[name, n, True]]


def make_task(dataset: Dataset, backbone: str | Path, methods: Mapping[str, Method | Recipe], protocol: Protocol) -> Task:
    """Encodes the splits for the pre-trained model in the folder `backbone`."""
    model = from_pretrained(backbone)
    if model.tokenizer is None:
        raise ValueError(f"sample_efficiency: {backbone} must hold a model of texts with its tokenizer.json")
    recipes = as_recipes(methods)
    staged = [name for name, recipe in recipes.items() if recipe.language_model]
    if staged and not hasattr(backbone_of(model), "language_loss"):
        raise ValueError(f"sample_efficiency: {', '.join(staged)} would tune a language model first, and {backbone} holds none "
                         f"but a {type(backbone_of(model)).__name__}. Give another backbone, or language_model=None")
    splits: dict[str, Split] = {name: dataset.splits[name] for name in ("train", "valid", "test")}      # type: ignore[misc]
    train, valid, test = (encode(split, model, protocol) for split in splits.values())
    return Task(str(backbone), dataset.labels, train, valid, test, splits, recipes, protocol)


def encode(split: Split, model: Any, protocol: Protocol) -> ClassificationSet:
    """A split as `model` reads it, its texts cut where the model or the protocol cuts them."""
    longest = backbone_of(model).config.block_size
    return ClassificationSet.from_split(split, model.tokenizer, min(longest, protocol.block_size or longest), model.causal)


def run_one(task: Task, spec: dict[str, Any]) -> dict[str, Any]:
    """One run: trains on the spec's label subset and measures. A sweep's run never touches the test set."""
    _load_everything(task, spec["method"])
    rows = nested_subsets(task.train.labels, [spec["labels"]], spec["seed"])[spec["labels"]]
    work, start = _work(task, spec["method"]), perf_counter()
    result = _with_peak_memory(work, task, spec, rows) if task.protocol.trace_memory else work(task, spec, rows)
    return result | {"seconds": round(perf_counter() - start, 3)}


def _work(task: Task, method: str) -> Callable[..., dict[str, Any]]:
    """What a run of a method does: a recipe that trains nothing says so itself."""
    return _run_baseline if method == BASELINE else getattr(task.methods[method], "run", _run_model)


def _with_peak_memory(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    tracemalloc.start()
    try:
        result = work(*arguments)
        return result | {"peak_memory_mb": round(tracemalloc.get_traced_memory()[1] / 2**20, 2)}
    finally:
        tracemalloc.stop()


_loaded: set[tuple[str, str]] = set()           # (folder, method) of the runs that this process has made ready


def _load_everything(task: Task, method: str) -> None:
    """Loads libraries and compiled twins before anything is measured: a process's first run would be charged for them."""
    if method == BASELINE:
        require_scikit_learn()
    elif (task.folder, method) not in _loaded and not hasattr(task.methods[method], "run"):
        model = fresh_model(task, method)
        row, *_ = sets_of(task, method, model, np.zeros(1, int))
        Trainer(model, row, row, lr=1e-9, steps=1, progress=False).fit()
        _loaded.add((task.folder, method))


def _run_model(task: Task, spec: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    backend.seed(spec["seed"])
    recipe, protocol, steps = task.methods[spec["method"]], task.protocol, task.protocol.steps(spec["labels"])
    model, scratch = _model(task, spec["method"], rows), recipe.from_scratch
    train, valid, test = sets_of(task, spec["method"], model, rows)
    trainer = recipe.trainer(model, train, valid, rate=spec["rate"], steps=steps,
                             batch_size=protocol.batch_size, min_steps=steps, patience=protocol.patience if scratch else None,
                             evaluate_every=max(1, steps // protocol.evaluations), progress=False,
                             longest=protocol.longest if scratch else 1)
    seconds = _step_seconds(trainer)
    try:
        trainer.fit()
    except FloatingPointError:                  # a rate too high is a result: the best before it counts, if there was one
        if trainer.best is None and "sweep" not in spec:
            raise
    best = trainer.best
    result = {"valid_error": best.measured["error"] if best else 1.0, "valid_loss": best.measured["loss"] if best else DIVERGED,
              "steps": trainer.step, "best_step": best.step if best else 0, "training_seconds": round(sum(seconds), 3),
              "trainable_parameters": sum(p.size for p in model.parameters() if id(p) in trainer.optimizer.slots),
              "total_parameters": model.num_parameters() + quantized_count(model)}
    if "sweep" in spec:
        return result
    result |= test_columns(task, predict(model, test))
    return result | task.measure.columns(task, spec, rows, trainer) if task.measure else result


def _step_seconds(trainer: Trainer) -> list[float]:
    """A list to which every step of this trainer will add how long it takes, without evaluations."""
    seconds: list[float] = []
    step = trainer.train_step

    def timed(*given: Any) -> Any:
        start = perf_counter()
        loss = step(*given)
        seconds.append(perf_counter() - start)
        return loss

    trainer.train_step = timed                  # type: ignore[method-assign, assignment]
    return seconds


def sets_of(task: Task, method: str, model: Classifier, rows: np.ndarray) -> tuple[ClassificationSet, ...]:
    """(the labelled texts `rows`, valid, test) as the model of a run reads them.

    They are encoded anew for one that has got a tokenizer of its own, and for one whose virtual tokens leave less room.
    """
    stage, room = task.methods[method].language_model, backbone_of(model).config.block_size
    longest = max(len(document) for given in (task.train, task.valid, task.test) for document in given.documents)
    if not (stage and stage.vocab_size) and longest <= room:
        return task.train.subset(rows), task.valid, task.test
    splits = task.splits["train"].subset(rows), task.splits["valid"], task.splits["test"]
    return tuple(encode(split, model, task.protocol) for split in splits)


def fresh_model(task: Task, method: str) -> Classifier:
    """The classifier of a method before any training, its language model's included."""
    recipe = task.methods[method]
    return recipe.classifier(language_model(task, recipe), task.labels, task.protocol.pooling)


def language_model(task: Task, recipe: Recipe) -> Any:
    """The pre-trained model, or one of the same sizes with new weights."""
    return starting_model(task.folder, recipe.pretrained).to(task.device, task.dtype)


def _model(task: Task, method: str, rows: np.ndarray) -> Classifier:
    """The classifier of a method, prepared; its language model tuned on the texts of `rows` where the recipe says so."""
    recipe = task.methods[method]
    tuned = task.language_models.get(method)
    backbone = from_pretrained(tuned).to(task.device, task.dtype) if tuned else language_model(task, recipe)
    if recipe.language_model and recipe.language_model.texts == "labelled":
        tune_language_model(backbone, task.splits["train"].subset(rows).texts, recipe.language_model,
                            task.splits["valid"].texts, dropout=recipe.dropout)
    return recipe.classifier(backbone, task.labels, task.protocol.pooling)


def _run_baseline(task: Task, spec: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    train, valid, test = task.splits.values()
    found = tfidf(train.subset(rows).texts, task.train.labels[rows], valid.texts, task.valid.labels, test.texts,
                  weighted_by=train.texts)
    return {"valid_error": found.valid_error, "trainable_parameters": found.parameters,
            "total_parameters": found.parameters} | test_columns(task, found.predictions)


def test_columns(task: Task, predictions: np.ndarray) -> dict[str, Any]:
    """The test error, and which texts were put into a wrong class, as hex digits of bits: for paired intervals."""
    wrong = predictions != task.test.labels
    return {"error": float(wrong.mean()), "test_texts": len(wrong), "wrong": np.packbits(wrong).tobytes().hex()}
