"""A model folder on disk: config.json and model.safetensors. Knows names and arrays, and no model class."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file


def write_whole(file: str | Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary name beside `file` and renames the result, so that `file` is whole or absent."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        write(unfinished)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(file: str | Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    write_whole(file, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def write_tensors(file: str | Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes named arrays as safetensors, whole or not at all."""
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_whole(file, lambda unfinished: save_file(whole, unfinished, metadata={"format": "np"}))


def read_tensors(file: str | Path) -> dict[str, np.ndarray]:
    """Reads named arrays. Raises FileNotFoundError or, where the file is damaged, ValueError."""
    try:
        return load_file(file)
    except SafetensorError as damage:
        raise ValueError(f"{file}: not a whole safetensors file ({damage}). Was a download cut off?") from damage


def write_model(folder: str | Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Writes a model's config.json and model.safetensors."""
    write_tensors(Path(folder) / "model.safetensors", tensors)
    write_text(Path(folder) / "config.json", json.dumps(config, indent=2) + "\n")


def read_model(folder: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config, tensors) of a model folder. Nothing in the folder is executed; pickled weights are not read.

    Raises FileNotFoundError where one of the two files is missing, ValueError where one is damaged.
    """
    config, weights = Path(folder) / "config.json", Path(folder) / "model.safetensors"
    for file in (config, weights):
        if not file.exists():
            raise FileNotFoundError(f"from_pretrained: {file} is missing. A model folder holds config.json and "
                                    "model.safetensors; pickled weights (pytorch_model.bin) are not read")
    try:
        return json.loads(config.read_text(encoding="utf-8")), read_tensors(weights)
    except json.JSONDecodeError as damage:
        raise ValueError(f"{config}: not valid JSON ({damage})") from damage
