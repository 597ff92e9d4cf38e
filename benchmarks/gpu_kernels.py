"""How fast is each CUDA kernel, beside what it must move or compute at least, and beside PyTorch?

    python benchmarks/gpu_kernels.py --json                         # on a machine with a GPU
    python benchmarks/gpu_kernels.py --quick --emulated             # without one: everything runs, and agrees with PyTorch
    python benchmarks/gpu_kernels.py --page                         # measures nothing: the committed results into docs/gpu.md

Each operation's CUDA twin alone, forward and backward, in bfloat16 with float32 parameters, at the shapes of GPT-2 124M:
N = 32,768 and N = 1,024 tokens. Times are the GPU's own (`device_ms` in measure.py), medians. Beside them stands what the
operation cannot do without, in bytes or floating-point operations, by the formula in the table, and which share of the rate
measured on the same card in the same run this makes: of a copy for bytes, of a large bfloat16 product for operations. PyTorch's
peer is timed alike, and the largest difference of its results is told; where it is larger than rounding can make it, the row
has an error and the run ends with 1. Parameters are float32 in minitune, which rounds them in its time, and bfloat16 already in
PyTorch. Writes benchmarks/results/gpu_kernels.json, after each operation anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from math import prod, sqrt
from pathlib import Path
from statistics import median
from threading import Timer
from time import perf_counter
from typing import Any

from measure import DROPPED, GPU_PAGE, ROOT, Row, device_ms, gpu, gpu_bounds, machine, no_gpu, parser_of, table

SHAPES: dict[str, dict[str, int]] = {           # of GPT-2 124M; R of the adapters
    "N = 32,768": {"B": 32, "T": 1024, "C": 768, "V": 50257, "F": 3072, "R": 8},
    "N = 1,024": {"B": 8, "T": 128, "C": 768, "V": 50257, "F": 3072, "R": 8},
    "tiny": {"B": 2, "T": 32, "C": 128, "V": 67, "F": 256, "R": 4},
}
GPT2 = [(50257, 768), (1024, 768), *12 * [*4 * [(768,)], *4 * [(768, 768), (768,)], (3072, 768), (3072,), (768, 3072), (768,)],
        (768,), (768,)]                         # its parameters
COLUMNS = {"operation": "", "shape": "", "work": "at least", "ms": "ms", "rate": "rate", "percent": "% of measured bound",
           "torch_ms": "PyTorch, ms", "ratio_to_torch": "to PyTorch", "differs": "differs by"}
PATIENCE = 90           # seconds without a word after which an operation is given up
GO_ON = 3               # what a process ends with whose GPU answers no more, once it has told of it
# bfloat16 keeps 8 binary digits: a number is off by up to 2^-8 of itself once it is rounded, and a sum of rounded terms by less
# than that of the largest sum, since errors of either sign add up as slowly as the terms do. A library rounds parameters,
# numbers on the way and results, seven times at most (lora_linear): what 14 roundings do together is, of either sign, below 4.
ROUNDED = 2.0**-8
APART = 4 * ROUNDED     # how far two libraries' results may be apart, as a share of the largest number


@dataclass
class Case:
    """One timing: what is called, what it must move or compute, and PyTorch's peer. Both return results to compare."""

    operation: str
    work: str                                   # "4 N C + 8 N bytes" or "2 N C F flops", in letters of the shape
    sizes: dict[str, int]
    ours: Callable[[], Any]
    peer: Callable[[], Any] | None = None
    comparable: bool = True                     # dropout's masks are each library's own
    by: str = "twin"                            # or "references": the operation has no CUDA twin

    @property
    def amount(self) -> int:
        """The formula in numbers."""
        formula = self.work.rpartition(" ")[0]
        return sum(prod(int(t) if t.isdigit() else self.sizes[t] for t in term.split()) for term in formula.split(" + "))


# ---- The run -------------------------------------------------------------------------------------------------------

