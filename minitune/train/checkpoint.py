"""Checkpoints: all that a training is after a step, in one file that is whole or absent.

Weights, the optimizer's moments, the average, the best so far, the counters of every random stream, the rows that are still
to be read, what is frozen, the history. What never trains is not written, only its digest: another base is refused.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import Array, array_module, random
from ..devices import to_device
from ..formats.folder import read_state, write_state
from ..nn import Module
from ..optim import SCHEDULES
from ..optim.optimizers import Slot
from .history import Best

Trainer = Any   # what a checkpoint is of: trainer.py imports this file, which so cannot import it
KEPT = 2


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints of a training in the folder `out`, the last one last."""
    return sorted((out / "checkpoints").glob("step-*.safetensors"))


def clear_unfinished(out: Path) -> None:
    """Removes what a training that was killed in the middle of a write has left under temporary names."""
    for pattern in (".best.safetensors.*", ".history.*", "checkpoints/.step-*"):
        for file in out.glob(pattern):
            file.unlink(missing_ok=True)


def remove_checkpoints(out: Path) -> None:
    """Removes the checkpoints of a training that has ended and whose model is saved."""
    clear_unfinished(out)
    for file in checkpoints(out):
        file.unlink(missing_ok=True)
    if (out / "checkpoints").is_dir():
        (out / "checkpoints").rmdir()


def save_checkpoint(trainer: Trainer) -> Path:
    """Writes a checkpoint of the step just ended, and then removes all but the last two."""
    assert trainer.out is not None
    file = trainer.out / "checkpoints" / f"step-{trainer.step:08d}.safetensors"
    write_state(file, *_capture(trainer))
    for old in checkpoints(trainer.out)[:-KEPT]:
        old.unlink()
    return file


def restore(trainer: Trainer, file: Path) -> None:
    """Makes a trainer what it was when it wrote a checkpoint.

    Raises ValueError, before anything is changed, where the file is damaged or of a training with other settings, data,
    parameters or another base; all differences are named.
    """
    state, arrays = read_state(file)
    _check(trainer, state, arrays, file)
    parameters = dict(trainer.model.named_parameters())
    for name, p in parameters.items():
        p.requires_grad = name in state["trainable"]
    for name, array in _under("weights", arrays).items():
        parameters[name].data = _like(parameters[name].data, array)
    moments = [_under(f"moment{i}", arrays) for i in range(state["moments"])]
    trainer.optimizer.slots = {id(parameters[name]): Slot(step, tuple(_like(parameters[name].data, m[name])
                               for m in moments if name in m)) for name, step in state["slots"].items()}
    if trainer.average:
        trainer.average.weights = {n: _like(parameters[n].data, a) for n, a in _under("average", arrays).items()}
    if state["best"]:
        trainer.best = Best(**state["best"], weights=_under("best", arrays))
    random.seed = state["random"]["seed"]
    random.counters.clear()
    random.counters.update(state["random"]["counters"])
    trainer.step, trainer.order, trainer.losses = state["step"], arrays["order"], state["losses"]
    trainer.history.rows = state["history"]


def _capture(trainer: Trainer) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    named, slots = dict(trainer.model.named_parameters()), trainer.optimizer.slots
    written = {name: p for name, p in named.items() if p.requires_grad or id(p) in slots}
    held = {name: slots[id(p)] for name, p in written.items() if id(p) in slots}
    arrays = {"order": trainer.order} | {f"weights.{name}": p.data for name, p in written.items()}
    arrays |= {f"moment{i}.{name}": m for name, slot in held.items() for i, m in enumerate(slot.moments)}
    arrays |= {f"average.{name}": a for name, a in (trainer.average.weights if trainer.average else {}).items()}
    arrays |= {f"best.{name}": a for name, a in (trainer.best.weights if trainer.best else {}).items()}
    state = {"step": trainer.step, "settings": trainer.settings, "losses": trainer.losses, "history": trainer.history.rows,
             "trainable": [name for name, p in named.items() if p.requires_grad],
             "slots": {name: slot.step for name, slot in held.items()},
             "moments": max((len(slot.moments) for slot in held.values()), default=0),
             "best": {"step": trainer.best.step, "measured": trainer.best.measured} if trainer.best else None,
             "random": {"seed": random.seed, "counters": dict(random.counters)},
             "base": _digest({name: p.data for name, p in named.items() if name not in written})}
    return state, {name: to_device(array, "cpu") for name, array in arrays.items()}


