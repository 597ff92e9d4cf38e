"""A model folder on disk: config.json and model.safetensors, whole or in shards. Knows names and arrays, and no model class."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
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

    Raises FileNotFoundError or, where the file is damaged or holds numbers that are not read, ValueError.
    """
    try:
        with safe_open(file, "np") as stored:
            types = {name: stored.get_slice(name).get_dtype() for name in stored.keys()}
        if strange := [f"{name} ({kind})" for name, kind in types.items() if kind not in DTYPES]:
            raise ValueError(f"{file}: holds numbers that are not read: {', '.join(strange[:6])}. Expected {', '.join(DTYPES)}")
        if "BF16" not in types.values():
            return load_file(file)
        return {name: _array(view) for name, view in deserialize(Path(file).read_bytes())}
    except SafetensorError as damage:
        with open(file, "rb") as opened:
            start = opened.read(9)
        pickled = re.match(rb"PK|\x80[\x02-\x05]", start) and start[8:] not in (b"", b"{")
        reason = ("It looks like a pickle, which runs code when read: such files are not opened" if pickled
                  else "Was a download cut off?")
        raise ValueError(f"{file}: not a whole safetensors file ({damage}). {reason}") from damage


DTYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
          "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}


def _array(view: dict[str, Any]) -> np.ndarray:
    numbers = np.frombuffer(view["data"], DTYPES[view["dtype"]])
    if view["dtype"] == "BF16":                 # the upper half of a float32
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.reshape(view["shape"])


# ---- Model folders -----------------------------------------------------------------------------------------------------

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SHIPPED = Path(__file__).parents[1] / "models" / "shipped"          # models that come with the package, a folder each


def find_model(folder: str | Path) -> Path:
    """The folder at that path, or else the folder inside the package of the model that has this name, as "minitune-base".

    Raises FileNotFoundError where there is neither.
    """
    if Path(folder).is_dir():
        return Path(folder)
    names = sorted(config.parent.name for config in SHIPPED.glob(f"*/{CONFIG}"))
    if str(folder) in names:
        return SHIPPED / folder
    raise FileNotFoundError(f"from_pretrained: there is no folder {folder}. Nothing is downloaded: expected the path of a "
                            "folder that holds config.json and model.safetensors"
                            + (f", or a model that comes with minitune: {', '.join(names)}" if names else ""))


