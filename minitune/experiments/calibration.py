"""calibrate: how fast this machine multiplies, moves memory and runs the loops of a training step; measured once and kept."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from math import exp, log
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .. import __version__, ops
from ..backend import matmul, mode
from ..cores import cores, keep_large_blocks, sharing
from ..data import Batch
from ..data.sources.load import cache_folder
from ..formats.folder import write_text
from ..models import GPT, GPTConfig
from ..nn import Parameter, shapes_only
from ..optim import AdamW
from ..tensor import Tensor, no_grad
from .rehearsal import on_shapes, random_streams_kept, rehearse, shapes_of
from .shape_only import Shape, counting

SIZES = (4, 8, 16, 32, 64, 128, 256, 512, 1024)     # the shortest side of the products that are measured
SHARES = {"matrix products": ("score channel", "score channel backward"), "calls": ("call", "call backward"),
          "optimizer": ("adamw",)}


@dataclass(frozen=True)
class Rates:
    """`products`: multiplications a second by the shortest side of a product; `loops`: seconds a number, byte or call.

    `machine` says where and with what they were measured.
    """

    products: dict[int, float]
    loops: dict[str, float]
    machine: dict[str, Any]

    def seconds(self, work: Counter[Any]) -> dict[str, float]:
        """{part: seconds} of the work of a step: "matrix products", "loops and memory", "calls", "optimizer"."""
        parts = dict.fromkeys(("matrix products", "loops and memory", "calls", "optimizer"), 0.0)
        for kind, amount in work.items():
            if isinstance(kind, tuple):
                parts["matrix products"] += amount * self.product_seconds(*kind)
            else:
                part = next((part for part, names in SHARES.items() if kind in names), "loops and memory")
                parts[part] += amount * self.loops[kind]
        return parts

    def product_seconds(self, M: int, N: int, K: int) -> float:
        """How long (M, K) times (K, N) takes; between the sides that were measured along straight lines of logarithms."""
        sides = sorted(self.products)
        rate = exp(np.interp(log(max(1, min(M, N, K))), [log(n) for n in sides], [log(self.products[n]) for n in sides]))
        return M * N * K / rate


def calibrate(again: bool = False, seconds: float = 0.05) -> Rates:
    """The rates of this machine, from the user's cache folder where they have been measured with the same processor, versions
    and cores; measured anew, which takes some ten seconds, where not or with `again`.

    Nothing else should run meanwhile. `seconds` is how long each kind of work is repeated; the fastest run counts.
    """
    file, facts = cache_folder() / "calibration.json", machine()
    known = read(file)
    if not again and (found := known.get(json.dumps(facts, sort_keys=True))):
        return Rates({int(n): rate for n, rate in found["products"].items()}, found["loops"], facts)
    keep_large_blocks()
    with sharing(), random_streams_kept():
        rates = Rates(_products(seconds), _loops(seconds), facts)
    known[json.dumps(facts, sort_keys=True)] = {"products": rates.products, "loops": rates.loops}
    try:
        write_text(file, json.dumps(known, indent=1) + "\n")
    except OSError:                             # no folder that can be written to: measured anew the next time
        pass
    return rates


def read(file: Path) -> dict[str, Any]:
    """What a file of calibrations holds; nothing where there is none, or it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def machine() -> dict[str, Any]:
    """What the rates depend on."""
    versions = {"minitune": __version__, "numpy": np.__version__}
    try:
        versions["numba"] = metadata.version("numba")
    except metadata.PackageNotFoundError:
        pass
    return {"name": platform.node(), "processor": _processor(), "cores": cores(), "kernels": mode.kernels, "versions": versions,
            "blas": sorted(str(getattr(library, "architecture", library.internal_api)) for library in sharing().loaded)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# ---- Measured --------------------------------------------------------------------------------------------------------

def _fastest(call: Callable[[], Any], seconds: float) -> float:
    """The shortest of at least three runs."""
    call()
    times = [np.inf]
    end = perf_counter() + seconds
    while len(times) < 4 or perf_counter() < end:
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return min(times)


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _products(seconds: float) -> dict[int, float]:
    """{n: multiplications a second} where n is the shortest side, at each of the three places that it can have."""
    rates = {}
    for n in SIZES:
        long = max(n, 512)
        sizes = [(long, n, long), (long, long, n), (n, long, long)]         # (M, N, K)
        times = [_fastest(partial(matmul, _random(M, K), _random(N, K).T), seconds) for M, N, K in sizes]
        rates[n] = sum(M * N * K for M, N, K in sizes) / sum(times)
    return rates


def _loops(seconds: float) -> dict[str, float]:
    x, weight, bias = Tensor(_random(2048, 256), requires_grad=True), Parameter(_random(256)), Parameter(_random(256))
    heads = Tensor(_random(8, 256, 4, 64), requires_grad=True)
    positions = np.broadcast_to(np.arange(256), (8, 256))
    found: dict[str, float] = {}
    for name, call in {"gelu": lambda: ops.gelu(x), "gelu_erf": lambda: ops.gelu(x, "none"), "softmax": lambda: ops.softmax(x),
                       "swiglu": lambda: ops.swiglu(x, x), "layer_norm": lambda: ops.layer_norm(x, weight, bias),
                       "rms_norm": lambda: ops.rms_norm(x, weight), "elementwise": lambda: ops.tanh(x),
                       "dropout": lambda: ops.dropout(x, 0.1),
                       "rope": lambda: ops.rope(heads, positions, np.ones(32))}.items():
        forward, backward = _both(call, [x, weight, bias, heads], seconds)
        found[name], found[f"{name} backward"] = forward / x.size, backward / x.size
    a, b, y = (_random(1 << 22) for _ in range(3))                          # 48 MB together: few caches hold that
    found["bytes"] = _fastest(lambda: np.add(a, b, out=y), seconds) / (3 * a.nbytes)
    return found | _attention(seconds) | _optimizer(seconds) | _calls(seconds)


def _both(call: Callable[[], Tensor], leaves: list[Tensor], seconds: float) -> tuple[float, float]:
    """(seconds of forward, of backward)"""
    with no_grad():
        forward = _fastest(call, seconds)
    grad = np.ones(call().shape, np.float32)

    def there_and_back() -> None:
        call().backward(grad)
        for leaf in leaves:
            leaf.grad = None

    return forward, max(0.0, _fastest(there_and_back, seconds) - forward)


def _line(times: dict[int, float], counts: dict[int, float]) -> tuple[float, float]:
    """(what a score takes, what each of its channels takes) from times at two numbers of channels."""
    (low, high) = sorted(times)
    channel = max(0.0, (times[high] - times[low]) / (counts[high] - counts[low]))
    return max(0.0, times[low] - channel * counts[low]), channel


def _attention(seconds: float) -> dict[str, float]:
    """Scores, and the products that make and use them, apart: from heads of 16 and of 64 channels."""
    first, last = np.zeros((4, 256), int), np.broadcast_to(np.arange(256), (4, 256))
    times: dict[str, dict[int, float]] = {"": {}, " backward": {}}
    counts: dict[str, dict[int, float]] = {"": {}, " backward": {}}
    scores = 1.0
    for D in (16, 64):
        shape = 4, 256, 4, D
        q, k, v = (Tensor(_random(*shape), requires_grad=True) for _ in range(3))
        times[""][D], times[" backward"][D] = _both(partial(ops.attention, q, k, v, first, last), [q, k, v], seconds)
        q, k, v = (Tensor(Shape(shape), requires_grad=True) for _ in range(3))
        with on_shapes(), counting() as count:
            ops.attention(q, k, v, first, last).backward(Shape(shape))
        scores = count.work["score"]
        for end in times:
            counts[end][D] = count.work[f"score channel{end}"]
    found: dict[str, float] = {}
    for end in times:
        rest, channel = _line(times[end], counts[end])
        found |= {f"score{end}": rest / scores, f"score channel{end}": channel}
    return found


def _optimizer(seconds: float) -> dict[str, float]:
    """What clipping and AdamW take for each parameter."""
    p, grad = Parameter(_random(1 << 20)), _random(1 << 20)
    optimizer = AdamW([p], 1e-9)

    def step() -> None:
        p.grad = grad
        optimizer.clip(1.0)
        optimizer.step()

    return {"adamw": _fastest(step, seconds) / p.size}


def _calls(seconds: float) -> dict[str, float]:
    """What an operation takes beside its work: the time of a step in which there is none to speak of, by its operations."""
    with shapes_only():
        model = GPT(GPTConfig(8, 4, 2, 1, 4))
    for p in model.parameters():
        p.data = np.zeros(p.shape, np.float32)
    batch, optimizer = Batch.of_ids(np.zeros((1, 4), int)), AdamW(model, 0.0)
    work = rehearse(shapes_of(model), batch).work

    def step() -> None:
        model.loss(batch)["language_model"][0].backward()
        optimizer.clip(1.0)
        optimizer.step()
        optimizer.zero_grad()

    with no_grad():
        forward = _fastest(lambda: model.loss(batch), seconds)
    backward = max(0.0, _fastest(step, seconds) - forward)
    return {"call": forward / work["call"], "call backward": backward / work["call backward"]}
