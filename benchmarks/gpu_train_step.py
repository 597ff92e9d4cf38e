"""How long does a training step take on a GPU, and how much memory, beside PyTorch and Hugging Face?

    python benchmarks/gpu_train_step.py --json                      # on a machine with a GPU
    python benchmarks/gpu_train_step.py --quick --emulated          # without one: minitune's step on the emulated GPU, tiny
    python benchmarks/gpu_train_step.py --page                      # measures nothing: the committed results into docs/gpu.md

GPT-2 of 124M parameters with 32,768 and 1,024 tokens a step, all of it trained, and of 355M with LoRA (rank 8 on every linear
layer), 4,096 tokens. bfloat16: minitune by `model.to("cuda", "bfloat16")` and its Trainer's step, the peers by autocast, with
scaled_dot_product_attention, fused AdamW and clipping. Random weights, the same in every arm; each arm in a process of its own.
After the steps that warm up, blocks of steps are timed with one wait for the GPU at the end of each; the median block counts.
Memory is told three ways: what arrays held at most in a step, what the library reserved, and what the whole device had given
away when all was done, its driver included. Also: the losses of the first steps, and whether minitune's step waits for the GPU,
in which case the run ends with 1. Writes benchmarks/results/gpu_train_step.json, after each arm anew; torch.compile, which
takes longest, comes last. With --configs the rows of other sizes that stand there are kept, if they are of the same card and
versions: what is compared was measured in one run.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from gpu_kernels import write
from measure import (
    GPU_PAGE,
    GPU_SIZES,
    ROOT,
    SPIN,
    Row,
    gpu,
    gpu_bounds,
    machine,
    no_gpu,
    parser_of,
    run_child,
    spread,
    start,
    table,
)

CONFIGS = {"124M": "full", "124M short": "full", "355M": "lora"}            # size: what trains
NAMES = {"minitune": "minitune", "torch": "PyTorch", "hugging_face": "Hugging Face (LoRA: PEFT)",
         "compile": "PyTorch, torch.compile"}
NEEDS = {"minitune": (), "torch": ("torch",), "hugging_face": ("torch", "transformers", "peft"), "compile": ("torch",)}
FIRST, WARM = 5, 3                              # steps whose losses are told, and further ones before the clock runs
BLOCKS, STEPS = 5, 10                           # timed; after every tenth step minitune's trainer looks at the losses
READING = ("get", "item", "tolist", "__float__", "__int__", "__bool__", "__array__")        # of cupy.ndarray
COLUMNS = {"label": "", "tokens_a_second": "tokens a second", "median_ms": "ms a step", "range": "80 % between",
           "ratio_to_torch": "time, to PyTorch", "percent_of_product": "% of a product's rate", "peak_mb": "arrays, peak MB",
           "reserved_mb": "reserved MB", "device_mb": "device MB", "memory_to_torch": "device MB, to PyTorch",
           "first_loss": "first loss", "gap": "losses differ by"}


# ---- The run -------------------------------------------------------------------------------------------------------

def main() -> None:
    parser = parser_of(__file__, __doc__, GPU_PAGE)
    parser.add_argument("--configs", default=",".join(CONFIGS), help=f"with commas (default: {','.join(CONFIGS)})")
    parser.add_argument("--names", default=",".join(NAMES), help=f"with commas (default: {','.join(NAMES)})")
    parser.add_argument("--limit", type=float, default=240, metavar="S", help="seconds after which an arm is ended (240)")
    parser.add_argument("--emulated", action="store_true", help="on the CPU; its times mean nothing")
    options = parser.parse_args()
    if options.page:
        from pages import write_between_marks
        return write_between_marks(GPU_PAGE, "gpu_train_step", ["", *page(), ""])
    reason = None if options.emulated else no_gpu()
    if reason:
        sys.exit(reason)
    if options.quick != options.emulated:
        parser.error("--quick and --emulated go together: the emulation is thousands of times slower than a GPU")
    if options.quick and options.json and options.json.resolve().parent == ROOT / "benchmarks" / "results":
        parser.error("--quick only shows that everything runs: give --json a FILE elsewhere")
    names = [name for name in NAMES if name in options.names.split(",") and all(map(find_spec, NEEDS[name]))]
    if absent := set(options.names.split(",")) - set(names):
        print(f"left out, for what they need is not installed: {', '.join(sorted(absent))}", file=sys.stderr)
    configs = {"tiny": "full"} if options.quick else {name: CONFIGS[name] for name in options.configs.split(",")}
    arms = [{"name": name, "size": size, "mode": mode, "emulated": options.emulated}
            for name in names for size, mode in configs.items()]
    measure(arms, options, machine() | ({"emulated": True} if options.emulated else gpu()))


def measure(arms: list[Row], options: Any, facts: Row) -> None:
    """All arms in turn, round after round; results are written after each."""
    bounds = {} if options.emulated else run_child(__file__, {"name": "bounds"}, options.limit)
    found: list[list[Row]] = [[] for _ in arms]
    kept = others(options.json, {arm["size"] for arm in arms}, facts)
    for number in range(1 if options.quick else options.rounds):
        for arm, results in zip(arms, found, strict=True):
            if results and "error" in results[-1]:
                continue
            print(f"round {number + 1}: {arm['name']}, {arm['size']}, {arm['mode']}", file=sys.stderr)
            results.append(run_child(__file__, arm, options.limit))
            rows = [arm | {"label": NAMES[arm["name"]], "command": facts["command"], "bounds": bounds} | summary(results)
                    for arm, results in zip(arms, found) if results]
            compare(rows, bounds)
            if options.json:
                shown = kept + rows
                write(options.json, {**facts, "bounds": bounds, "rows": shown,
                                     "sizes": {size: asdict(GPU_SIZES[size]) for size in {row["size"] for row in shown}}})
    print("\n".join(tables(rows)))
    if "error" in bounds or any("error" in row for row in rows):
        sys.exit("some arms could not be measured")
    if any(row.get("waited") for row in rows):
        sys.exit("minitune's step waited for the GPU")


def others(file: Path | None, sizes: set[str], facts: Row) -> list[Row]:
    """The rows of other sizes in the file, if they are of the same card and versions."""
    stored = json.loads(file.read_text(encoding="utf-8")) if file and file.exists() else {}
    same = all(stored.get(name) == facts.get(name) for name in ("card", "versions", "gpu_versions"))
    return [row for row in stored.get("rows", []) if same and row["size"] not in sizes]


def summary(results: list[Row]) -> Row:
    """All rounds of an arm in one row."""
    if "error" in results[-1]:
        return results[-1]
    middle, low, high = spread(t for result in results for t in result["times_ms"])
    return results[-1] | {"median_ms": middle, "low_ms": low, "high_ms": high,
                          "times_ms": [result["times_ms"] for result in results]}


def compare(rows: list[Row], bounds: Row) -> None:
    """Puts each row beside PyTorch's of the same size, and beside the rate of a large product."""
    theirs = {row["size"]: row for row in rows if row["name"] == "torch" and "error" not in row}
    for row in rows:
        if "error" in row:
            continue
        size, other = GPU_SIZES[row["size"]], theirs.get(row["size"])
        row["tokens_a_second"] = 1000 * size.B * size.T / row["median_ms"]
        if "flops_a_second" in bounds:
            row["percent_of_product"] = 100 * row["flops"] / (row["median_ms"] / 1000) / bounds["flops_a_second"]
        row["first_loss"] = row["losses"][0]
        if other:
            row["ratio_to_torch"] = row["median_ms"] / other["median_ms"]
            row["gap"] = max(abs(a - b) for a, b in zip(row["losses"], other["losses"], strict=True))
            if "device_mb" in row:
                row["memory_to_torch"] = row["device_mb"] / other["device_mb"]


