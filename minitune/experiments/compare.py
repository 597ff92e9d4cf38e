"""compare: can LoRA, or another method, stand in for full fine-tuning on these data, and what does it cost or save?

Every method on the same labels, with the same seeds and as many steps, each at the rate that did best on validation. Beside the
test error: what trains, how long, in how much memory, how large a file keeps it, and what the base forgets of general text.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .. import backend
from ..data import Batch, Dataset, load
from ..devices import to_device
from ..formats.folder import write_tensors
from ..models import Classifier, from_pretrained
from ..models.language_model import LanguageModel
from ..train import Trainer, evaluate
from ..tune import PiSSALinear
from ..tune.patterns import backbone_of
from .comparison import Comparison
from .finetuning import model_folder
from .recipe import Recipe
from .sample_efficiency import RATES, Measure, Protocol, Task, check, fresh_model, sample_efficiency, sets_of
from .tuning_methods import Prompting, chosen_methods, rates_of

GENERAL_TOKENS = 16_384                         # of general text that forgetting is measured on, at most
TRACED_STEPS = 3                                # of training, in which memory is traced; the run itself is not slowed by it
PROTOCOL = Protocol(rates={}, trace_memory=False)


class GeneralText:
    """Pieces of text as token ids, each a row of its own for `evaluate`: a language model predicts their next tokens."""

    causal = True

    def __init__(self, documents: Sequence[np.ndarray]) -> None:
        self.documents = documents

    def __len__(self) -> int:
        return len(self.documents)

    def batch(self, rows: np.ndarray) -> Batch:
        """The pieces of these numbers as a Batch, padded on the right."""
        return Batch.causal([[self.documents[row]] for row in rows])


@dataclass(frozen=True)
class Costs(Measure):
    """What a run costs beside its error: the size of a file of what was trained, peak memory, and what the base forgets.

    `general_loss` is the loss in nats a token of the tuned backbone on `documents`, as a language model and with all that was
    added to it; `general_loss_before` that of the base. Neither is there without documents, from new weights, or with another
    vocabulary. `peak_memory_mb` is that of NumPy arrays in three steps of the same training, the model's weights among them,
    unless the run itself is traced.
    """

    documents: tuple[np.ndarray, ...] = ()

    def columns(self, task: Task, spec: Mapping[str, Any], rows: np.ndarray, trainer: Trainer | None) -> dict[str, Any]:
        """file_mb, peak_memory_mb, general_loss and general_loss_before."""
        found = self._forgetting(task, spec, trainer)
        if trainer is None:
            return {"file_mb": 0.0, **found}
        peak = {} if tracemalloc.is_tracing() else {"peak_memory_mb": _peak_mb(task, spec, rows)}
        return {"file_mb": round(file_bytes(trainer) / 2**20, 4), **peak, **found}

    def _forgetting(self, task: Task, spec: Mapping[str, Any], trainer: Trainer | None) -> dict[str, float]:
        recipe = task.methods[spec["method"]]
        own_words = recipe.language_model is not None and recipe.language_model.vocab_size is not None
        if not self.documents or not recipe.pretrained or own_words:
            return {}
        before = self._before(task, spec)
        if trainer is None:
            return {"general_loss": before, "general_loss_before": before}
        stored = backbone_of(from_pretrained(task.folder))
        tuned = speaking(backbone_of(trainer.model), stored)
        return {"general_loss": evaluate(tuned, GeneralText(self.documents))["loss"], "general_loss_before": before}

    def _before(self, task: Task, spec: Mapping[str, Any]) -> float:
        """The loss of the base, measured once in a process."""
        known = task.folder, spec.get("backbone", ""), self.key["general"]
        if known not in _before:
            base = backbone_of(from_pretrained(task.folder)).to(task.device, task.dtype)
            _before[known] = evaluate(base, GeneralText(self.documents))["loss"]
        return _before[known]


_before: dict[tuple[str, str, str], float] = {}         # (folder, digests of its weights and of the general text): loss


def speaking(tuned: Any, stored: Any) -> Any:
    """A classifier's backbone as the language model that it was: what only gives logits was left out, and is of `stored`."""
    if not tuned.headless:
        return tuned
    whole = tuned.sharing_parameters()
    for name in ("lm_head", "bias"):
        if name in vars(stored):
            setattr(whole, name, vars(stored)[name])
    whole.headless = False
    return whole.to(tuned.device, tuned.dtype)


