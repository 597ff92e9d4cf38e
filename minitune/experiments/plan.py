"""plan: how much memory a training step takes and how long, before a run; and, once it is made, how right that was."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from math import ceil
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from safetensors import safe_open

from ..backend import twins_in
from ..cores import keep_large_blocks
from ..data import Batch
from ..formats.folder import CONFIG, read_json, write_text
from ..models import BERT, Classifier, MaskedLanguageModel
from ..models.loading import BACKBONES, HEADS, classes_of, config_of, described
from ..nn import shapes_only
from ..train import Trainer
from ..tune import LoRALinear, NF4Linear, QLoRAConfig, QLoRALinear, apply
from ..tune.apply import Method
from ..tune.nf4 import BLOCK, SCALE_BLOCK, quantized_count
from ..tune.patterns import backbone_of
from .calibration import Rates, calibrate
from .few_shot import FewShot
from .finetuning import model_folder
from .recipe import Recipe
from .rehearsal import Bill, random_streams_kept, rehearse, shapes_of
from .tuning_methods import KNOWN, USUAL

# what `compare` knows and trains; a recipe's steps are those of its method
PLANNED: dict[str, Method] = {name: method.method if isinstance(method, Recipe) else method for name, method in KNOWN.items()
                              if not isinstance(method, FewShot)} | {"qlora": QLoRAConfig(**USUAL)}
MEASURED_RATE = 1e-6                            # of the steps that are measured: any rate takes as long


@dataclass
class Measured:
    """What steps took: `peak` bytes, weights and moments included; `seconds`, the median of `times`."""

    peak: int
    times: list[float]

    @property
    def seconds(self) -> float:
        return median(self.times)


@dataclass
class Plan:
    """What a training step takes: bytes, and seconds where the machine's rates are known.

    `weights` are all parameters, codes in four bits included; `gradients` and `moments` (AdamW's two) are of those that
    train. `activations` are what forward keeps for backward. Gradients grow while activations are given back: the most that
    both and what is made on the way hold at once is `working`. `peak` = weights + moments + working. What Python, NumPy and
    their libraries take is not in it, nor is a copy of the best weights, which a Trainer with validation keeps of what trains.
    """

    model: str
    method: str
    batch_size: int
    block_size: int
    parameters: int
    trainable: int
    weights: int
    moments: int
    gradients: int
    activations: int
    working: int
    parts: dict[str, float] = field(default_factory=dict)       # seconds of a step by what they go to
    measured: Measured | None = None
    _bare: Any = field(default=None, repr=False)                # the prepared model, its numbers left out
    _batch: Any = field(default=None, repr=False)

    @property
    def peak(self) -> int:
        return self.weights + self.moments + self.working

    @property
    def seconds(self) -> float | None:
        """Of a step; None where no rates were given."""
        return sum(self.parts.values()) if self.parts else None

    def measure(self, steps: int = 5) -> Measured:
        """Makes the model with random weights and takes steps: two that are not looked at, one whose memory is traced, and
        `steps` that are timed. It takes the memory and the time that were planned; nothing else should run meanwhile."""
        keep_large_blocks()
        model = shapes_of(self._bare, _numbers)
        trainer = Trainer(model, _Rows(self._batch), steps=1, lr=MEASURED_RATE, batch_size=self.batch_size, progress=False)
        with random_streams_kept():
            for _ in range(2):
                _step(trainer, self._batch)
            working = _traced(trainer, self._batch)
            times = [_step(trainer, self._batch) for _ in range(steps)]
        moments = sum(m.nbytes for slot in trainer.optimizer.slots.values() for m in slot.moments)
        self.measured = Measured(weights_of(model) + moments + working, times)
        return self.measured

    def table(self) -> str:
        """What goes where, in MB of 2^20 bytes and in milliseconds; beside what was measured, once it was."""
        shown = {"weights": self.weights, "moments": self.moments, "gradients": self.gradients,
                 "activations": self.activations, "at once, without weights and moments": self.working, "peak": self.peak}
        lines = [f"{self.method} on {self.model}: {self.batch_size} x {self.block_size} tokens a step, {self.trainable:,} of "
                 f"{self.parameters:,} parameters train",
                 *(f"  {name:38}{nbytes / 2**20:12,.1f} MB" for name, nbytes in shown.items()),
                 *(f"  {name:38}{1000 * seconds:12,.1f} ms" for name, seconds in self.parts.items())]
        if self.seconds is not None:
            lines.append(f"  {'a step':38}{1000 * self.seconds:12,.1f} ms")
        if twins_in("cpu", "linear") is None:
            lines.append("  numba is not installed: the references that run instead keep and move more than is planned here")
        if self.measured:
            found = [("peak", self.measured.peak / 2**20, "MB", self.memory_ratio),
                     ("a step", 1000 * self.measured.seconds, "ms", self.time_ratio)]
            lines += [f"  {name + ', measured':38}{amount:12,.1f} {unit}" + (f"   {ratio:.2f} of it planned" if ratio else "")
                      for name, amount, unit, ratio in found]
        return "\n".join(lines)

    __str__ = table

    @property
    def memory_ratio(self) -> float | None:
        """Planned over measured peak; None before `measure`."""
        return self.peak / self.measured.peak if self.measured else None

    @property
    def time_ratio(self) -> float | None:
        """Planned over measured seconds of a step; None before `measure`, or without rates."""
        return self.seconds / self.measured.seconds if self.measured and self.seconds else None

    def row(self) -> dict[str, Any]:
        """All figures by name."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name[0] != "_" and f.name != "measured"}
        own |= {"peak": self.peak, "seconds": self.seconds}
        if self.measured:
            own |= {"measured_peak": self.measured.peak, "measured_times": self.measured.times,
                    "memory_ratio": self.memory_ratio, "time_ratio": self.time_ratio}
        return own

    def to_json(self, file: str | Path) -> None:
        """Writes all figures, whole or not at all."""
        write_text(file, json.dumps(self.row(), indent=1) + "\n")


def plan(model: Any, method: str | Method | None = "full", batch_size: int = 16, block_size: int | None = None, *,
         labels: int | Sequence[str] | None = None, pooling: str | None = None, rates: Rates | bool = True) -> Plan:
    """What a step of training `model` by `method` takes, found without the memory of the model.

    `model` is a folder or the name of a model, of which config.json and the arrays' shapes are read, a config such as
    GPTConfig, or a model. `method` is one that `tune.apply` takes, one of PLANNED by its name, or None for a model that is
    prepared already. A step reads `batch_size` rows of `block_size` tokens, as many as the model can unless told. With
    `labels`, how many or their names, it learns to put rows into classes, with this `pooling`; else it is a language model.
    `rates` are those of `calibrate`; True takes what is known of this machine or measures it, False plans memory alone.

    The step is rehearsed: the model runs forward and backward on arrays that have shapes and no numbers, and each operation's
    rule says what it makes and keeps; so layers of all kinds count as they are. Rules are of the compiled twins on a CPU in
    float32, and of AdamW. Raises ValueError for a model that cannot learn, NotImplementedError for one whose operations have
    no rule, as convolutions and LSTMs.

    >>> from minitune.models import GPTConfig
    >>> found = plan(GPTConfig(50257, 1024, 12, 12, 768), "lora", 4, 256, rates=False)
    >>> found.parameters, found.trainable, found.peak // 2**20
    (125766912, 1327104, 1269)
    """
    with shapes_only(), random_streams_kept():
        bare, name = _prepared(model, method, labels, pooling)
    bare.train()
    size = backbone_of(bare).config.block_size if block_size is None else block_size
    batch = batch_of(bare, batch_size, size)
    trained = bare.num_parameters(trainable=True)
    if not trained:
        raise ValueError("plan: nothing trains. Unfreeze some of the model: tune.unfreeze(model, patterns), or give a method")
    bill = rehearse(shapes_of(bare), batch)
    moments = sum(2 * p.size * p.dtype.itemsize for p in bare.parameters() if p.requires_grad)
    found = Plan(_title(bare), name, batch_size, size, bare.num_parameters() + quantized_count(bare), trained, weights_of(bare),
                 moments, bill.gradients, bill.activations, bill.peak, _bare=bare, _batch=batch)
    if rates is not False:
        found.parts = _seconds(bill, trained, calibrate() if rates is True else rates)
    return found


def _seconds(bill: Bill, trained: int, rates: Rates) -> dict[str, float]:
    return rates.seconds(bill.work + Counter({"adamw": trained}))


def weights_of(model: Any) -> int:
    """The bytes of all parameters, and of weights that are codes in four bits."""
    return (sum(p.size * p.dtype.itemsize for p in model.parameters())
            + sum(part.nbytes for part in model.modules() if isinstance(part, NF4Linear)))


def _title(model: Any) -> str:
    backbone = backbone_of(model)
    name = type(backbone).__name__ if backbone is model else f"{type(model).__name__} on {type(backbone).__name__}"
    sizes = backbone.config
    return f"{name} ({sizes.n_layer} layers, {sizes.n_embd} channels)"


# ---- The model, its numbers left out ---------------------------------------------------------------------------------

def _prepared(model: Any, method: Any, labels: Any, pooling: str | None) -> tuple[Any, str]:
    """(the model as it would be trained, with arrays that take no memory; the method's name)"""
    bare = _without_numbers(model)
    if labels is not None:
        bare = Classifier(bare, [str(i) for i in range(labels)] if isinstance(labels, int) else labels, pooling)
    elif isinstance(bare, BERT):
        raise ValueError("plan: a BERT by itself learns nothing. Give labels, how many classes there are, or put it under "
                         "a MaskedLanguageModel")
    name = method if isinstance(method, str) else type(method).__name__.removesuffix("Config") if method else "as it is"
    if isinstance(method, str):
        if method not in PLANNED:
            raise ValueError(f"plan: there is no method {method!r}; there are {', '.join(PLANNED)}")
        method = PLANNED[method]
    if method is not None:
        apply(bare, _shapes_alone(method))
    return bare, name


def _without_numbers(model: Any) -> Any:
    if isinstance(model, (str, Path)):
        return _stored(model_folder(model))
    if is_dataclass(model) and not isinstance(model, type):
        made = next((backbone for backbone, config in BACKBONES.values() if isinstance(model, config)), None)
        if made is not None:
            return made(model)
    if not hasattr(model, "layer_groups"):
        raise TypeError(f"plan: expected a folder, a config such as GPTConfig, or a model, got {type(model).__name__}")
    return shapes_of(model, lambda a: np.broadcast_to(np.zeros((), a.dtype), a.shape))


def _stored(folder: Path) -> Any:
    """The model in a folder, of which config.json and the arrays' names and shapes are read."""
    config, shapes = read_json(folder / CONFIG), dict[str, np.ndarray]()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "np") as stored:
            shapes |= {key: np.broadcast_to(np.float32(0), stored.get_slice(key).get_shape()) for key in stored.keys()}
    backbone_type, config_type = classes_of(config)
    stored = backbone_type.family.read(config, shapes)
    backbone = described(backbone_type, config_of(config_type, stored.fields))
    return backbone if stored.kind is None else described(HEADS[stored.kind], backbone, **stored.settings)