def tables(rows: list[Row]) -> list[str]:
    """One table a size."""
    lines = []
    for size in dict.fromkeys(row["size"] for row in rows):
        shown = [row | {"range": f"{row['low_ms']:,.1f} to {row['high_ms']:,.1f}" if "low_ms" in row else row["error"],
                        "first_loss": f"{row['first_loss']:.4f}" if "first_loss" in row else None,
                        "gap": f"{row['gap']:.0e}" if "gap" in row else None} for row in rows if row["size"] == size]
        lines += [f"**{size}**, {shown[0]['mode']}: {GPU_SIZES[size]}", "", *table(shown, COLUMNS), ""]
        lines += [line for row in shown if "waited" in row for line in (waiting(row), "")]
    return lines[:-1]


def waiting(row: Row) -> str:
    """Whether minitune's step waited for the GPU, and how many of some steps read a number from it."""
    return (f"minitune's step behind other work took the CPU {row['host_ms']:.0f} ms of {row['host_and_gpu_ms']:.0f} ms: it "
            f"{'waited' if row['waited'] else 'did not wait'} for the GPU. Of {len(row['reads'])} steps "
            f"{sum(map(bool, row['reads']))} read a number from it.")


def page() -> list[str]:
    """What docs/gpu.md shows of the committed results."""
    file = ROOT / "benchmarks" / "results" / "gpu_train_step.json"
    if not file.exists():
        return ["Not measured yet."]
    found = json.loads(file.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in (found["versions"] | found["gpu_versions"]).items())
    each = dict.fromkeys(row.get("command", found["command"]) for row in found["rows"])
    commands = " and ".join(f"`{command}`" for command in each)
    return [f"Measured on one {found['card']}, Python {found['python']}, {versions}, by {commands}.", "",
            *tables(found["rows"])]


