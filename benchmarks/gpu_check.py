"""One prepared run for a rented GPU: what only a GPU can show, in minutes, without a network.

    python benchmarks/gpu_check.py --out results                    # all parts, about 13 minutes
    python benchmarks/gpu_check.py --out results --parts tests,right,twice,curves,kernels --seconds 330
    python benchmarks/gpu_check.py --out results --emulated         # without a GPU: that every part runs
    python benchmarks/gpu_check.py --page                           # runs nothing: the committed check.json into docs/gpu.md

Parts: tests, every twin on the GPU in float32 against its reference; right, every twin in bfloat16 against its reference in
float64; twice, every kernel two times, with equal bits; curves, the demo's model trained on the CPU in float32 and on the GPU
in bfloat16, whose losses and gradients must agree; kernels and train, the two benchmarks, gpu_kernels.py and gpu_train_step.py;
emulation, the kernels' tests of which the GPU is no part, with the compilers of this machine. A part that fails, or runs past
its time, stops no other; a benchmark that runs past it is cut, and what it measured counts. Below --out ($OUT unless given)
stand check.json, the JSON of each part, and log.txt with all that was printed. Ends with 1 where a part failed. check.json is
committed as benchmarks/results/gpu_check.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from gpu_kernels import OPERATIONS, ROUNDED, SHAPES, Case, Passes, Place, told, write
from measure import DROPPED, GPU_PAGE, ROOT, Row, gpu, machine, no_gpu, table

LIMITS = {"tests": 90, "right": 90, "twice": 60, "curves": 150, "kernels": 200, "train": 420, "emulation": 120}      # seconds
BENCHMARKS = {"kernels": "gpu_kernels.json", "train": "gpu_train_step.json"}       # parts that measure, and what they write
KERNELS = {name: operation for name, operation in OPERATIONS.items() if name != "optimizer"}    # which `curves` repeats
LEAST = 5                                       # with less time left a part is not begun
STEPS, AGAIN, WINDOW, RISE, LR = 300, 40, 25, 30, 2e-3          # of the two trainings; the first AGAIN steps are run twice
# What rounding may cost: bfloat16 keeps 8 digits, so an activation is off by up to 2^-8 of itself, and two trainings part
# slowly, a batch's loss to one side or the other. The references in bfloat16 on a CPU, which round at nearly the same places,
# differ from float32 over these 300 steps by 3e-5 at the first, by at most 0.006 in the mean of 25, and in the gradients after
# them by at most 2.1 % of one's norm. Three times these two are left to a GPU, which adds in another order; a gradient that is
# missing is 100 % off. The first loss is near log V whatever the weights; a few 2^-8 of it, averaged over 2,048 tokens, are
# less than 0.002.
FIRST_GAP, MEAN_GAP, SLOPE_GAP, SMALL = 0.002, 0.02, 0.06, 1e-3
# How often a kernel rounds to bfloat16 on the way to a result or to the gradient of an input: parameters where a product takes
# them, and what stands between two products or two passes. All others round nothing but their result.
ON_THE_WAY = {"softmax": {"x": 2},                                  # y, twice
              "linear": {"y": 2, "x": 1},                           # the weight; the product, before bias and residual
              "matmul": {"y": 1, "a": 1},                           # b, a parameter
              "conv2d": {"y": 2, "x": 2},                           # the weight; a product, before bias or the sum over windows
              "lora_linear": {"y": 6, "x": 5, "A": 2, "B": 2},      # weight, A, B, the narrow product, the wide one, their sum
              "attention": {"y": 1, "q": 2, "k": 2, "v": 1},        # the weights; the slopes of the scores, and y in them
              "linear_cross_entropy": {"y": 2, "weight": 3, "x": 4}}      # weight, logits, slopes; x: before it is scaled
SUMS = 1e-5                                     # what adding up in float32 may cost, as in tests/ops/test_twins.py
# Of attention, beside what is measured: B, T (64 does not divide it), H, G, D. G < H: heads of queries share keys and values.
ATTENTION = [(2, 200, 4, 4, 32), (2, 200, 6, 2, 64), (2, 200, 4, 1, 128), (1, 70, 2, 2, 40)]


# ---- The run -------------------------------------------------------------------------------------------------------

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), metavar="DIR", help="for results (default: $OUT)")
    parser.add_argument("--parts", default=",".join(LIMITS), help=f"with commas (default: {','.join(LIMITS)})")
    parser.add_argument("--seconds", type=float, default=1e9, metavar="S", help="of all parts together; the last ones are cut")
    parser.add_argument("--emulated", action="store_true", help="on the CPU, tiny: that every part runs")
    parser.add_argument("--page", action="store_true", help="run nothing: write the committed results into docs/gpu.md")
    options = parser.parse_args()
    if options.page:
        from pages import write_between_marks
        return write_between_marks(GPU_PAGE, "gpu_check", ["", *page(), ""])
    if options.out is None:
        parser.error("give --out DIR, or set OUT")
    wrong = set(options.parts.split(",")) - set(LIMITS)
    if wrong:
        parser.error(f"--parts: expected some of {', '.join(LIMITS)}, got {', '.join(sorted(wrong))}")
    reason = None if options.emulated else no_gpu()
    if reason:
        sys.exit(reason)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    facts = machine() | ({"emulated": True} if options.emulated else gpu())
    end, parts = perf_counter() + options.seconds, {}
    for name in options.parts.split(","):
        parts[name] = run_part(name, commands(out, options.emulated)[name], out, min(LIMITS[name], end - perf_counter()))
        parts[name] |= found_by(name, out)
        write(out / "check.json", {**facts, "parts": parts})
        print(f"{name}: {parts[name].get('why', 'passed')} ({parts[name]['seconds']:.0f} s)", flush=True)
    if any(part["state"] == "failed" for part in parts.values()):
        sys.exit(1)


def found_by(name: str, out: Path) -> Row:
    """What a part has found, in a line: how much of what was allowed."""
    file = out / f"{name}.json"
    found = json.loads(file.read_text(encoding="utf-8")) if name in ("right", "twice", "curves") and file.exists() else {}
    if name == "curves" and found:
        worst, above = max(found["slope_gaps"].values()), sum(found["gpu"]) - sum(found["cpu"])
        return {"found": f"losses apart by {found['first_gap']:.1g} at the first step ({FIRST_GAP} allowed), by "
                         f"{found['mean_gap']:.3f} at most in means of {WINDOW} steps ({MEAN_GAP} allowed), the GPU's by "
                         f"{above / len(found['cpu']):+.3f} on average; gradients by "
                         f"{100 * worst:.1f} % ({100 * SLOPE_GAP:.0f} % allowed); two runs "
                         f"{'the same' if found['repeats'] else 'not the same'}"}
    rows = found.get("rows", [])
    used = [max(row["largest"], row["norm"]) / row["most"] for row in rows if "most" in row]
    most = f"; errors at most {100 * max(used):.0f} % of what rounding may cost" if used else ""
    return {"found": f"{sum(row['right'] for row in rows)} of {len(rows)} right{most}"} if rows else {}


def page() -> list[str]:
    """What docs/gpu.md shows of the committed results."""
    file = ROOT / "benchmarks" / "results" / "gpu_check.json"
    if not file.exists():
        return ["Not run yet."]
    found = json.loads(file.read_text(encoding="utf-8"))
    rows = [{"part": name, "found": part.get("found", ""), "state": part.get("why", part["state"])}
            for name, part in found["parts"].items()]
    return [f"On one {found['card']}, by `{found['command']}`:", "",
            *table(rows, {"part": "part", "state": "", "found": "found"})]


def commands(out: Path, emulated: bool) -> dict[str, list[str]]:
    """What each part starts."""
    here, quick = ROOT / "benchmarks", ["--quick", "--emulated"] if emulated else []
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark", "-W", "default::DeprecationWarning"]
    pytest += ["-n", "8"] if find_spec("xdist") and not emulated else []
    few = "swiglu" if emulated else ""          # of the emulated run the tests are no part: it shows that they are found
    return {"tests": [*pytest, "tests/ops/test_twins.py", "-k", f"cuda/{few}"],
            "emulation": [*pytest, f"tests/kernels/test_{few}.py" if few else "tests/kernels"],
            **{part: [__file__, "--child", part, str(out / f"{part}.json"), str(int(emulated))]
               for part in ("right", "twice", "curves")},
            "kernels": [str(here / "gpu_kernels.py"), "--json", str(out / BENCHMARKS["kernels"]), *quick],
            "train": [str(here / "gpu_train_step.py"), "--json", str(out / BENCHMARKS["train"]), "--rounds", "1",
                      *(["--names", "minitune", *quick] if emulated else [])]}


def run_part(name: str, command: list[str], out: Path, limit: float) -> Row:
    """Runs a part to its end or its limit, with all that it started; what it prints goes to the log."""
    if limit < LEAST:
        return {"state": "failed", "why": "no time was left for it", "seconds": 0.0}
    measured = out / BENCHMARKS.get(name, f"{name}.json")
    measured.unlink(missing_ok=True)            # what an earlier run found is not this one's
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {key: value for key, value in os.environ.items() if key not in DROPPED}
    environment |= {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    begin, state = perf_counter(), "failed"
    with open(out / "log.txt", "a", encoding="utf-8") as log:
        log.write(f"\n==== {name} ====\n")
        log.flush()
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        try:
            code = process.wait(limit)
            state, why = "failed" if code else "passed", f"ended with {code}, see log.txt"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            state, why = cut(measured, limit) if name in BENCHMARKS else ("failed", f"ran past its {limit:.0f} s")
    return {"state": state, **({} if state == "passed" else {"why": why}), "seconds": perf_counter() - begin, "limit": limit}


def cut(measured: Path, limit: float) -> tuple[str, str]:
    """What a benchmark has come to that was ended by its limit: a measured row counts, unless another one has an error."""
    rows = json.loads(measured.read_text(encoding="utf-8"))["rows"] if measured.exists() else []
    wrong = [row["error"] for row in rows if "error" in row]
    if wrong or not rows:
        return "failed", ", and before: ".join([f"ran past its {limit:.0f} s", *wrong[:1]])
    return "cut", f"cut after {limit:.0f} s, {len(rows)} rows were measured"


# ---- Every kernel --------------------------------------------------------------------------------------------------

def each(file: Path, emulated: bool, check: Callable[[Passes, Place, Row], Iterator[Row]],
         operations: dict[str, Callable[..., Iterator[Any]]]) -> bool:
    """What a check finds of every operation. One that cannot be checked is not right: each has a twin that takes its inputs."""
    place, rows = Place(emulated), []
    shape = SHAPES["tiny" if emulated else "N = 1,024"]
    for name, operation in operations.items():
        try:
            for found in operation(place, sizes := shape | {"N": shape["B"] * shape["T"]}):
                for row in check(found, place, sizes):
                    rows.append(row)
                    print(row, flush=True)
        except Exception as error:
            traceback.print_exc()
            rows.append({"operation": name, "right": False, "error": told(error)})
        write(file, {"rows": rows})
    return bool(rows) and all(row["right"] for row in rows)


# ---- Right ---------------------------------------------------------------------------------------------------------

def right(file: Path, emulated: bool) -> bool:
    """Every twin in bfloat16 against its reference in float64, which is given the same rounded numbers."""
    return each(file, emulated, near, KERNELS | {"more": more})


def more(place: Place, s: Row) -> Iterator[Passes]:
    """What is judged and not measured: other kernels, and attention of other shapes, whose rows are padded on the left."""
    N, C, F = s["N"], s["C"], s["F"]
    unmeasured = ("", "")
    yield Passes("elementwise", "gelu_erf", {"x": place.normal(N, F)}, "x", unmeasured)
    yield Passes("elementwise", "add", {"a": place.normal(N, C), "b": place.normal(N, C)}, "a b", unmeasured)
    yield Passes("matmul", "matmul", {"a": place.normal(N, C), "b": place.normal(C, F)}, "a b", unmeasured, single="b")
    for B, T, H, G, D in ATTENTION:
        last = place.np.broadcast_to(place.np.arange(T), (B, T)).copy()
        inputs = {"q": place.normal(B, T, H, D), "k": place.normal(B, T, G, D), "v": place.normal(B, T, G, D),
                  "first": 0 * last + 37 * place.np.arange(B)[:, None], "last": last}
        yield Passes("attention", "attention", inputs, "q k v", unmeasured, label=f"B {B}, T {T}, H {H}, G {G}, D {D}")


def near(found: Passes, place: Place, _: Row) -> Iterator[Row]:
    """How far a result and its gradients are from the reference's, and whether rounding can explain it.

    A rounding to bfloat16 moves a number by at most ROUNDED of itself, so a result by at most ROUNDED of its largest number,
    and of its norm. What is rounded on the way moves a sum of M terms less than that: errors of either sign grow with the root
    of M, as do the sums. So each rounding may cost ROUNDED once. The largest error shows a number that is wrong, the norm many
    that are a little: both are judged. Dropout must leave out the same numbers.
    """
    fast, arrays, needs = found.taken(place)
    y, saved = fast.forward(*arrays, **found.settings, needs=needs)
    grad = found.slope(place, y)
    ours = [y, *fast.backward(grad, *saved, needs=needs)]
    exact = by_reference(found, [double(a, place) for a in arrays], double(grad, place), needs)
    likes = [next((a for a in arrays if a is not None and a.dtype == place.bfloat16), y) if y.ndim else None, *arrays]
    for name, like, a, b in zip(("y", *needs._fields), likes, ours, exact, strict=True):
        if (a is None) != (b is None):
            raise ValueError(f"{name}: the twin has {'none' if a is None else 'one'}, its reference not")
        if a is not None:
            dtype = place.np.float32 if like is None else like.dtype
            roundings = ON_THE_WAY.get(found.stem, {}).get(name, 0) + (a.dtype == place.bfloat16)
            yield {"operation": found.title, "result": name, **errors(double(a, place), b, roundings, found.name == "dropout"),
                   **({} if a.dtype == dtype else {"right": False, "error": f"expected {dtype}, got {a.dtype}"})}


def by_reference(found: Passes, arrays: list[Any], grad: Any, needs: Any) -> list[Any]:
    """The result and the gradients of the reference, None where there is none."""
    reference = import_module(f"minitune.ops.{found.stem}")
    forward, backward = (getattr(reference, f"{found.name}_{part}") for part in ("forward", "backward"))
    y, saved = forward(*arrays, **found.settings, needs=needs)
    return [y, *backward(grad, *saved, needs=needs)]


def double(a: Any, place: Place) -> Any:
    """An array on the host: floats as float64, which changes no number; integers as they are."""
    if a is None:
        return None
    if a.dtype.kind in "iu":
        return a if place.emulated else a.get()
    return place.host([a], None)[0].reshape(a.shape).astype(place.np.float64)


def errors(a: Any, b: Any, roundings: int, masked: bool = False) -> Row:
    """The largest error and the errors' norm, each beside that of the exact numbers, and what they may be."""
    from numpy.linalg import norm
    if a.shape != b.shape:
        raise ValueError(f"expected the shape {b.shape}, got {a.shape}")
    most = ROUNDED * roundings + SUMS
    largest, whole = (float(size(a - b) / max(size(b), 1e-30)) for size in (lambda x: abs(x).max(), lambda x: norm(x.ravel())))
    same = not masked or bool(((a == 0) == (b == 0)).all())
    return {"largest": largest, "norm": whole, "most": most, "right": same and largest <= most and whole <= most}