def _shapes_alone(method: Method) -> Method:
    """The method; one that computes codes of the weights becomes one that only knows how many there are."""
    if isinstance(method, QLoRAConfig):
        return _QLoRAShapes(**{f.name: getattr(method, f.name) for f in fields(method)})
    return method


class _QLoRAShapes(QLoRAConfig):
    """QLoRA whose codes have shapes and take no memory."""

    def layer(self, base: Any) -> QLoRALinear:
        layer, quantized = QLoRALinear.__new__(QLoRALinear), NF4Linear.__new__(NF4Linear)
        LoRALinear.__init__(layer, base, self.r, self.lora_alpha, self.lora_dropout, self.use_rslora)
        quantized.shape, quantized.bias = base.weight.shape, base.bias
        scales = ceil(base.weight.size / BLOCK)
        double = [(scales, np.uint8), (ceil(scales / SCALE_BLOCK), np.float32), (1, np.float32)]
        quantized.codes = [np.broadcast_to(np.zeros((), dtype), (count,)) for count, dtype in (
            (ceil(base.weight.size / 2), np.uint8), *(double if self.use_double_quant else [(scales, np.float32)]))]
        layer.base = quantized
        return layer


# ---- A step ----------------------------------------------------------------------------------------------------------

def batch_of(model: Any, batch_size: int, block_size: int) -> Batch:
    """Full rows of one document each, with a target wherever the model can have one; a masked one has 15 % of them.

    Raises ValueError for sizes below 1 and for rows that the model cannot read.
    """
    config = backbone_of(model).config
    if not hasattr(config, "vocab_size"):
        raise NotImplementedError("plan: transformers that read texts can be planned, and this model reads images")
    if batch_size < 1 or not 1 <= block_size <= config.block_size:
        raise ValueError(f"plan: batch_size must be at least 1 and block_size from 1 to the model's {config.block_size}, got "
                         f"{batch_size} and {block_size}")
    ids = np.arange(batch_size * block_size).reshape(batch_size, block_size) % config.vocab_size
    batch = Batch.of_ids(ids)
    if not model.causal:
        batch.last = np.full_like(ids, block_size - 1)
    if isinstance(model, MaskedLanguageModel):
        batch.targets = np.where(np.arange(ids.size).reshape(ids.shape) % 20 < 3, ids, -100)
        batch.related = np.zeros(batch_size, int)
    elif isinstance(model, Classifier):
        batch.targets = np.zeros(batch_size, int)
    elif hasattr(model, "language_loss"):
        batch.targets = ids
    else:
        raise NotImplementedError(f"plan: language models and classifiers can be planned, got {type(model).__name__}")
    return batch


