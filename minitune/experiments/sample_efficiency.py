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

from .. import backend
from ..data import ClassificationSet, Dataset, nested_subsets
from ..models import GPT, Classifier, from_pretrained
from ..optim import constant
from ..train import Trainer, predict
from ..tune import FreezeConfig, FullConfig, LoRAConfig, apply
from ..tune.apply import Method
from .baseline import tfidf
from .results import Results
from .runner import run, worker_pool

BASELINE, SCRATCH = "tf-idf", "scratch"
METHODS: dict[str, Method] = {SCRATCH: FullConfig(), "frozen": FreezeConfig(), "full": FullConfig(),
                              "lora": LoRAConfig(r=8, lora_alpha=16)}
RATES = {SCRATCH: (3e-4, 1e-3, 3e-3), "frozen": (1e-2, 3e-2, 1e-1), "full": (1e-4, 3e-4, 1e-3), "lora": (3e-3, 1e-2, 3e-2)}


@dataclass(frozen=True)
class Protocol:
    """How every run is made. Tuned runs make `steps(labels)` steps; scratch makes as many and goes on until validation
    has stalled for `patience` evaluations, up to `longest` times as many. `scratch_sizes` are label counts for scratch
    and the plain baseline alone, to see how many labels it takes them. `sweep_at` is the label count at which rates are
    chosen, None for each count anew."""

    sizes: tuple[int, ...] = (16, 64, 256)
    scratch_sizes: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: dict(RATES))
    sweep_seeds: tuple[int, ...] = (0,)
    sweep_at: int | None = None
    least_steps: int = 60
    epochs: int = 10
    longest: int = 4
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
    texts: dict[str, list[str]]
    methods: Mapping[str, Method]
    protocol: Protocol


def sample_efficiency(dataset: Dataset, backbone: str | Path, out: str | Path, protocol: Protocol | None = None,
                      methods: Mapping[str, Method] | None = None, baseline: bool = True, workers: int = 1,
                      progress: bool = True) -> Results:
    """Trains every method on every label count with every seed and returns the results, written to `out` as they come.

    `backbone` is the folder of a pre-trained GPT with its tokenizer; "scratch" starts from new weights of the same
    sizes. `methods` maps names to tuning methods; their rates stand in `protocol.rates`. sweep.jsonl holds the runs
    that chose the rates, results.jsonl the others, a line a run. Called again it goes on where it stopped.
    With `workers` > 1 runs go side by side in other processes: call it under `if __name__ == "__main__":`.
    Raises ValueError for a method without rates, a backbone without tokenizer, or more labels than the set has.
    """
    protocol, methods = protocol or Protocol(), methods or METHODS
    lacking = [name for name in methods if name not in protocol.rates]
    if lacking:
        raise ValueError(f"sample_efficiency: protocol.rates has no learning rates for {', '.join(lacking)}")
    task = make_task(dataset, backbone, methods, protocol)
    settings = _settings(dataset, backbone, protocol, methods)
    work: Callable[[dict[str, Any]], dict[str, Any]] = partial(run_one, task)
    with worker_pool(workers) as executor:
        sweep = run(_sweep_specs(protocol, methods, settings), work, Path(out) / "sweep.jsonl", executor,
                    "choosing rates" if progress else "")
        names = [*methods, BASELINE] if baseline else list(methods)
        specs = _final_specs(protocol, names, _best_rates(sweep), settings)
        rows = run(specs, work, Path(out) / "results.jsonl", executor, "fine-tuning" if progress else "")
    return Results(rows, {"dataset": dataset.name, "version": dataset.version, "citation": dataset.citation,
                          "fingerprint": dataset.fingerprint, "protocol": asdict(protocol)})


def _settings(dataset: Dataset, backbone: str | Path, protocol: Protocol, methods: Mapping[str, Method]) -> dict[str, Any]:
    """What makes two runs of equal method, labels, seed and rate different. It is part of every line, so that lines of
    other settings in the same file are never taken for these."""
    free = ("sizes", "scratch_sizes", "seeds", "rates", "sweep_seeds", "sweep_at")      # in the line, or choose its rate
    kept = {name: value for name, value in asdict(protocol).items() if name not in free}
    weights = (Path(backbone) / "model.safetensors").read_bytes()
    return {"dataset": dataset.name, "fingerprint": dataset.fingerprint, "backbone": sha256(weights).hexdigest()[:8],
            "protocol": sha256(repr((kept, sorted(map(repr, methods.items())))).encode()).hexdigest()[:8]}