# ---- Twice ---------------------------------------------------------------------------------------------------------

def twice(file: Path, emulated: bool) -> bool:
    """Every twin with the same inputs twice: the same bits, for no kernel adds in an order that changes."""
    return each(file, emulated, repeats, KERNELS)


def repeats(found: Passes, place: Place, sizes: Row) -> Iterator[Row]:
    for case in found.cases(place, sizes):
        yield {"operation": case.operation, "right": equal(case, place)}


def equal(case: Case, place: Place) -> bool:
    """Whether two calls give the same bits."""
    first, second = (place.host(case.ours(), None) for _ in range(2))
    return all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


# ---- Curves --------------------------------------------------------------------------------------------------------

def curves(file: Path, emulated: bool) -> bool:
    """The demo's model on the CPU in float32 and on the GPU in bfloat16, and there again: the same bits. Then the gradients of
    both at the trained weights: a loss that falls may do so in spite of a wrong one."""
    from minitune import emulated_gpu
    steps, again, device = (3, 2, "cpu") if emulated else (STEPS, AGAIN, "cuda")
    exact, model, batch = trained("cpu", "float32", steps, emulated)
    right = gradients(model, batch, "cpu", "float32")
    with emulated_gpu() if emulated else nullcontext():
        rounded = gradients(model, batch, device, "bfloat16")
        runs = [trained(device, "bfloat16", count, emulated)[0] for count in (steps, again)]
    found = {"cpu": exact, "gpu": runs[0], "gpu_again": runs[1], "repeats": runs[0][:again] == runs[1], **gaps(exact, runs[0]),
             "slope_gaps": slope_gaps(right, rounded)}
    write(file, found)
    name, worst = max(found["slope_gaps"].items(), key=lambda item: item[1])
    print({key: found[key] for key in ("repeats", "first_gap", "mean_gap", "last")}, "worst gradient:", name, worst, flush=True)
    return (found["repeats"] and found["first_gap"] <= FIRST_GAP and found["mean_gap"] <= MEAN_GAP and worst <= SLOPE_GAP)