class _Rows:
    """A set that gives one batch, whichever rows are asked for."""

    def __init__(self, batch: Batch) -> None:
        self.only, self.causal = batch, bool((batch.last <= np.arange(batch.ids.shape[1])).all() and batch.ids.shape[1] > 1)

    def __len__(self) -> int:
        return len(self.only)

    def batch(self, rows: np.ndarray) -> Batch:
        return self.only


def _step(trainer: Trainer, batch: Batch) -> float:
    start = perf_counter()
    trainer.train_step([batch], MEASURED_RATE)
    trainer.step += 1
    return perf_counter() - start


def _traced(trainer: Trainer, batch: Batch) -> int:
    """The bytes that a step takes at most beside what is there before it."""
    gc.collect()
    tracing = tracemalloc.is_tracing()          # somebody's own
    tracemalloc.start()
    tracemalloc.reset_peak()
    try:
        before = tracemalloc.get_traced_memory()[0]
        _step(trainer, batch)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        if not tracing:
            tracemalloc.stop()


def _numbers(a: Any) -> np.ndarray:
    """An array with memory in the place of one without: small random numbers, or codes of 0."""
    if a.dtype.kind != "f":
        return np.zeros(a.shape, a.dtype)
    return np.random.default_rng(0).standard_normal(a.shape, np.float32) * np.float32(0.02)