def main() -> None:
    parser = parser_of(__file__, __doc__, GPU_PAGE)
    parser.add_argument("--operations", default=",".join(OPERATIONS), help="with commas (default: all)")
    parser.add_argument("--emulated", action="store_true", help="on the CPU; its times mean nothing")
    options = parser.parse_args()
    if options.page:
        from pages import write_between_marks
        return write_between_marks(GPU_PAGE, "gpu_kernels", ["", *page(), ""])
    reason = None if options.emulated else no_gpu()
    if reason:
        sys.exit(reason)
    if options.emulated and not options.quick:
        parser.error("--emulated is thousands of times slower than a GPU: give --quick too")
    if options.quick and options.json and options.json.resolve().parent == ROOT / "benchmarks" / "results":
        parser.error("--quick only shows that everything runs: give --json a FILE elsewhere")
    shapes = ["tiny"] if options.quick else [name for name in SHAPES if name != "tiny"]
    waiting = [[name, shape] for name in options.operations.split(",") for shape in shapes]
    facts = machine() | ({"emulated": True} if options.emulated else gpu())
    rows: list[Row] = []
    bounds: Row = {}
    for row in measured(waiting, options.emulated):
        if "bytes_a_second" in row:
            bounds = row
            continue
        rows.append(judged(row, bounds))
        print("\n".join(table(rows[-1:], COLUMNS)[2:]), file=sys.stderr)
        if options.json:
            write(options.json, {**facts, "bounds": bounds, "rows": rows})
    print("\n".join(table(rows, COLUMNS)))
    if not rows or any("error" in row for row in rows):
        sys.exit("\n".join(f"{row['operation']}: {row['error']}" for row in rows if "error" in row) or "nothing was measured")


def page() -> list[str]:
    """What docs/gpu.md shows of the committed results."""
    file = ROOT / "benchmarks" / "results" / "gpu_kernels.json"
    if not file.exists():
        return ["Not measured yet."]
    found = json.loads(file.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in (found["versions"] | found["gpu_versions"]).items())
    copied, made = (found["bounds"][name] for name in ("bytes_a_second", "flops_a_second"))
    return [f"Measured on one {found['card']}, Python {found['python']}, {versions}, by `{found['command']}`. In the same run "
            f"a copy moved {copied / 1e9:,.0f} GB/s, and a product of matrices made {made / 1e12:,.0f} TFLOP/s.", "",
            *table(found["rows"], COLUMNS), "",
            *(f"{row['operation']}, {row['shape']}: {row['error']}." for row in found["rows"] if "error" in row)]


def write(file: Path, content: Row) -> None:
    """Whole or not at all: a run that is ended leaves what was measured before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(file.name + ".part")
    aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    aside.replace(file)


def measured(waiting: list[list[str]], emulated: bool) -> Iterator[Row]:
    """Rows of all operations, from a process that does one after another. Where it dies or hangs, the operation that it was at
    has an error, and a new process goes on behind it: after a fault a GPU answers no other call of the same process."""
    while waiting:
        environment = {name: value for name, value in os.environ.items() if name not in DROPPED}
        command = [sys.executable, __file__, "--child", json.dumps({"waiting": waiting, "emulated": emulated})]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
            for line in lines_of(child):
                if not line.startswith("{"):    # what a library prints is no row
                    print(line, end="", file=sys.stderr)
                    continue
                row = json.loads(line)
                if "done" in row:
                    waiting = waiting[1:]
                else:
                    yield row
        if child.returncode != GO_ON and waiting:
            (name, shape), *waiting = waiting
            yield {"operation": name, "shape": shape, "error": f"its process ended with {child.returncode}"}


def lines_of(child: Any) -> Iterator[str]:
    """What a process prints, line by line; one that is silent for PATIENCE seconds is ended."""
    while True:
        watch = Timer(PATIENCE, child.kill)
        watch.start()
        line = child.stdout.readline()
        watch.cancel()
        if not line:
            return
        yield line


def child(waiting: list[list[str]], emulated: bool) -> None:
    """Prints a row for each case as soon as it is measured, {"done"} after each operation."""
    if find_spec("torch"):                      # its sums are rounded to bfloat16 on the way, unless it is told not to
        import_module("torch").backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    if not emulated:
        say(gpu_bounds())
    for name, shape in waiting:
        sizes = SHAPES[shape] | {"N": SHAPES[shape]["B"] * SHAPES[shape]["T"]}
        place = Place(emulated)
        try:
            for found in OPERATIONS[name](place, sizes):
                for case in found.cases(place, sizes) if isinstance(found, Passes) else [found]:
                    say({"shape": shape} | measure_case(case, place))
                    place.free()
        except Skip as reason:
            say({"operation": name, "shape": shape, "skipped": str(reason)})
        except Exception as error:              # the next operation is measured all the same
            traceback.print_exc()
            say({"operation": name, "shape": shape, "error": told(error)})
        say({"done": name})
        try:
            place.free()
        except Exception:
            sys.exit(GO_ON)


def told(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def say(row: Row) -> None:
    print(json.dumps(row), flush=True)


class Skip(Exception):
    """Why an operation has nothing to measure."""


def measure_case(case: Case, place: Place) -> Row:
    """The row of a case: PyTorch's part may be missing, with a reason, where only PyTorch fails."""
    row: Row = {"operation": case.operation, "by": case.by, "work": case.work, "amount": case.amount}
    ours = place.host(case.ours())
    times = place.times(case.ours)
    row |= {"ms": median(times), "times_ms": times}
    if case.peer is None or place.torch is None:
        return row
    try:
        theirs = place.host(case.peer())
        times = place.times(case.peer)
    except Exception as error:
        return row | {"torch_error": told(error)}
    if case.comparable:
        row["difference"] = float(place.np.max([difference(a, b) for a, b in zip(ours, theirs, strict=True)]))
        if not row["difference"] <= APART:      # so that NaN is an error too
            row["error"] = f"differs from PyTorch by {row['difference']:.2g}, more than {APART:.2g}"
    return row | {"torch_ms": median(times), "torch_times_ms": times, "ratio_to_torch": row["ms"] / median(times)}