def trained(device: str, dtype: str, steps: int, tiny: bool) -> tuple[list[float], Any, Any]:
    """(the loss of every step, the model, the last batch); weights and batches are the same on every device."""
    import numpy as np

    import minitune as mt
    from minitune.cli.demo import DEMO_PRETRAINING
    from minitune.data import LanguageModelSet, load
    from minitune.experiments.pretraining import _model_and_rows
    from minitune.models import GPT, GPTConfig
    from minitune.train import Trainer
    mt.seed(0)
    if tiny:
        model, train = GPT(GPTConfig(67, 16, 1, 2, 64)), LanguageModelSet([np.arange(640) ** 2 % 67], 16)
    else:
        model, train, _ = _model_and_rows(load("pydocs"), DEMO_PRETRAINING)
    count = 2 if tiny else DEMO_PRETRAINING.batch_size
    trainer = Trainer(model.to(device, dtype), train, steps=steps, lr=LR, batch_size=count, progress=False)
    order, losses = np.random.default_rng(0).permutation(len(train)), []
    for step in range(steps):
        batch = train.batch(order[np.arange(count * step, count * (step + 1)) % len(order)])
        losses.append(trainer.train_step([batch], LR * min(1, (step + 1) / RISE)))
        trainer.step += 1
    return [float(loss) for loss in losses], model, batch