# ---- One arm, in a process of its own ------------------------------------------------------------------------------

def measure_arm(name: str, size: str = "", mode: str = "", emulated: bool = False) -> Row:
    """Losses, times and memory of an arm; or what the card can do at best."""
    if name == "bounds":
        if find_spec("torch"):
            import_module("torch")
        return gpu_bounds()
    emulation = import_module("minitune").emulated_gpu if emulated and name == "minitune" else nullcontext
    with warnings.catch_warnings(record=True) as told, emulation():
        step, finish, memory = arm_of(name, size, mode, emulated)
        losses = [float(step()) for _ in range(FIRST)]
        for _ in range(0 if emulated else WARM):
            step()
        finish()
        times = time_blocks(step, finish, *((1, 1) if emulated else (BLOCKS, STEPS)))
        row = {"losses": losses, "times_ms": times, "flops": flops_of(size, mode), **memory(step)}
        if name == "minitune" and not emulated:
            row |= waits_of(step, finish, size, mode)
    return row | {"warnings": sorted({str(warning.message) for warning in told})}


def time_blocks(step: Callable[[], Any], finish: Callable[[], Any], blocks: int, steps: int) -> list[float]:
    """Milliseconds a step, for each block of steps that ends when the GPU has done all of them."""
    times = []
    for _ in range(blocks):
        begin = perf_counter()
        for _ in range(steps):
            step()
        finish()
        times.append(1000 * (perf_counter() - begin) / steps)
    return times


def flops_of(size: str, mode: str) -> int:
    """Additions and multiplications of a step's matrix products; attention is counted whole."""
    return import_module("own").flops(GPU_SIZES[size], mode)


def arm_of(name: str, size: str, mode: str, emulated: bool) -> tuple[Callable[[], Any], Callable[[], Any], Callable[..., Row]]:
    """(step, what waits for the GPU, what tells its memory after a further step)."""
    from own import large_gpt, training_step
    sizes = GPU_SIZES[size]
    if name == "minitune":
        model = large_gpt(sizes, mode).to(None if emulated else "cuda", "bfloat16")
        step = training_step(model, sizes)
        if emulated:
            return step, lambda: None, lambda step: {}
        return step, import_module("cupy").cuda.runtime.deviceSynchronize, cupy_memory
    import torch
    from peers import copy_weights, hugging_face_step, prepared, torch_gpt, torch_step
    device, source = "cpu" if emulated else "cuda", large_gpt(sizes, "full")
    if name == "hugging_face":
        step = hugging_face_step(sizes, mode, True, device, source)
    else:
        model = torch_gpt(sizes, "full")
        copy_weights(source, model)
        step = torch_step(prepared(model, mode), sizes, name == "compile", True, device)
    return (step, lambda: None, lambda step: {}) if emulated else (step, torch.cuda.synchronize, torch_memory)


