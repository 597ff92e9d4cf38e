"""sample_efficiency: how many labels is pre-training worth? The experiment of ULMFiT's figure 3, for any data set.

Nested, class-balanced label subsets; a fixed validation set; several seeds; learning rates swept for every method,
scratch included, on validation only; the test set is read once, by the weights that did best on validation.
Source of the design: Howard and Ruder 2018, ULMFiT, section 5 (low-shot learning).
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .. import __version__, backend
from ..data import ClassificationSet, Dataset, nested_subsets
from ..models import Classifier, from_pretrained
from ..optim import constant
from ..train import Trainer, predict
from ..tune import FullConfig, apply
from ..tune.apply import Method
from ..tune.patterns import backbone_of
from .baseline import require_scikit_learn, tfidf
from .finetuning import TUNING
from .results import BASELINE, SCRATCH, Results
from .runner import run, worker_pool

METHODS: dict[str, Method] = {SCRATCH: FullConfig(), **TUNING}
RATES = {SCRATCH: (1e-4, 3e-4, 1e-3, 3e-3), "frozen": (3e-3, 1e-2, 3e-2, 1e-1), "full": (3e-5, 1e-4, 3e-4, 1e-3),
         "lora": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}


DIVERGED = 1e9                                  # the loss written for a rate whose training came to nothing


@dataclass(frozen=True)
class Protocol:
    """How every run is made.

    Tuned runs make `steps(labels)` steps, with `evaluations` on the validation set on the way. Scratch makes as many and
    goes on until validation has stalled for `patience` evaluations, up to `longest` times as many. `scratch_sizes` are
    label counts for scratch and the plain baseline alone, to see how many labels it takes them. `sweep_at` is the label
    count at which rates are chosen, None for each count anew.
    """

    sizes: tuple[int, ...] = (16, 64, 256)
    scratch_sizes: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: dict(RATES))
    sweep_seeds: tuple[int, ...] = (0,)
    sweep_at: int | None = None
    least_steps: int = 60
    epochs: int = 10
    longest: int = 4
    evaluations: int = 8
    patience: int = 4
    batch_size: int = 16
    pooling: str = "mean"

    def sizes_of(self, method: str) -> tuple[int, ...]:
        """The label counts that a method is run with."""
        return (*self.sizes, *self.scratch_sizes) if method in (SCRATCH, BASELINE) else self.sizes

    def steps(self, labels: int) -> int:
        """Steps of a tuned run: `epochs` times through the labels, and at least `least_steps`."""
        return max(self.least_steps, self.epochs * labels // self.batch_size)


@dataclass(frozen=True)
class Task:
    """What every run reads: the pre-trained folder and the encoded splits. Sent to worker processes as it is."""

    folder: str
    labels: tuple[str, ...]
    train: ClassificationSet
    valid: ClassificationSet
    test: ClassificationSet
    texts: dict[str, list[str]]             # of train, valid and test, for the baseline
    methods: Mapping[str, Method]
    protocol: Protocol


def sample_efficiency(dataset: Dataset, backbone: str | Path, out: str | Path, protocol: Protocol | None = None,
                      methods: Mapping[str, Method] | None = None, baseline: bool = True, workers: int = 1,
                      progress: bool = True) -> Results:
    """Trains every method on every label count with every seed and returns the results, written to `out` as they come.

    `backbone` is the folder of a pre-trained model of texts with its tokenizer; "scratch" starts from new weights of the same
    sizes. `methods` maps names to tuning methods; their rates stand in `protocol.rates`. sweep.jsonl holds the runs
    that chose the rates, results.jsonl the others, a line a run. Called again it goes on where it stopped.
    With `workers` > 1 runs go side by side in other processes: call it under `if __name__ == "__main__":`.
    Raises ValueError for a method without rates, a backbone without tokenizer, or more labels than the set has.
    """
    protocol, methods = protocol or Protocol(), methods or METHODS
    names = [*methods, BASELINE] if baseline else list(methods)
    check(dataset, protocol, names)
    task, common = make_task(dataset, backbone, methods, protocol), _common(dataset, backbone)
    work: Callable[[dict[str, Any]], dict[str, Any]] = partial(run_one, task)
    with worker_pool(workers) as executor:
        sweep = run(_sweep_specs(protocol, methods, common), work, Path(out) / "sweep.jsonl", executor,
                    "choosing rates" if progress else "")
        best = _best_rates(sweep)
        rows = run(_final_specs(protocol, methods, names, best, common), work, Path(out) / "results.jsonl", executor,
                   "fine-tuning" if progress else "")
    return Results(rows, {"dataset": dataset.name, "version": dataset.version, "citation": dataset.citation,
                          "fingerprint": dataset.fingerprint, "protocol": asdict(protocol),
                          "rates_at_the_edge": _at_the_edge(best, protocol), "test_groups": dataset.test.groups})


def check(dataset: Dataset, protocol: Protocol, names: Sequence[str]) -> None:
    """Whatever can be seen to fail later fails now, before hours of work: raises ValueError or ImportError."""
    lacking = [name for name in ("train", "valid", "test") if name not in dataset.splits]
    if dataset.kind != "classification" or lacking:
        raise ValueError(f"sample_efficiency: expected texts with labels, split into train, valid and test; {dataset.name} is "
                         f"of kind {dataset.kind!r}" + (f" and has no split named {lacking[0]!r}" if lacking else ""))
    lacking = [name for name in names if name != BASELINE and name not in protocol.rates]
    if lacking:
        raise ValueError(f"sample_efficiency: protocol.rates has no learning rates for {', '.join(lacking)}")
    for size in {n for name in names for n in protocol.sizes_of(name)}:
        nested_subsets(dataset.train.labels, [size], seed=0)        # type: ignore[arg-type]
    if BASELINE in names:
        require_scikit_learn()


def _common(dataset: Dataset, backbone: str | Path) -> dict[str, Any]:
    """What every run of a call shares. It is part of every line, so that lines of another data set, backbone or version in
    the same file are never taken for these."""
    digest = sha256()
    for file in sorted(Path(backbone).glob("model*.safetensors")):         # one, or the shards of a large model
        digest.update(file.read_bytes())
    return {"dataset": dataset.name, "fingerprint": dataset.fingerprint, "backbone": digest.hexdigest()[:8],
            "minitune": __version__}


def _recipe(protocol: Protocol, method: Method | None) -> str:
    """Eight hex digits of how a run is made, beside what its line says: the method's settings and the protocol's."""
    free = ("sizes", "scratch_sizes", "seeds", "rates", "sweep_seeds", "sweep_at")      # in the line, or choose its rate
    kept = {name: value for name, value in asdict(protocol).items() if name not in free}
    return sha256(repr((kept, method)).encode()).hexdigest()[:8]


def _sweep_specs(protocol: Protocol, methods: Mapping[str, Method], common: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that choose rates; where there is one rate there is nothing to choose."""
    return [{"method": name, "labels": n, "seed": seed, "rate": rate, "sweep": True, "recipe": _recipe(protocol, method),
             **common}
            for name, method in methods.items() if len(protocol.rates[name]) > 1
            for n in ((protocol.sweep_at,) if protocol.sweep_at else protocol.sizes_of(name))
            for rate in protocol.rates[name] for seed in protocol.sweep_seeds]