def file_bytes(trainer: Trainer) -> int:
    """How large a safetensors file is that keeps all that was trained, the new head among it.

    PiSSA's factors are kept as they began, too: on the base they are a LoRA of twice the rank, which `save_adapter` writes.
    """
    trained = {name: to_device(p.data, "cpu") for name, p in trainer.model.named_parameters()
               if id(p) in trainer.optimizer.slots}
    trained |= {f"{name}.{start}": to_device(getattr(part, start), "cpu") for name, part in trainer.model.named_modules()
                if isinstance(part, PiSSALinear) for start in ("start_A", "start_B")}
    with TemporaryDirectory() as folder:
        write_tensors(file := Path(folder) / "trained.safetensors", trained)
        return file.stat().st_size


def _peak_mb(task: Task, spec: Mapping[str, Any], rows: np.ndarray) -> float:
    """The most that arrays took in the first steps of the same training, in MB of 2^20 bytes."""
    recipe, protocol = task.methods[spec["method"]], task.protocol
    train, *_ = sets_of(task, spec["method"], fresh_model(task, spec["method"]), rows)     # texts are no part of it
    tracemalloc.start()
    try:
        backend.seed(spec["seed"])
        model: Classifier = fresh_model(task, spec["method"])
        trainer = recipe.trainer(model, train, None, rate=spec["rate"], steps=TRACED_STEPS, batch_size=protocol.batch_size,
                                 progress=False)
        tracemalloc.reset_peak()                # what reading a file took is none of training
        with suppress(FloatingPointError):      # steps as short as these rise to the rate more steeply than the run did
            trainer.fit()
        return round(tracemalloc.get_traced_memory()[1] / 2**20, 2)
    finally:
        tracemalloc.stop()


def compare(dataset: Dataset, base: str | Path, methods: Mapping[str, Any] | Iterable[str] = ("full", "lora"),
            out: str | Path = "runs/compare", protocol: Protocol | None = None, *, sizes: Sequence[int] | None = None,
            seeds: Sequence[int] | None = None, general: Sequence[str] | None = None, workers: int = 1, progress: bool = True,
            executor: Executor | None = None) -> Comparison:
    """Tunes a base with every method on every label count with every seed, and returns the comparison.

    `base` is the folder of a pre-trained model of texts, or "minitune-base", which comes with the package. `methods` are names
    ("full", "head", "top2", "bitfit", "lora", "rslora", "lora+", "dora", "pissa", "adapters", "prefix", "prompt", "ia3" and
    "few-shot", which trains nothing), or a mapping from names of your own to tuning methods, recipes or `FewShot` settings.
    Heads read features standardised over the training texts (`tune.standardize`), but a recipe of your own
    does as it says, and "scratch", a method of new weights, reads them as they are.
    Their rates stand in `protocol.rates`; those that do not are the usual ones of their kind. `sizes` and `seeds` replace the
    protocol's. Each run makes as many steps; memory is traced in steps of its own, so `trace_memory` is not read.
    Forgetting is measured on the first 16,384 tokens of `general`, texts of no special kind; None: of the docstrings
    in the validation split of `data.load("pydocs")`, which are not for pydocs itself.
    A base that writes no text forgets nothing that could be measured.
    Runs are lines in `out`, as in `sample_efficiency`; called again it goes on where it stopped. With several `workers` or an
    `executor`, runs that go side by side slow each other, each method alike: for times to rely on take one.
    Raises ValueError for methods, data or a base that do not fit each other, before anything runs.
    """
    recipes, folder = chosen_methods(methods), model_folder(base)
    changes: dict[str, Any] = {name: given for name, given in (("sizes", sizes), ("seeds", seeds)) if given is not None}
    protocol = replace(protocol or PROTOCOL, trace_memory=False, **changes)
    given = {} if protocol.rates == RATES else protocol.rates               # those of a Protocol that was given none
    protocol = replace(protocol, rates={name: given.get(name) or rates_of(name, recipe) for name, recipe in recipes.items()})
    check(dataset, protocol, list(recipes), "compare")
    check_general(dataset, folder, general)
    documents, about = general_text(folder, general)
    check_methods(dataset, folder, recipes, protocol)
    costs = Costs({"general": about["fingerprint"]}, documents)
    results = sample_efficiency(dataset, folder, out, protocol, recipes, baseline=False, workers=workers, progress=progress,
                                executor=executor, measure=costs)
    model = backbone_of(from_pretrained(folder))
    results.settings |= {"base": {"name": Path(base).name, "model": type(model).__name__, "parameters": model.num_parameters()},
                         "general": about, "workers": workers}
    return Comparison(results)