def difference(a: Any, b: Any) -> float:
    """The largest difference of two results, as a share of the largest number."""
    if a.shape != b.shape:
        raise ValueError(f"the results have the shapes {a.shape} and {b.shape}")
    return float(abs(a - b).max() / max(abs(b).max(), 1e-30)) if a.size else 0.0


def judged(row: Row, bounds: Row) -> Row:
    """A row with its rate, and which share of the measured bound that is."""
    if "ms" not in row:
        return row | {"rate": row.get("skipped") or row.get("error")}
    rate = row["amount"] / row["ms"] * 1000
    bytes_moved = row["work"].endswith("bytes")
    row["a_second"], row["rate"] = rate, f"{rate / 1e9:,.0f} GB/s" if bytes_moved else f"{rate / 1e12:,.1f} TFLOP/s"
    if bounds:
        row["percent"] = 100 * rate / bounds["bytes_a_second" if bytes_moved else "flops_a_second"]
    if row["by"] != "twin":
        row["operation"] += f" ({row['by']})"
    if "difference" in row:
        row["differs"] = f"{row['difference']:.0e}"
    return row


# ---- Where it is measured ------------------------------------------------------------------------------------------

class Place:
    """The GPU, or its emulation: makes the same numbers for minitune and for PyTorch, and times."""

    def __init__(self, emulated: bool) -> None:
        import numpy as np

        from minitune.devices import float_dtype
        self.emulated, self.np, self.bfloat16 = emulated, np, float_dtype("bfloat16")
        self.xp = np if emulated else import_module("cupy")
        self.torch: Any = sys.modules.get("torch")
        self.functional = self.torch and self.torch.nn.functional
        self.numbers = np.random.default_rng(0).standard_normal((1 << 20) - 3, np.float32)     # no power of 2: rows differ
        self.made = 0

    def normal(self, *shape: int) -> Any:
        """float32 numbers of a normal distribution, on the host: other ones at each call."""
        self.made += 1
        return self.np.resize(self.np.roll(self.numbers, 7919 * self.made), shape)

    def array(self, a: Any, half: bool = False) -> Any:
        """For minitune."""
        there = self.xp.asarray(a)
        return there.astype(self.bfloat16) if half else there

    def tensor(self, a: Any, half: bool = True) -> Any:
        """For PyTorch, rounded alike."""
        assert self.torch is not None
        tensor = self.torch.tensor(a).to("cpu" if self.emulated else "cuda")
        return tensor.bfloat16() if half and tensor.is_floating_point() else tensor

    def host(self, results: Any, most: int | None = 1 << 20) -> list[Any]:
        """Copies of results as float32 on the host, of each the first million numbers."""
        found = []
        for a in results:
            if hasattr(a, "detach"):
                found.append(a.detach().reshape(-1)[:most].float().cpu().numpy().copy())
            else:
                part = a.reshape(-1)[:most].astype(self.np.float32)
                found.append(part if self.emulated else part.get())
        return found

    def times(self, call: Callable[[], Any]) -> list[float]:
        """Milliseconds, several times."""
        if not self.emulated:
            return device_ms(call, 20)
        start = perf_counter()
        call()
        return [1000 * (perf_counter() - start)]

    def by(self, stem: str) -> str:
        """What computes: "twin" or "references"."""
        from minitune.backend import twins_in
        return "twin" if twins_in("cuda", stem) else "references"

    def emulating(self, call: Callable[[], Any]) -> Any:
        """The call; what goes by the table of twins takes those of CUDA in the emulation too."""
        from minitune import emulated_gpu
        if not self.emulated:
            return call()
        with emulated_gpu():
            return call()

    def free(self) -> None:
        """Gives back to the GPU what earlier cases needed: two libraries share its memory. Raises where it answers no more."""
        if not self.emulated:
            self.xp.cuda.runtime.deviceSynchronize()
            self.xp.get_default_memory_pool().free_all_blocks()
            if self.torch is not None:
                self.torch.cuda.empty_cache()