def write_model(folder: str | Path, config: dict[str, Any], tensors: dict[str, np.ndarray],
                others: Mapping[str, Callable[[Path], Any]], max_shard_bytes: int | None = None,
                dtype: str | None = None) -> None:
    """Writes a model's config.json, model.safetensors and the files `others` ({name: what writes it}): all or none.

    Floating-point arrays are rounded to `dtype`, "float16" or "float32", where that is given. Arrays of more than
    `max_shard_bytes` together go into several files of at most so many, an array by itself where it is larger, and an index
    tells which array is where. Weights of a model that was in the folder before are then removed.
    """
    tensors = _rounded(tensors, dtype)
    shards = _shards(tensors, max_shard_bytes)
    files = {CONFIG: _writes(config), **others}
    if len(shards) == 1:
        files[WEIGHTS] = lambda file: _save(tensors, file)
    else:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        files |= {name: partial(_save, shard) for name, shard in zip(names, shards, strict=True)}
        files[INDEX] = _writes({"metadata": {"total_size": sum(array.nbytes for array in tensors.values())},
                                "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard}})
    write_together({Path(folder) / name: write for name, write in files.items()})   # weights or index last: the folder is whole
    for file in Path(folder).iterdir():
        if file.name not in files and (file.name in (WEIGHTS, INDEX) or SHARD.fullmatch(file.name)):
            file.unlink()


def _writes(value: Any) -> Callable[[Path], Any]:
    return lambda file: file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _rounded(tensors: dict[str, np.ndarray], dtype: str | None) -> dict[str, np.ndarray]:
    """The floating-point arrays in this dtype, the others as they are."""
    if dtype not in (None, "float16", "float32"):
        raise ValueError(f'save_pretrained: dtype must be "float32", "float16" or None, got {dtype!r:.60}')
    floats = {name: array for name, array in tensors.items() if dtype and array.dtype.kind == "f"}
    most = np.finfo(dtype or float).max
    if outside := [name for name, array in floats.items() if np.abs(array[np.isfinite(array)]).max(initial=0) > most]:
        raise ValueError(f"save_pretrained: {dtype} holds numbers up to {most:,.0f}, and larger ones are in "
                         f"{', '.join(outside[:6])}. Save them in float32")
    return tensors | {name: array.astype(dtype) for name, array in floats.items()}


def _shards(tensors: dict[str, np.ndarray], most: int | None) -> list[dict[str, np.ndarray]]:
    """The arrays in their order, in as few parts of at most so many bytes as that order allows."""
    if most is not None and (not isinstance(most, int) or most < 1):
        raise ValueError(f"save_pretrained: max_shard_bytes must be a positive integer or None, got {most!r}")
    shards: list[dict[str, np.ndarray]] = [{}]
    room = most
    for name, array in tensors.items():
        if most is not None and room is not None and array.nbytes > room and shards[-1]:
            shards.append({})
            room = most
        shards[-1][name] = array
        room = None if room is None else room - array.nbytes
    return shards


def read_model(folder: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config, tensors) of a model folder. Nothing in the folder is executed; pickled weights are not read.

    Raises FileNotFoundError where a file is missing, ValueError where one is damaged or the weights are quantised.
    """
    folder = find_model(folder)
    if not (folder / CONFIG).exists():
        raise FileNotFoundError(_missing(folder, CONFIG))
    if not (folder / WEIGHTS).exists() and not (folder / INDEX).exists():
        raise FileNotFoundError(_missing(folder, WEIGHTS))
    config = read_json(folder / CONFIG)
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ValueError(f"{folder / CONFIG}: the weights are quantised by {method!r:.60}: save the model dequantised")
    if "auto_map" in config:
        raise ValueError(f"{folder / CONFIG}: auto_map asks for code that comes with the folder, {config['auto_map']!r:.60}. "
                         "Code from a model folder is never executed. Remove the key if the model is one that minitune knows")
    return config, read_tensors(folder / WEIGHTS) if (folder / WEIGHTS).exists() else _read_shards(folder)


def _missing(folder: Path, name: str) -> str:
    if (folder / "adapter_config.json").exists():
        return (f"from_pretrained: {folder} holds an adapter (adapter_config.json), no model. Load its base, and "
                "the adapter onto it: tune.load_adapter(model, folder)")
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    found = f"; the folder holds {', '.join(pickles[:6])}. Let whoever made them save safetensors" if pickles else ""
    return (f"from_pretrained: {folder / name} is missing. A model folder holds config.json and model.safetensors; pickled "
            f"weights (pytorch_model.bin) are not read, since reading them runs code{found}")


def _read_shards(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of all shards, each where the index says and nowhere else."""
    file = folder / INDEX
    places = read_json(file).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{file}: expected a weight_map from the arrays' names to files")
    names = sorted(set(places.values()))
    if outside := [name for name in names if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name)]:
        raise ValueError(f"{file}: names what is no safetensors file of this folder: {', '.join(map(repr, outside[:6]))}")
    if gone := [name for name in names if not (folder / name).exists()]:
        raise FileNotFoundError(f"from_pretrained: {file} names files that are missing: {', '.join(gone[:6])}. Was a download "
                                "cut off?")
    tensors: dict[str, np.ndarray] = {}
    wrong = []
    for name in names:
        held = read_tensors(folder / name)
        wrong += [f"{key}: not in {name}, where the index has it" for key in places if places[key] == name and key not in held]
        wrong += [f"{key}: in {name}, where the index " + (f"has it in {places[key]}" if key in places else "does not name it")
                  for key in held if places.get(key) != name]
        tensors |= held
    if wrong:
        raise ValueError(f"{file}: the index and the files do not agree:" + lines(wrong))
    return tensors


def lines(wrong: list[str], most: int = 20) -> str:
    """The first of many complaints, a line each, and how many there are beside."""
    more = [f"and {len(wrong) - most:,} more"] if len(wrong) > most else []
    return "".join(f"\n  {line}" for line in wrong[:most] + more)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file; raises ValueError where it holds anything else, or a name twice."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as damage:
        raise ValueError(f"{file}: not valid JSON ({damage})") from damage
    if not isinstance(value, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return value
