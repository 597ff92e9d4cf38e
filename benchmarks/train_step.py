"""How long does a training step take, beside PyTorch, Hugging Face and JAX, and beside its matrix products alone?

    python benchmarks/train_step.py --json --page           # made the committed results

Sizes S, M and L (see SIZES in measure.py), head tied, no dropout, float32, gradients clipped at norm 1, AdamW. Modes: "full"
trains everything, "lora" adapters of rank 8 on every linear layer of the blocks, "last" the last block and the final norm.
The floor is the time of the matrix products that the mode needs, by NumPy, in the same run. Each arm runs in processes of
its own, all in turn. Writes benchmarks/results/train_step.json and the tables in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from typing import Any

from measure import SIZES, Row, Size, cpu_flags, in_turn, measure_step, options_of, parser_of, report, start, summary, table

FULL, ALL = ("full",), ("full", "lora", "last")
NAMES = {                                       # name: (what the tables call it, its modes, the packages it needs)
    "minitune": ("minitune", ALL, ()),
    "references": ("minitune, references only", ALL, ()),
    "torch": ("PyTorch", ALL, ("torch",)),
    "compile": ("PyTorch, torch.compile", FULL, ("torch",)),
    "bf16": ("PyTorch, bf16 autocast", FULL, ("torch",)),
    "hugging_face": ("Hugging Face (LoRA: PEFT)", ALL, ("transformers", "peft")),
    "jax": ("JAX, jit", FULL, ("jax",)),
    "floor": ("matrix products alone", ALL, ()),
}
COLUMNS = {"mode": "trains", "label": "", "median_ms": "ms a step", "range": "80 % between", "steps": "steps",
           "ratio_to_torch_eager": "to PyTorch", "ratio_to_hugging_face": "to Hugging Face",
           "ratio_to_own_full": "to its full step", "ratio_to_floor": "to the floor", "peak_mb": "peak MB"}


def main() -> None:
    parser = parser_of(__file__, __doc__)
    parser.add_argument("--configs", default="S,M,L", help="sizes, with commas (default: S,M,L)")
    parser.add_argument("--modes", default=",".join(ALL), help=f"with commas (default: {','.join(ALL)})")
    parser.add_argument("--names", default=",".join(NAMES), help=f"with commas (default: {','.join(NAMES)})")
    parser.add_argument("--steps", type=int, default=9, help="timed steps in each process (default: 9)")
    parser.add_argument("--all", action="store_true", help="bf16 also where the processor can only imitate it")
    options = options_of(parser)
    if options.quick:
        options.configs, options.rounds, options.steps = "tiny", 1, 2
    arms = [{"name": name, "size": size, "mode": mode, "repeats": options.steps} for size in options.configs.split(",")
            for mode in options.modes.split(",") for name in options.names.split(",") if mode in NAMES[name][1]]
    reasons = [reason_to_skip(arm["name"], options.all) for arm in arms]
    measured = iter(in_turn(__file__, [arm for arm, reason in zip(arms, reasons) if not reason], options.rounds))
    rows = [arm | {"label": NAMES[arm["name"]][0]} | ({"skipped": reason} if reason else summary(next(measured)))
            for arm, reason in zip(arms, reasons)]
    compare(rows)
    sizes = {name: asdict(SIZES[name]) for name in options.configs.split(",")}
    report(options, "train_step", rows, tables(rows), {"sizes": sizes})


def reason_to_skip(name: str, all_arms: bool) -> str | None:
    """Why an arm cannot run here, or not in any useful time."""
    absent = [package for package in NAMES[name][2] if not find_spec(package)]
    if absent:
        return f"{' and '.join(absent)} not installed"
    if name == "bf16" and not all_arms and not cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"}:
        return "the processor has no bfloat16 instructions; imitated, a step takes many times longer (--all runs it)"
    return None


def measure_arm(name: str, size: str, mode: str, repeats: int) -> Row:
    """In a process of its own."""
    return measure_step(partial(step_of, name, mode), SIZES[size], repeats, modules=modules_of(name))


def modules_of(name: str) -> list[str]:
    """What an arm imports."""
    own = {"jax": "jax_peer", "minitune": "own", "references": "own", "floor": "own"}
    return [*NAMES[name][2], own.get(name, "peers")]


def step_of(name: str, mode: str, size: Size) -> Callable[[], Any]:
    """The step of an arm. Only what the arm needs is imported."""
    if name == "jax":
        from jax_peer import jax_step
        return jax_step(size)
    if name == "hugging_face":
        from peers import hugging_face_step
        return hugging_face_step(size, mode)
    if name in ("torch", "compile", "bf16"):
        from peers import torch_gpt, torch_step
        return torch_step(torch_gpt(size, mode), size, compiled=name == "compile", bf16=name == "bf16")
    from own import floor_step, gpt, training_step
    return floor_step(size, mode) if name == "floor" else training_step(gpt(size, mode), size, kernels=name == "minitune")


def compare(rows: list[Row]) -> None:
    """Puts each row beside PyTorch in the same mode, its own full step, and the floor."""
    times = {(row["name"], row["size"], row["mode"]): row["median_ms"] for row in rows if "median_ms" in row}
    for row in rows:
        others = {"ratio_to_torch_eager": ("torch", row["mode"]), "ratio_to_hugging_face": ("hugging_face", row["mode"]),
                  "ratio_to_own_full": (row["name"], "full"), "ratio_to_floor": ("floor", row["mode"])}
        row["config"] = str(SIZES[row["size"]])
        row["floor_ms"] = times.get(("floor", row["size"], row["mode"]))
        for key, (name, mode) in others.items():
            other = times.get((name, row["size"], mode))
            row[key] = row["median_ms"] / other if other and "median_ms" in row else None


def tables(rows: list[Row]) -> list[str]:
    """One table a size."""
    lines = []
    for size in dict.fromkeys(row["size"] for row in rows):
        shown = [row | {"range": f"{row['low_ms']:,.1f} to {row['high_ms']:,.1f}" if "low_ms" in row
                        else row.get("skipped", row.get("error"))} for row in rows if row["size"] == size]
        lines += [f"**{size}**: {SIZES[size]}", "", *table(shown, COLUMNS), ""]
    return lines[:-1]


if __name__ == "__main__":
    start(main, measure_arm)