@dataclass
class Passes:
    """An operation's inputs by name, as host arrays: floats are bfloat16 unless listed in `single`, None stays."""

    stem: str
    name: str
    inputs: dict[str, Any]
    wanted: str                                 # the inputs whose gradients are made, with spaces
    work: tuple[str, str] | tuple[str, str, str]        # of forward, backward and both in one; "": not measured
    peer: Callable[..., Any] | None = None      # of torch's tensors in the same order
    single: str = ""                            # float32 parameters
    settings: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    comparable: bool = True
    exact: bool = False                         # PyTorch, too, takes float32 parameters

    def cases(self, place: Place, sizes: dict[str, int]) -> Iterator[Case]:
        """Forward, then backward; or both at once. Skip where there is no twin, or it does not take these inputs."""
        fast, arrays, needs = self.taken(place)
        y, saved = fast.forward(*arrays, **self.settings, needs=needs)
        grad = self.slope(place, y)

        def forward() -> list[Any]:
            return [fast.forward(*arrays, **self.settings, needs=needs)[0]]

        def backward() -> list[Any]:
            return [g for g in fast.backward(grad, *saved, needs=needs) if g is not None]

        def both() -> list[Any]:
            y, saved = fast.forward(*arrays, **self.settings, needs=needs)
            return [y, *(g for g in fast.backward(grad, *saved, needs=needs) if g is not None)]

        for name, call, work, peer in zip(("forward", "backward", "both"), (forward, backward, both), self.work,
                                          self.peers(place)):
            if work:
                yield Case(f"{self.title}, {name}", work, sizes, call, peer, self.comparable)

    @property
    def title(self) -> str:
        return f"{self.name}{', ' + self.label if self.label else ''}"

    def taken(self, place: Place) -> tuple[Any, list[Any], Any]:
        """The CUDA twin, the inputs that it takes, and which gradients are asked for."""
        from minitune.backend import twin
        fast, arrays = twin("cuda", self.stem, self.name), self.arrays(place)
        if fast is None:
            raise Skip("it has no CUDA twin")
        reason = fast.unsupported(*arrays, **self.settings)
        if reason is not None:
            raise Skip(reason or "by its rule the references are better here")
        return fast, arrays, self.needs()

    def slope(self, place: Place, y: Any) -> Any:
        """A gradient of the result, in its dtype."""
        return place.array(place.np.resize(place.numbers, y.shape), half=y.dtype == place.bfloat16)

    def needs(self) -> Any:
        """Which gradients are asked for, as the operation's reference names its inputs."""
        reference = getattr(import_module(f"minitune.ops.{self.stem}"), f"{self.name}_forward")
        names = [p.name for p in signature(reference).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        if names != list(self.inputs):
            raise ValueError(f"{self.name}: its inputs are {names}, not {list(self.inputs)}")
        return namedtuple("needs", names)(*(name in self.wanted.split() for name in names))

    def arrays(self, place: Place) -> list[Any]:
        """The inputs for minitune."""
        return [a if a is None else place.array(a, half=a.dtype.kind == "f" and name not in self.single.split())
                for name, a in self.inputs.items()]

    def peers(self, place: Place) -> list[Callable[[], Any] | None]:
        """PyTorch's forward, backward and both, with the same inputs; None each without PyTorch."""
        torch, peer, floats = place.torch, self.peer, self.single.split() if self.exact else []
        if torch is None or peer is None:
            return [None] * 3
        tensors = {name: a if a is None else place.tensor(a, half=name not in floats) for name, a in self.inputs.items()}
        asked = [tensors[name].requires_grad_() for name in self.inputs if name in self.wanted.split()]
        kept: list[Any] = []

        def slope(y: Any) -> Any:
            return place.tensor(place.np.resize(place.numbers, tuple(y.shape)), half=y.dtype == torch.bfloat16)

        def forward() -> list[Any]:
            return [peer(*tensors.values())]

        def backward() -> Any:
            if not kept:
                kept.extend([*forward(), slope(*forward())])
            return torch.autograd.grad(kept[0], asked, kept[1], retain_graph=True)

        def both() -> list[Any]:
            (y,) = forward()
            if not kept:
                kept.append(slope(y))
            return [y, *torch.autograd.grad(y, asked, kept[0])]

        return [forward, backward, both]


# ---- The operations ------------------------------------------------------------------------------------------------
# Bytes: every input read once, every result written once, 2 bytes an activation. Operations: those of the products.

def layer_norm(place: Place, s: Row) -> Iterator[Passes]:
    N, C, F = s["N"], s["C"], place.functional
    inputs = {"x": place.normal(N, C), "weight": 1 + place.normal(C) / 8, "bias": place.normal(C)}
    yield Passes("layer_norm", "layer_norm", inputs, "x weight bias", ("4 N C bytes", "6 N C bytes"),
                 lambda x, weight, bias: F.layer_norm(x, (C,), weight, bias), "weight bias", {"eps": 1e-5})


def rms_norm(place: Place, s: Row) -> Iterator[Passes]:
    N, C, F = s["N"], s["C"], place.functional
    yield Passes("rms_norm", "rms_norm", {"x": place.normal(N, C), "weight": 1 + place.normal(C) / 8}, "x weight",
                 ("4 N C bytes", "6 N C bytes"), lambda x, weight: F.rms_norm(x, (C,), weight, 1e-5), "weight", {"eps": 1e-5})


def gelu(place: Place, s: Row) -> Iterator[Passes]:
    F = place.functional
    yield Passes("elementwise", "gelu", {"x": place.normal(s["N"], s["F"])}, "x", ("4 N F bytes", "6 N F bytes"),
                 lambda x: F.gelu(x, approximate="tanh"))


def swiglu(place: Place, s: Row) -> Iterator[Passes]:
    F = place.functional
    yield Passes("swiglu", "swiglu", {"gate": place.normal(s["N"], s["F"]), "up": place.normal(s["N"], s["F"])}, "gate up",
                 ("6 N F bytes", "10 N F bytes"), lambda gate, up: F.silu(gate) * up)


def softmax(place: Place, s: Row) -> Iterator[Passes]:
    yield Passes("softmax", "softmax", {"x": place.normal(s["N"], s["C"])}, "x", ("4 N C bytes", "6 N C bytes"),
                 lambda x: x.softmax(-1))


def dropout(place: Place, s: Row) -> Iterator[Passes]:
    F = place.functional
    yield Passes("dropout", "dropout", {"x": place.normal(s["N"], s["C"])}, "x", ("4 N C bytes", "4 N C bytes"),
                 lambda x: F.dropout(x, 0.1), settings={"p": 0.1, "place": (0, 1, 0)}, comparable=False)


def rope(place: Place, s: Row) -> Iterator[Passes]:
    """PyTorch has none: its peer is the formula, in the six operations that a user writes."""
    B, T, H, D, np = s["B"], s["T"], s["C"] // 64, 64, place.np
    frequencies = (10000.0 ** -np.arange(0, 1, 2 / D)).astype(np.float32)
    positions = np.broadcast_to(np.arange(T), (B, T)).copy()
    angles = positions[..., None, None] * frequencies

    def turned(x: Any, _: Any) -> Any:
        x1, x2 = x.chunk(2, -1)
        return place.torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)

    cos, sin = (place.tensor(f(angles)) if place.torch else None for f in (np.cos, np.sin))
    yield Passes("rope", "rope", {"x": place.normal(B, T, H, D), "positions": positions}, "x", ("4 N C bytes", "4 N C bytes"),
                 turned, settings={"frequencies": frequencies})


