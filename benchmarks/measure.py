"""What the benchmarks share: sizes, arms in processes of their own and in turn, medians, peak memory, the machine, tables.

An arm is a dictionary, such as {"name": "torch", "size": "M", "mode": "full"}. A script starts itself once an arm and round,
with `--child` and the arm as JSON, and reads the JSON that this process prints last. The parent imports neither NumPy nor
PyTorch: it stays small and quiet beside what it measures.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from threadpoolctl import threadpool_info

ROOT = Path(__file__).resolve().parent.parent
PAGE, GPU_PAGE = ROOT / "docs" / "performance.md", ROOT / "docs" / "gpu.md"
PACKAGES = ("minitune", "numpy", "numba", "torch", "transformers", "peft", "jax")
GPU_PACKAGES = ("cupy-cuda12x", "cupy-cuda13x", "ml_dtypes", "triton")
Row = dict[str, Any]
R, LORA_ALPHA, RATE = 8, 16, 1e-4               # of every arm alike

# An inherited choice of kernels or cache sizes makes a library slower than it is on a user's machine. The numbers of threads
# (OPENBLAS_NUM_THREADS, OMP_NUM_THREADS, MKL_NUM_THREADS) are the user's own and stay.
DROPPED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_VERBOSE", "BLIS_ARCH_TYPE", "MKL_DEBUG_CPU_TYPE",
           "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY",
           "NVPL_BLAS_DEBUG_CPU_TYPE")
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_THREAD_TIMEOUT",
           "GOMP_SPINCOUNT")


@dataclass(frozen=True)
class Size:
    """A GPT and its batch: V tokens, C channels, layers, heads, B rows of T tokens."""

    V: int
    C: int
    layers: int
    heads: int
    T: int
    B: int

    def __str__(self) -> str:
        return f"V {self.V:,}, C {self.C}, {self.layers} layers, {self.heads} heads, T {self.T:,}, B {self.B}"


SIZES = {"S": Size(1024, 128, 4, 4, 128, 16), "M": Size(8192, 256, 6, 8, 128, 16), "L": Size(8192, 512, 8, 8, 256, 4),
         "tiny": Size(64, 16, 2, 2, 8, 4)}
GPU_SIZES = {"124M": Size(50257, 768, 12, 12, 1024, 32), "124M short": Size(50257, 768, 12, 12, 128, 8),
             "355M": Size(50257, 1024, 24, 16, 512, 8), "tiny": Size(67, 64, 1, 2, 8, 2)}     # GPT-2, GPT-2 medium


def tokens(size: Size) -> Any:
    """Random ids (B, T + 1): what is read, and one further on what is predicted."""
    import numpy as np
    return np.random.default_rng(0).integers(0, size.V, (size.B, size.T + 1))


# ---- Processes -----------------------------------------------------------------------------------------------------

def parser_of(script: str, docstring: str, page: Path = PAGE) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=docstring.splitlines()[0])
    results = ROOT / "benchmarks" / "results" / f"{Path(script).stem}.json"
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="processes for each arm, in turn (default: 3)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round: only to see that everything runs")
    parser.add_argument("--json", type=Path, nargs="?", const=results, metavar="FILE",
                        help=f"write all that was measured to FILE (default: benchmarks/results/{results.name})")
    parser.add_argument("--page", action="store_true", help=f"write the tables into docs/{page.name}")
    return parser


def options_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What the user asked for; figures of tiny sizes get into no page and no committed result."""
    options = parser.parse_args()
    if options.quick and (options.page or options.json and options.json.resolve().parent == ROOT / "benchmarks" / "results"):
        parser.error("--quick only shows that everything runs: give --json a FILE elsewhere, and no --page")
    return options


def start(main: Callable[[], None], measure_arm: Callable[..., Row]) -> None:
    """Runs a script: the whole benchmark or, in a child, the arm that the parent asks for, whose result is printed."""
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measure_arm(**json.loads(sys.argv[2]))))
    else:
        main()