def gradients(model: Any, batch: Any, device: str, dtype: str) -> dict[str, Any]:
    """{name: the gradient of the summed loss}, on the host."""
    from minitune.devices import to_device
    model.to(device, dtype)
    for loss, _, _ in model.loss(batch.to(device)).values():
        loss.backward()
    found = {name: to_device(p.grad, "cpu") for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def slope_gaps(right: dict[str, Any], rounded: dict[str, Any]) -> dict[str, float]:
    """{name: how large the error of a gradient is beside it}; one that is next to nothing, as that of the keys' bias, counts as
    the SMALL part of all gradients' norm."""
    from numpy.linalg import norm
    least = SMALL * sum(norm(g) ** 2 for g in right.values()) ** 0.5
    gap = {name: float(norm(g - rounded[name]) / max(norm(g), least)) for name, g in right.items()}
    return {name: value if value == value else float("inf") for name, value in gap.items()}


def gaps(cpu: list[float], gpu: list[float]) -> Row:
    """How far two curves are apart: at the first step, and at most between means of WINDOW steps; infinity for NaN."""
    means = [abs(sum(a) - sum(b)) / len(a) for a, b in ((cpu[i : i + WINDOW], gpu[i : i + WINDOW])
                                                        for i in range(0, len(cpu), WINDOW))]
    largest = float("inf") if any(gap != gap for gap in means) else max(means)
    return {"first_gap": abs(cpu[0] - gpu[0]), "mean_gap": largest, "mean_gaps": means, "last": [cpu[-1], gpu[-1]]}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        part = {"right": right, "twice": twice, "curves": curves}[sys.argv[2]]
        sys.exit(0 if part(Path(sys.argv[3]), sys.argv[4] == "1") else 1)
    main()