def linear(place: Place, s: Row) -> Iterator[Passes]:
    """With all that is fused into it, then the product and the bias gradient alone: what the rest costs."""
    N, C, F, torch = s["N"], s["C"], s["F"], place.functional
    x, weight = place.normal(N, C), place.normal(F, C) / sqrt(C)
    plain = {"x": x, "weight": weight, "bias": None, "residual": None}
    biased = plain | {"bias": place.normal(F)}
    yield Passes("linear", "linear", biased | {"residual": place.normal(N, F)}, "x weight bias residual",
                 ("2 N C F flops", "4 N C F flops"), lambda x, weight, bias, residual: torch.linear(x, weight, bias) + residual,
                 "weight bias", label="bias and residual")
    yield Passes("linear", "linear", plain, "x weight", ("2 N C F flops", "4 N C F flops"),
                 lambda x, weight, *_: torch.linear(x, weight), "weight", label="product alone")
    yield Passes("linear", "linear", biased, "bias", ("", "2 N F bytes"),
                 lambda x, weight, bias, _: torch.linear(x, weight, bias), "weight bias", label="bias gradient alone")


def lora_linear(place: Place, s: Row) -> Iterator[Passes]:
    N, C, F, R, torch = s["N"], s["C"], s["F"], s["R"], place.functional
    inputs = {"x": place.normal(N, C), "weight": place.normal(F, C) / sqrt(C), "bias": place.normal(F),
              "A": place.normal(R, C) / sqrt(C), "B": place.normal(F, R), "residual": None}
    yield Passes("lora_linear", "lora_linear", inputs, "x A B",
                 ("2 N C F + 2 N C R + 2 N F R flops", "2 N C F + 4 N C R + 4 N F R flops"),
                 lambda x, weight, bias, A, B, _: torch.linear(x, weight, bias) + torch.linear(torch.linear(x, A), B) * 2,
                 "weight bias A B", {"scale": 2.0})