def run_child(script: str, arm: Row, limit: float | None = None) -> Row:
    """What a fresh process measures of an arm, or {"error": the last line that it wrote}; it is ended after `limit` seconds."""
    environment = {name: value for name, value in os.environ.items() if name not in DROPPED}
    try:
        done = subprocess.run([sys.executable, script, "--child", json.dumps(arm)], env=environment, capture_output=True,
                              text=True, timeout=limit)
    except subprocess.TimeoutExpired as late:
        print((late.stderr or b"").decode(), file=sys.stderr)
        return {"error": f"ended after {limit:.0f} s without a result"}
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return {"error": (done.stderr.strip() or f"ended with {done.returncode}").splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def in_turn(script: str, arms: list[Row], rounds: int) -> list[list[Row]]:
    """`rounds` results of each arm. A round runs every arm once, so that what drifts in the machine reaches all alike.

    An arm that failed is not tried again.
    """
    results: list[list[Row]] = [[] for _ in arms]
    for number in range(rounds):
        for arm, found in zip(arms, results):
            if not (found and "error" in found[-1]):
                print(f"round {number + 1} of {rounds}: {' '.join(map(str, arm.values()))}", file=sys.stderr)
                found.append(run_child(script, arm))
                if "error" in found[-1]:
                    print(found[-1]["error"], file=sys.stderr)
    return results


# ---- Measuring, in the child ---------------------------------------------------------------------------------------

def measure_step(make: Callable[[Size], Callable[[], Any]], size: Size, steps: int, seconds: float = 10,
                 modules: Iterable[str] = ()) -> Row:
    """Times and peak memory of the step that `make` builds for a size, once its modules are imported.

    A step of the tiny size comes first: what libraries load or compile at their first call is theirs, not the step's.
    """
    for module in modules:
        import_module(module)
    imported = held_mb()
    make(SIZES["tiny"])()
    gc.collect()
    libraries = held_mb()
    step = make(size)
    times = time_steps(step, steps, seconds)
    return {"times_ms": [1000 * t for t in times], "peak_mb": peak_mb() - libraries, "libraries_mb": libraries,
            "above_import_mb": peak_mb() - imported,
            "threads": threads_of(), "blas": blas_kernels()}


def time_steps(step: Callable[[], Any], steps: int, seconds: float) -> list[float]:
    """Seconds of up to `steps` steps after two that warm up; none begins once `seconds` are over, but one is always taken."""
    step()
    step()
    times: list[float] = []
    while len(times) < steps and (not times or sum(times) < seconds):
        start = perf_counter()
        step()
        times.append(perf_counter() - start)
    return times


def held_mb() -> float:
    """The memory that this process holds now, in MB of 2^20 bytes; elsewhere than on Linux the most that it held so far."""
    return _memory(b"VmRSS:")


def peak_mb() -> float:
    """The most memory that this process held so far, in MB of 2^20 bytes.

    Linux keeps it in VmHWM; the ru_maxrss of a new program starts there at what its parent held, so it is read elsewhere only.
    As minitune.train.memory does, which a peer's process must not import.
    """
    return _memory(b"VmHWM:")


def _memory(line: bytes) -> float:
    try:
        return int(Path("/proc/self/status").read_bytes().split(line)[1].split()[0]) / 1024
    except (OSError, IndexError):
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def blas_kernels() -> list[str]:
    """The BLAS libraries of this process and the kernels they chose, where threadpoolctl can tell."""
    return sorted({f"{library['internal_api']} {library['version']} {library.get('architecture', '')}".strip()
                   for library in threadpool_info() if library["user_api"] == "blas"})


def threads_of() -> int | None:
    """How many threads compute: PyTorch's where it is loaded, else BLAS's; None where nobody tells."""
    if "torch" in sys.modules:
        return sys.modules["torch"].get_num_threads()
    return max((library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"), default=None)


# ---- A GPU ---------------------------------------------------------------------------------------------------------

def no_gpu() -> str | None:
    """Why nothing can be measured on a GPU here, in one line; None where CuPy finds one. It takes no memory there."""
    try:
        cupy = import_module("cupy")
    except ImportError:
        return "no GPU is measured: CuPy is not installed (pip install minitune[cuda13] or minitune[cuda12])"
    return None if cupy.cuda.is_available() else "no GPU is measured: CuPy finds no GPU with a driver here"


def gpu() -> Row:
    """The card, its memory in MB of 2^20 bytes, and the versions of what computes on it."""
    runtime = import_module("cupy").cuda.runtime
    card = runtime.getDeviceProperties(0)
    return {"card": card["name"].decode(), "card_mb": card["totalGlobalMem"] / 2**20, "driver": runtime.driverGetVersion(),
            "runtime": runtime.runtimeGetVersion(), "gpu_versions": versions(GPU_PACKAGES)}


def gpu_bounds() -> Row:
    """What this card does at best, measured: bytes a second of a copy, read and written; operations a second of a product."""
    import numpy as np
    cupy, devices, twins = map(import_module, ("cupy", "minitune.devices", "minitune.twins.cuda.products"))
    source, target = (cupy.ones(COPIED, cupy.float32) for _ in range(2))
    numbers = np.resize(np.random.default_rng(0).standard_normal((1 << 20) + 1, np.float32), (SIDE, SIDE))
    a, b = (cupy.asarray(x).astype(devices.float_dtype("bfloat16")) for x in (numbers, numbers.T))
    calls = {"copy": lambda: cupy.copyto(target, source), "product": lambda: twins.product(a, b)}
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        left, right = (torch.tensor(x).to("cuda", torch.bfloat16) for x in (numbers, numbers.T.copy()))
        calls["product, PyTorch"] = lambda: left @ right
    seconds = {name: min(device_ms(call, 10)) / 1000 for name, call in calls.items()}
    products = [s for name, s in seconds.items() if name != "copy"]
    return {"bytes_a_second": 2 * source.nbytes / seconds["copy"], "flops_a_second": 2 * SIDE**3 / min(products)}


COPIED, SIDE = 1 << 29, 8192                    # numbers of a copy (2 GB), rows and columns of a product
SPIN = """extern "C" __global__ void spin(long long cycles) { long long end = clock64() + cycles; while (clock64() < end); }"""


def device_ms(call: Callable[[], Any], repeats: int) -> list[float]:
    """Milliseconds that the GPU takes for each of `repeats` calls after three that warm up, between events on its stream.

    A kernel that waits for some 20 ms goes first, so that calls stand in the queue when their turn comes and no launch is
    part of the time; 256 MB are written before each, so that no input is still in the cache.
    """
    cupy = import_module("cupy")
    for _ in range(3):
        call()
    others = cupy.empty(256 << 20, cupy.uint8)
    events = [(cupy.cuda.Event(), cupy.cuda.Event()) for _ in range(repeats)]
    cupy.RawKernel(SPIN, "spin")((1,), (1,), (cupy.int64(40_000_000),))
    for before, after in events:
        others.fill(0)
        before.record()
        call()
        after.record()
    events[-1][1].synchronize()
    return [cupy.cuda.get_elapsed_time(before, after) for before, after in events]


# ---- Results -------------------------------------------------------------------------------------------------------

def spread(values: Iterable[float]) -> tuple[float, float, float]:
    """The median, and the values a tenth of which lie below and above."""
    ordered = sorted(values)
    tenth = round((len(ordered) - 1) / 10)
    return median(ordered), ordered[tenth], ordered[len(ordered) - 1 - tenth]


def summary(results: list[Row]) -> Row:
    """All rounds of a step's arm in one row."""
    if "error" in results[-1]:
        return {"error": results[-1]["error"]}
    times = [t for result in results for t in result["times_ms"]]
    middle, low, high = spread(times)
    return {"median_ms": middle, "low_ms": low, "high_ms": high, "steps": len(times),
            **{key: median(result[key] for result in results) for key in ("peak_mb", "libraries_mb", "above_import_mb")},
            **{key: results[-1][key] for key in ("threads", "blas")}}


def cpu_flags() -> set[str]:
    """What the processor can do, in Linux's words; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split(":")[1].split()) for line in lines if line.startswith(("flags", "Features"))), set())


def machine() -> Row:
    """What a reader needs to judge and repeat the figures."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": names[0] if names else platform.processor() or platform.machine(), "cores": cores,
            "vector_flags": sorted(flag for flag in cpu_flags() if flag.startswith(("avx", "amx", "fma", "asimd", "sve"))),
            "system": platform.system(), "python": platform.python_version(), "versions": versions(),
            "threads_set": {name: os.environ[name] for name in THREADS if name in os.environ},
            "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_without_place, sys.argv[1:])])}


def _without_place(argument: str) -> str:
    """A file without its folders, which are one machine's own."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """{package: version} of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found


def table(rows: list[Row], columns: dict[str, str]) -> list[str]:
    """Rows as a Markdown table; `columns` are {key: heading}. What is not there is a dash."""
    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
        return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

    return ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns),
            *("| " + " | ".join(cell(row.get(key)) for key in columns) + " |" for row in rows)]


def report(options: argparse.Namespace, mark: str, rows: list[Row], lines: list[str], more: Row | None = None,
           page: Path = PAGE) -> None:
    """Prints the lines; writes the JSON and the page where that was asked for. The page imports NumPy, all is measured."""
    print("\n".join(lines))
    facts = machine()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**facts, "rows": rows, **(more or {})}, indent=1) + "\n", encoding="utf-8")
    if options.page:
        from pages import write_between_marks
        flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in facts["vector_flags"]]
        where = f"{facts['processor']} ({', '.join(flags)})" if flags else facts["processor"]
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        write_between_marks(page, mark, ["", f"Measured on {facts['cores']} cores of {where}, Python {facts['python']}, "
                                         f"{versions}, by `{facts['command']}`.", "", *lines, ""])