# ---- Memory --------------------------------------------------------------------------------------------------------

def torch_memory(step: Callable[[], Any]) -> Row:
    """MB (2^20 bytes) after all steps so far and one more, which is the one whose peak counts."""
    import torch
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return {"peak_mb": torch.cuda.max_memory_allocated() / 2**20, "reserved_mb": torch.cuda.max_memory_reserved() / 2**20,
            "device_mb": (total - free) / 2**20}


def cupy_memory(step: Callable[[], Any]) -> Row:
    """As `torch_memory`. CuPy's pool keeps no peak, so every array that it gives out or takes back in the step is counted."""
    import cupy
    pool = cupy.get_default_memory_pool()

    class Count(cupy.cuda.MemoryHook):
        name = "Count"
        held = most = pool.used_bytes()

        def malloc_postprocess(self, **given: Any) -> None:
            self.held += given["mem_size"]
            self.most = max(self.most, self.held)

        def free_postprocess(self, **given: Any) -> None:
            self.held -= given["mem_size"]

    with Count() as count:
        step()
    cupy.cuda.runtime.deviceSynchronize()
    free, total = cupy.cuda.runtime.memGetInfo()
    return {"peak_mb": count.most / 2**20, "reserved_mb": pool.total_bytes() / 2**20, "device_mb": (total - free) / 2**20}


# ---- Does the step wait for the GPU? -------------------------------------------------------------------------------

def waits_of(step: Callable[[], Any], finish: Callable[[], Any], size: str, mode: str) -> Row:
    """Whether a step waits for the GPU: "host_ms" is how long the CPU needs for a step of two layers that the GPU cannot have
    begun, because a kernel of half a second stands before it. A step that waits for anything takes half a second there, and
    "waited" says so; nothing else judges. "reads" only helps to find where: for each of ten steps, one of which looks at the
    losses of all, {what read a number: how often}. It does not see CuPy's own calls of CUDA, which no Python name leads to.
    """
    import cupy
    from own import large_gpt, training_step
    reads = []
    for _ in range(STEPS):
        with counted(cupy.ndarray) as found:
            step()
        reads.append(dict(found))
    finish()
    sizes = replace(GPU_SIZES[size], layers=2, B=1)     # few enough launches for the GPU's queue
    small = training_step(large_gpt(sizes, mode).to("cuda", "bfloat16"), sizes)
    for _ in range(3):
        small()
    finish()
    cupy.RawKernel(SPIN, "spin")((1,), (1,), (cupy.int64(900_000_000),))
    begin = perf_counter()
    small()
    host = perf_counter() - begin
    finish()
    both = perf_counter() - begin
    return {"reads": reads, "host_ms": 1000 * host, "host_and_gpu_ms": 1000 * both, "waited": host > 0.9 * both}


@contextmanager
def counted(ndarray: Any) -> Iterator[Counter[str]]:
    """Counts, inside a `with` block, the calls of Python methods that read numbers of a GPU's array.

    They alone can be counted from here: CuPy is compiled, and calls CUDA's memcpy and synchronize as C functions, so that other
    names in cupy.cuda.runtime would change nothing.
    """
    reads: Counter[str] = Counter()
    before = {name: vars(ndarray).get(name) for name in READING}

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def run(*arguments: Any, **settings: Any) -> Any:
            reads[name] += 1
            return call(*arguments, **settings)

        return run

    for name in READING:
        if hasattr(ndarray, name):
            setattr(ndarray, name, counting(name, getattr(ndarray, name)))
    try:
        yield reads
    finally:
        for name, own in before.items():
            if own is not None:
                setattr(ndarray, name, own)
            elif name in vars(ndarray):         # it was inherited
                delattr(ndarray, name)


if __name__ == "__main__":
    start(main, measure_arm)
