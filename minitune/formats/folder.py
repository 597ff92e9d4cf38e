"""A model folder on disk: config.json and model.safetensors. Knows names and arrays, and no model class."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import load_file, save_file


def write_whole(file: str | Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary name beside `file` and renames the result, so that `file` is whole or absent."""
    write_together({Path(file): write})


def write_together(files: dict[Path, Callable[[Path], Any]]) -> None:
    """Writes several files under temporary names and renames them when all are whole: an error leaves the old ones."""
    unfinished = {file: file.with_name(f".{file.name}.{os.getpid()}") for file in files}
    try:
        for file, write in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write(unfinished[file])
            _sync(unfinished[file])
        for file, temporary in unfinished.items():
            temporary.replace(file)
            _sync(file.parent)
    finally:
        for temporary in unfinished.values():
            temporary.unlink(missing_ok=True)


def _sync(place: Path) -> None:
    """Has the system put a file, or the names in a folder, on the disk before anything goes on."""
    if place.is_dir() and os.name == "nt":      # Windows cannot open a folder
        return
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(file: str | Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    write_whole(file, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def write_tensors(file: str | Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes named arrays as safetensors, whole or not at all."""
    write_whole(file, lambda unfinished: _save(tensors, unfinished))


def _save(tensors: dict[str, np.ndarray], file: Path, state: str | None = None) -> None:
    metadata = {"format": "np"} if state is None else {"state": state, "sha256": _digest(state, tensors)}
    try:
        save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, file, metadata)
    except SafetensorError as error:
        raise OSError(f"{file}: cannot be written ({error}). Is the disk full?") from error


def write_state(file: str | Path, state: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Writes arrays and a JSON-able `state` into one safetensors file with a SHA-256 over both, whole or not at all."""
    write_whole(file, lambda unfinished: _save(tensors, unfinished, json.dumps(state)))


def read_state(file: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(state, arrays) from `write_state`. Raises FileNotFoundError or, where a single bit has changed, ValueError."""
    tensors = read_tensors(file)
    with safe_open(file, "np") as stored:
        metadata = stored.metadata() or {}
    if metadata.get("sha256") != _digest(metadata.get("state", ""), tensors):
        raise ValueError(f"{file}: damaged, its contents are not those that were written (the checksum differs)")
    return json.loads(metadata["state"]), tensors


def _digest(state: str, tensors: dict[str, np.ndarray]) -> str:
    digest = sha256(state.encode())
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.data)
    return digest.hexdigest()


def read_tensors(file: str | Path) -> dict[str, np.ndarray]:
    """Reads named arrays; bfloat16, which NumPy has not, comes as float32, which holds it exactly.

    Raises FileNotFoundError or, where the file is damaged, ValueError.
    """
    try:
        with safe_open(file, "np") as stored:
            halves = [name for name in stored.keys() if stored.get_slice(name).get_dtype() == "BF16"]
        if halves:
            return {name: _array(view) for name, view in deserialize(Path(file).read_bytes())}
        return load_file(file)
    except SafetensorError as damage:
        raise ValueError(f"{file}: not a whole safetensors file ({damage}). Was a download cut off?") from damage


def _array(view: dict[str, Any]) -> np.ndarray:
    if view["dtype"] == "BF16":                 # the upper half of a float32
        return (np.frombuffer(view["data"], "<u2").astype(np.uint32) << 16).view(np.float32).reshape(view["shape"])
    names = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}
    return np.frombuffer(view["data"], names[view["dtype"]]).reshape(view["shape"])


def write_model(folder: str | Path, config: dict[str, Any], tensors: dict[str, np.ndarray],
                others: dict[str, Callable[[Path], Any]]) -> None:
    """Writes a model's config.json, model.safetensors and the files `others` ({name: what writes it}): all or none."""
    text = json.dumps(config, indent=2) + "\n"
    files = {"config.json": lambda file: file.write_text(text, encoding="utf-8"), **others,
             "model.safetensors": lambda file: _save(tensors, file)}        # last: where it stands, the folder is whole
    write_together({Path(folder) / name: write for name, write in files.items()})


def read_model(folder: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config, tensors) of a model folder. Nothing in the folder is executed; pickled weights are not read.

    Raises FileNotFoundError where one of the two files is missing, ValueError where one is damaged.
    """
    config_file, weights = Path(folder) / "config.json", Path(folder) / "model.safetensors"
    for file in (config_file, weights):
        if not file.exists():
            raise FileNotFoundError(f"from_pretrained: {file} is missing. A model folder holds config.json and "
                                    "model.safetensors; pickled weights (pytorch_model.bin) are not read")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as damage:
        raise ValueError(f"{config_file}: not valid JSON ({damage})") from damage
    if not isinstance(config, dict):
        raise ValueError(f"{config_file}: expected a JSON object with the model's sizes, got {type(config).__name__}")
    return config, read_tensors(weights)