def settings_of(trainer: Trainer) -> dict[str, Any]:
    """All that must be the same at the beginning for a training to be the same, as JSON-able values."""
    names = {function: name for name, function in SCHEDULES.items()}
    moving = ("groups", "slots", "lr", "clipping")
    optimizer = {name: value for name, value in vars(trainer.optimizer).items() if name not in moving}
    groups = [[group.rate, group.weight_decay, len(group.parameters)] for group in trainer.optimizer.groups]
    plain = ("steps", "lr", "batch_size", "accumulate", "evaluate_every", "keep_best", "patience", "min_steps")
    return {**_plain(trainer.model), **{name: getattr(trainer, name) for name in plain}, "clip": repr(trainer.clip),
            "schedule": names.get(trainer.schedule, "a function"), "ema": trainer.average.decay if trainer.average else None,
            "dtype": str(trainer.model.dtype or next(trainer.model.parameters()).dtype),
            "optimizer": type(trainer.optimizer).__name__, "optimizer's settings": repr(optimizer), "parameter groups": groups,
            "callbacks": [repr(callback) for callback in trainer.callbacks if is_dataclass(callback)] or None,
            "training data": _data(trainer.train), "validation data": _data(trainer.valid)}


def _plain(model: Module) -> dict[str, str]:
    """What a model computes with beside its weights, by name: configs, heads, scales, dropout, pooling, labels."""
    plain: dict[str, Any] = {}
    for name, part in model.named_modules():
        prefix, config = f"{name}.".lstrip("."), vars(part).get("config")
        if is_dataclass(config):
            plain |= {f"{prefix}config.{field.name}": getattr(config, field.name) for field in fields(config)}
        plain |= {prefix + key: value for key, value in vars(part).items()
                  if isinstance(value, (int, float, str, tuple)) and key not in ("training", "recompute")}
    return {name: repr(value) for name, value in plain.items()}


def _data(dataset: Any) -> str:
    return "none" if dataset is None else f"{len(dataset)} rows, {getattr(dataset, 'fingerprint', 'no digest')}"


def _check(trainer: Trainer, state: dict[str, Any], arrays: dict[str, np.ndarray], file: Path) -> None:
    then, now = state["settings"], trainer.settings
    named, written = dict(trainer.model.named_parameters()), _under("weights", arrays)
    wrong = [f"{name} is not in this model" for name in sorted({*written, *state["trainable"]} - set(named))]
    wrong += [f"{name} was {array.shape}, is {named[name].shape}" for name, array in sorted(written.items())
              if name in named and array.shape != named[name].shape]
    wrong += [f"{name} was {then.get(name)}, is {now.get(name)}" for name in {**then, **now} if then.get(name) != now.get(name)]
    if not wrong and _digest({name: p.data for name, p in named.items() if name not in written}) != state["base"]:
        wrong = ["the weights that are not trained are others: is it another base model?"]
    if wrong:
        raise ValueError(f"Trainer: {file} is of another training: {'; '.join(wrong[:6])}. Give what it was made with, or "
                         "train in another folder")


def _digest(arrays: dict[str, Array]) -> str:
    digest = sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.shape} ".encode() + to_device(array, "cpu").tobytes())
    return digest.hexdigest()[:16]


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names begin with a prefix and a dot, without it."""
    return {name.removeprefix(f"{prefix}."): array for name, array in arrays.items() if name.startswith(f"{prefix}.")}


def _like(own: Array, array: np.ndarray) -> Array:
    return array_module(own).array(array, dtype=own.dtype)