def attention(place: Place, s: Row) -> Iterator[Passes]:
    """Operations of the P pairs of query and key that are seen; PyTorch's mask for packed rows is an array of booleans."""
    B, T, np, F = s["B"], s["T"], place.np, place.functional
    last = np.broadcast_to(np.arange(T), (B, T)).copy()
    for D in (64, 128):
        for label, first in ("causal", np.zeros_like(last)), ("packed in fours", last // (T // 4) * (T // 4)):
            H = s["C"] // D
            s["P"] = int((last - first + 1).sum())
            seen = None if label == "causal" or place.torch is None else place.tensor(
                ((np.arange(T) >= first[..., None]) & (np.arange(T) <= last[..., None]))[:, None])

            def mixed(q: Any, k: Any, v: Any, *_: Any, seen: Any = seen) -> Any:
                q, k, v = (a.transpose(1, 2) for a in (q, k, v))
                return F.scaled_dot_product_attention(q, k, v, seen, is_causal=seen is None).transpose(1, 2)

            inputs = {name: place.normal(B, T, H, D) for name in "qkv"} | {"first": first, "last": last}
            yield Passes("attention", "attention", inputs, "q k v", ("4 P C flops", "10 P C flops"), mixed,
                         label=f"D {D}, {label}")


def linear_cross_entropy(place: Place, s: Row) -> Iterator[Passes]:
    """Forward and backward together: minitune makes the gradients while it has the logits, PyTorch afterwards."""
    N, C, V, F = s["N"], s["C"], s["V"], place.functional
    inputs = {"x": place.normal(N, C), "weight": place.normal(V, C) / sqrt(C),
              "targets": place.np.random.default_rng(0).integers(0, V, N), "bias": None}
    yield Passes("linear_cross_entropy", "linear_cross_entropy", inputs, "x weight", ("", "", "6 N C V flops"),
                 lambda x, weight, targets, _: F.cross_entropy(F.linear(x, weight).float(), targets, reduction="sum"),
                 "weight")


def embedding(place: Place, s: Row) -> Iterator[Passes]:
    N, C, V, F = s["N"], s["C"], s["V"], place.functional
    inputs = {"weight": place.normal(V, C), "ids": place.np.random.default_rng(0).integers(0, V, N)}
    yield Passes("embedding", "embedding", inputs, "weight", ("", "4 N C + 4 V C bytes"),
                 lambda weight, ids: F.embedding(ids, weight), "weight", exact=True)


def conv2d(place: Place, s: Row) -> Iterator[Passes]:
    """3 x 3 filters, as many as channels (Q), over P places of an image."""
    s["Q"], side, F = (8, 8, place.functional) if s["T"] < 128 else (64, 32, place.functional)
    s["P"] = side * side
    inputs = {"x": place.normal(s["B"], s["Q"], side, side), "weight": place.normal(s["Q"], s["Q"], 3, 3) / sqrt(9 * s["Q"]),
              "bias": place.normal(s["Q"])}
    yield Passes("conv2d", "conv2d", inputs, "x weight bias", ("18 B P Q Q flops", "36 B P Q Q flops"),
                 lambda x, weight, bias: F.conv2d(x, weight, bias, padding=1), "weight bias", {"stride": 1, "padding": 1})


def optimizer(place: Place, s: Row) -> Iterator[Case]:
    """All parameters of GPT-2 124M (W numbers), or only those of adapters: AdamW's step without and with clipping, which then
    reads the gradients twice; and clipping alone, which scales them in place."""
    from minitune import nn, optim
    adapters = [shape for C, F in [*48 * [(768, 768)], *12 * [(768, 3072)], *12 * [(3072, 768)]] for shape in ((8, C), (F, 8))]
    shapes = [(67, 128), (128,), (5, 3)] if s["T"] < 128 else GPT2 if s["T"] == 1024 else adapters
    s["W"] = sum(map(prod, shapes))
    numbers, slopes = ([place.normal(*shape) for shape in shapes] for _ in range(2))
    ours = [nn.Parameter(place.array(a)) for a in numbers]
    for p, slope in zip(ours, slopes, strict=True):
        p.grad = place.array(slope)
    move = optim.AdamW(ours, lr=1e-4)
    steps = {"adamw": ("28 W bytes", move.step), "clip and adamw": ("32 W bytes", lambda: (move.clip(1.0), move.step())),
             "clip_grad_norm": ("12 W bytes", lambda: optim.clip_grad_norm(ours, 1e9))}
    theirs = torch_optimizer(place, numbers, slopes) if place.torch else dict.fromkeys(steps)
    for name, (work, step) in steps.items():
        def run(step: Callable[[], Any] = step) -> list[Any]:
            place.emulating(step)
            return [p.data for p in ours[-2:]]

        yield Case(name, work, s, run, theirs[name], by=place.by("optimizers"))


def torch_optimizer(place: Place, numbers: list[Any], slopes: list[Any]) -> dict[str, Any]:
    """The same with PyTorch's fused AdamW; what is compared are the last two parameters."""
    torch: Any = place.torch
    parameters = [torch.nn.Parameter(place.tensor(a, half=False)) for a in numbers]
    for p, slope in zip(parameters, slopes, strict=True):
        p.grad = place.tensor(slope, half=False)
    move = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    clip = torch.nn.utils.clip_grad_norm_
    return {"adamw": lambda: (move.step(), parameters[-2:])[1],
            "clip and adamw": lambda: (clip(parameters, 1.0), move.step(), parameters[-2:])[2],
            "clip_grad_norm": lambda: (clip(parameters, 1e9), parameters[-2:])[1]}


OPERATIONS: dict[str, Callable[[Place, Row], Iterator[Any]]] = {operation.__name__: operation for operation in (
    layer_norm, rms_norm, gelu, swiglu, softmax, dropout, rope, embedding, linear, lora_linear, attention, linear_cross_entropy,
    conv2d, optimizer)}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(**json.loads(sys.argv[2]))
    else:
        main()