def _sweep_specs(protocol: Protocol, methods: Mapping[str, Method], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that choose rates; where there is one rate there is nothing to choose."""
    return [{"method": name, "labels": n, "seed": seed, "rate": rate, "sweep": True, **settings}
            for name in methods for n in ((protocol.sweep_at,) if protocol.sweep_at else protocol.sizes_of(name))
            for rate in protocol.rates[name] for seed in protocol.sweep_seeds if len(protocol.rates[name]) > 1]


def _final_specs(protocol: Protocol, names: Sequence[str], best: Mapping[tuple[str, int], float],
                 settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that are tested, each at the rate chosen for it; the baseline has none."""
    def rate(name: str, n: int) -> float | None:
        return best.get((name, protocol.sweep_at or n), protocol.rates.get(name, (None,))[0])

    return [{"method": name, "labels": n, "seed": seed, "rate": rate(name, n), **settings}
            for name in names for n in protocol.sizes_of(name) for seed in protocol.seeds]


def _best_rates(sweep: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], float]:
    """{(method, labels): rate} with the lowest mean validation error; the mean loss decides between equals."""
    scores: dict[tuple[str, int], dict[float, list[tuple[float, float]]]] = {}
    for row in sweep:
        at_rate = scores.setdefault((row["method"], row["labels"]), {})
        at_rate.setdefault(row["rate"], []).append((row["valid_error"], row["valid_loss"]))
    return {key: min(by_rate, key=lambda rate: tuple(np.mean(by_rate[rate], 0))) for key, by_rate in scores.items()}


def make_task(dataset: Dataset, backbone: str | Path, methods: Mapping[str, Method], protocol: Protocol) -> Task:
    """Encodes the splits for the pre-trained model in the folder `backbone`."""
    model = from_pretrained(backbone)
    if not isinstance(model, GPT) or model.tokenizer is None:
        raise ValueError(f"sample_efficiency: {backbone} must hold a GPT with its tokenizer.json")
    block_size = model.config.block_size
    train, valid, test = (ClassificationSet.from_split(split, model.tokenizer, block_size)
                          for split in (dataset.train, dataset.valid, dataset.test))
    texts = {"train": dataset.train.texts, "valid": dataset.valid.texts, "test": dataset.test.texts}
    return Task(str(backbone), dataset.labels, train, valid, test, texts, methods, protocol)


def run_one(task: Task, spec: dict[str, Any]) -> dict[str, Any]:
    """One run: trains on the spec's label subset and measures. A sweep's run never touches the test set."""
    rows = nested_subsets(task.train.labels, [spec["labels"]], spec["seed"])[spec["labels"]]
    tracemalloc.start()
    start = perf_counter()
    try:
        result = (_run_baseline if spec["method"] == BASELINE else _run_model)(task, spec, rows)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return result | {"seconds": round(perf_counter() - start, 3), "peak_memory_mb": round(peak / 2**20, 2)}


def _run_model(task: Task, spec: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    backend.seed(spec["seed"])
    model = _model(task, spec["method"])
    protocol, steps, scratch = task.protocol, task.protocol.steps(spec["labels"]), spec["method"] == SCRATCH
    trainer = Trainer(model, task.train.subset(rows), task.valid, lr=spec["rate"], batch_size=protocol.batch_size,
                      steps=steps * protocol.longest if scratch else steps, min_steps=steps,
                      patience=protocol.patience if scratch else None, evaluate_every=max(1, steps // 8),
                      schedule=lambda step, _: constant(step, steps), progress=False)
    trainer.fit()
    assert trainer.best is not None
    best = min(trainer.history.rows, key=lambda row: row["valid_error"])
    result = {"valid_error": best["valid_error"], "valid_loss": best["valid_loss"], "steps": trainer.step,
              "best_step": trainer.best[1], "trainable_parameters": model.num_parameters(trainable=True),
              "total_parameters": model.num_parameters()}
    return result if "sweep" in spec else result | _test(task, predict(model, task.test))


def _model(task: Task, method: str) -> Classifier:
    pretrained = from_pretrained(task.folder)
    assert isinstance(pretrained, GPT)
    model = Classifier(GPT(pretrained.config) if method == SCRATCH else pretrained, task.labels, task.protocol.pooling)
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
