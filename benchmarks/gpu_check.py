"""One prepared run for a rented GPU: what only a GPU can show, in minutes, without a network.

    python benchmarks/gpu_check.py --out results                    # all parts, about 12 minutes
    python benchmarks/gpu_check.py --out results --parts tests,twice,curves,kernels --seconds 300
    python benchmarks/gpu_check.py --out results --emulated         # without a GPU: that every part runs

Parts: tests, every twin on the GPU against its reference; twice, every kernel two times, with equal bits; curves, the demo's
model trained on the CPU in float32 and on the GPU in bfloat16, whose losses and gradients must agree; kernels and train, the
two benchmarks, gpu_kernels.py and gpu_train_step.py; emulation, the kernels' tests of which the GPU is no part, with the
compilers of this machine. A part that fails, or runs past its time, stops no other. Below --out ($OUT unless given) stand
check.json, the JSON of each part, and log.txt with all that was printed. Ends with 1 where a part failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import traceback
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from gpu_kernels import OPERATIONS, SHAPES, Case, Passes, Place, Skip, told, write
from measure import DROPPED, ROOT, Row, gpu, machine, no_gpu

LIMITS = {"tests": 90, "twice": 60, "curves": 90, "kernels": 200, "train": 420, "emulation": 120}       # seconds of each part
LEAST = 5                                       # with less time left a part is not begun
STEPS, AGAIN, WINDOW, RISE, LR = 300, 40, 25, 30, 2e-3          # of the two trainings; the first AGAIN steps are run twice
# What rounding may cost: bfloat16 keeps 8 digits, so an activation is off by up to 2^-8 of itself, and two trainings part
# slowly, a batch's loss to one side or the other. The references in bfloat16 on a CPU, which round at nearly the same places,
# differ from float32 over these 300 steps by 3e-5 at the first, by at most 0.006 in the mean of 25, and in the gradients after
# them by at most 2.1 % of one's norm. Three times these two are left to a GPU, which adds in another order; a gradient that is
# missing is 100 % off. The first loss is near log V whatever the weights; a few 2^-8 of it, averaged over 2,048 tokens, are
# less than 0.002.
FIRST_GAP, MEAN_GAP, SLOPE_GAP, SMALL = 0.002, 0.02, 0.06, 1e-3


# ---- The run -------------------------------------------------------------------------------------------------------

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), metavar="DIR", help="for results (default: $OUT)")
    parser.add_argument("--parts", default=",".join(LIMITS), help=f"with commas (default: {','.join(LIMITS)})")
    parser.add_argument("--seconds", type=float, default=1e9, metavar="S", help="of all parts together; the last ones are cut")
    parser.add_argument("--emulated", action="store_true", help="on the CPU, tiny: that every part runs")
    options = parser.parse_args()
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
        write(out / "check.json", {**facts, "parts": parts})
        print(f"{name}: {parts[name].get('why', 'passed')} ({parts[name]['seconds']:.0f} s)", flush=True)
    if not all(part["passed"] for part in parts.values()):
        sys.exit(1)


def commands(out: Path, emulated: bool) -> dict[str, list[str]]:
    """What each part starts."""
    here, quick = ROOT / "benchmarks", ["--quick", "--emulated"] if emulated else []
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default::DeprecationWarning"]
    pytest += ["-n", "8"] if find_spec("xdist") and not emulated else []
    few = "swiglu" if emulated else ""          # of the emulated run the tests are no part: it shows that they are found
    return {"tests": [*pytest, "tests/ops/test_twins.py", "-k", f"cuda/{few}"],
            "emulation": [*pytest, f"tests/kernels/test_{few}.py" if few else "tests/kernels"],
            "twice": [__file__, "--child", "twice", str(out / "twice.json"), str(int(emulated))],
            "curves": [__file__, "--child", "curves", str(out / "curves.json"), str(int(emulated))],
            "kernels": [str(here / "gpu_kernels.py"), "--json", str(out / "gpu_kernels.json"), *quick],
            "train": [str(here / "gpu_train_step.py"), "--json", str(out / "gpu_train_step.json"), "--rounds", "1",
                      *(["--names", "minitune", *quick] if emulated else [])]}


def run_part(name: str, command: list[str], out: Path, limit: float) -> Row:
    """Runs a part to its end or its limit, with all that it started; what it prints goes to the log."""
    if limit < LEAST:
        return {"passed": False, "why": "no time was left for it", "seconds": 0.0}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {key: value for key, value in os.environ.items() if key not in DROPPED}
    environment |= {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    begin = perf_counter()
    with open(out / "log.txt", "a", encoding="utf-8") as log:
        log.write(f"\n==== {name} ====\n")
        log.flush()
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        try:
            code = process.wait(limit)
            why = f"ended with {code}, see log.txt"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code, why = process.wait(), f"ran past its {limit:.0f} s"
    return {"passed": code == 0, **({"why": why} if code else {}), "seconds": perf_counter() - begin, "limit": limit}


# ---- Twice ---------------------------------------------------------------------------------------------------------

def twice(file: Path, emulated: bool) -> bool:
    """Every twin with the same inputs twice: the same bits, for no kernel adds in an order that changes."""
    place, rows = Place(emulated), []
    shape = SHAPES["tiny" if emulated else "N = 1,024"]
    for name, operation in OPERATIONS.items():
        if name == "optimizer":                 # it moves its parameters; the training below repeats it
            continue
        try:
            for found in operation(place, shape | {"N": shape["B"] * shape["T"]}):
                assert isinstance(found, Passes)
                rows += [{"operation": case.operation, "equal": equal(case, place)} for case in found.cases(place, shape)]
        except Skip as reason:
            rows.append({"operation": name, "skipped": str(reason)})
        except Exception as error:
            traceback.print_exc()
            rows.append({"operation": name, "equal": False, "error": told(error)})
        print(rows[-1], flush=True)
        write(file, {"rows": rows})
    return all(row.get("equal", True) for row in rows) and any("equal" in row for row in rows)


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
        part, file, emulated = {"twice": twice, "curves": curves}[sys.argv[2]], Path(sys.argv[3]), sys.argv[4] == "1"
        sys.exit(0 if part(file, emulated) else 1)
    main()