def check_general(dataset: Dataset, folder: Path, general: Sequence[str] | None) -> None:
    """Raises ValueError for one text instead of a list, and where forgetting would be measured on the validation texts, by
    which rates and weights are chosen."""
    if isinstance(general, str):
        raise ValueError(f"compare: general must be a list of texts, got one text, {general:.40}. Write [text]")
    chosen_by = dataset.name == "pydocs" if general is None else set(general) & set(dataset.valid.texts)
    if chosen_by and _writes(from_pretrained(folder)):
        raise ValueError(f"compare: forgetting would be measured on the validation texts of {dataset.name}, by which rates are "
                         "chosen. Give other texts: general=... or --general")


def general_text(folder: Path, texts: Sequence[str] | None) -> tuple[tuple[np.ndarray, ...], dict[str, Any]]:
    """(pieces of token ids, what they are) for the model in a folder: each at most half as long as it reads.

    No pieces for a model that predicts no next tokens. Raises ValueError for texts without two tokens in a row.
    """
    whole = from_pretrained(folder)
    model, tokenizer = backbone_of(whole), whole.tokenizer
    if not _writes(whole):
        return (), {"name": "", "fingerprint": "", "tokens": 0}
    dataset = load("pydocs") if texts is None else None
    given: list[str] = list(texts) if dataset is None else dataset.valid.texts      # type: ignore[arg-type]
    longest, left, pieces = max(2, model.config.block_size // 2), GENERAL_TOKENS, []
    for ids in tokenizer.encode_batch(given):
        framed = np.asarray(tokenizer.frame(ids), np.int32)[:left]
        pieces += [piece for start in range(0, len(framed), longest) if len(piece := framed[start : start + longest]) > 1]
        left -= len(framed)
        if not left:
            break
    if not pieces:
        raise ValueError(f"compare: general must hold texts, to measure forgetting on, got {str(given):.60}")
    digest = sha256(b"".join(len(piece).to_bytes(4, "big") + piece.astype("<i4").tobytes() for piece in pieces))
    return tuple(pieces), {"name": f"pydocs {dataset.version}" if dataset else "given", "fingerprint": digest.hexdigest()[:16],
                           "tokens": sum(map(len, pieces))}


def _writes(model: Any) -> bool:
    """Whether a model predicts the next tokens of texts."""
    backbone = backbone_of(model)
    return isinstance(backbone, LanguageModel) and not backbone.headless and model.tokenizer is not None


def check_methods(dataset: Dataset, folder: Path, recipes: Mapping[str, Recipe], protocol: Protocol) -> None:
    """Prepares the base for every method once. Raises ValueError where that cannot be done, or half the room is not left."""
    for name, recipe in recipes.items():
        model = from_pretrained(folder)
        backbone = backbone_of(model)
        if model.tokenizer is None:
            raise ValueError(f"compare: {folder} must hold a model of texts with its tokenizer.json")
        backbone.tokenizer = model.tokenizer
        if isinstance(recipe, Prompting):
            recipe.fitted(backbone, dataset.labels, min(protocol.sizes), 0)
            continue
        room = backbone_of(recipe.classifier(backbone, dataset.labels, protocol.pooling)).config.block_size
        if room < backbone.config.block_size // 2:              # as long as a piece of general text may be
            raise ValueError(f"compare: {name!r} leaves {room} of the {backbone.config.block_size} tokens that the base reads, "
                             "less than half. Take fewer virtual tokens")