def _final_specs(protocol: Protocol, methods: Mapping[str, Method], names: Sequence[str],
                 best: Mapping[tuple[str, int], float], common: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that are tested, each at the rate chosen for it; the baseline has none."""
    def rate(name: str, n: int) -> float | None:
        return best.get((name, protocol.sweep_at or n), protocol.rates.get(name, (None,))[0])

    return [{"method": name, "labels": n, "seed": seed, "rate": rate(name, n), "recipe": _recipe(protocol, methods.get(name)),
             **common}
            for name in names for n in protocol.sizes_of(name) for seed in protocol.seeds]


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


def make_task(dataset: Dataset, backbone: str | Path, methods: Mapping[str, Method], protocol: Protocol) -> Task:
    """Encodes the splits for the pre-trained model in the folder `backbone`."""
    model = from_pretrained(backbone)
    if model.tokenizer is None:
        raise ValueError(f"sample_efficiency: {backbone} must hold a model of texts with its tokenizer.json")
    block_size = backbone_of(model).config.block_size
    train, valid, test = (ClassificationSet.from_split(split, model.tokenizer, block_size, model.causal)
                          for split in (dataset.train, dataset.valid, dataset.test))
    texts = {"train": dataset.train.texts, "valid": dataset.valid.texts, "test": dataset.test.texts}
    return Task(str(backbone), dataset.labels, train, valid, test, texts, methods, protocol)


def run_one(task: Task, spec: dict[str, Any]) -> dict[str, Any]:
    """One run: trains on the spec's label subset and measures. A sweep's run never touches the test set.

    `seconds` is measured while memory is traced, which takes about a tenth of them.
    """
    _load_everything(task, spec["method"])
    rows = nested_subsets(task.train.labels, [spec["labels"]], spec["seed"])[spec["labels"]]
    tracemalloc.start()
    start = perf_counter()
    try:
        result = (_run_baseline if spec["method"] == BASELINE else _run_model)(task, spec, rows)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return result | {"seconds": round(perf_counter() - start, 3), "peak_memory_mb": round(peak / 2**20, 2)}


_loaded: set[tuple[str, str]] = set()           # (folder, method) of the runs that this process has made ready


def _load_everything(task: Task, method: str) -> None:
    """Loads libraries and compiled twins before anything is measured: a process's first run would be charged for them."""
    if method == BASELINE:
        require_scikit_learn()
    elif (task.folder, method) not in _loaded:
        row = task.train.subset(np.zeros(1, int))
        Trainer(_model(task, method), row, row, lr=1e-9, steps=1, progress=False).fit()
        _loaded.add((task.folder, method))


def _run_model(task: Task, spec: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    backend.seed(spec["seed"])
    model = _model(task, spec["method"])
    protocol, steps, scratch = task.protocol, task.protocol.steps(spec["labels"]), spec["method"] == SCRATCH
    trainer = Trainer(model, task.train.subset(rows), task.valid, lr=spec["rate"], batch_size=protocol.batch_size,
                      steps=steps * protocol.longest if scratch else steps, min_steps=steps,
                      patience=protocol.patience if scratch else None, evaluate_every=max(1, steps // protocol.evaluations),
                      schedule=lambda step, _: constant(step, steps), progress=False)
    try:
        trainer.fit()
    except FloatingPointError:                  # a rate too high is a result: the best before it counts, if there was one
        if trainer.best is None and "sweep" not in spec:
            raise
    best = trainer.best
    result = {"valid_error": best.measured["error"] if best else 1.0, "valid_loss": best.measured["loss"] if best else DIVERGED,
              "steps": trainer.step, "best_step": best.step if best else 0,
              "trainable_parameters": model.num_parameters(trainable=True), "total_parameters": model.num_parameters()}
    return result if "sweep" in spec else result | _test(task, predict(model, task.test))


def _model(task: Task, method: str) -> Classifier:
    pretrained = backbone_of(from_pretrained(task.folder))
    backbone = type(pretrained)(pretrained.config) if method == SCRATCH else pretrained
    model = Classifier(backbone, task.labels, task.protocol.pooling)
    apply(model, task.methods[method])
    return model


def _run_baseline(task: Task, spec: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    found = tfidf([task.texts["train"][i] for i in rows], task.train.labels[rows], task.texts["valid"],
                  task.valid.labels, task.texts["test"])
    return {"valid_error": found.valid_error, "trainable_parameters": found.parameters,
            "total_parameters": found.parameters} | _test(task, found.predictions)


def _test(task: Task, predictions: np.ndarray) -> dict[str, Any]:
    """The test error, and which texts were put into a wrong class, as hex digits of bits: for paired intervals."""
    wrong = predictions != task.test.labels
    return {"error": float(wrong.mean()), "test_texts": len(wrong), "wrong": np.packbits(wrong).tobytes().hex()}
