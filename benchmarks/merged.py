"""Is a merged LoRA as fast as its base? The base, the same with a LoRA beside every linear layer, and merged, in turn.

    python benchmarks/merged.py --json --page               # made the committed results

A process holds all three and runs them one after the other, so that what drifts in the machine reaches all alike: a batch read
at once, and one row written token by token with a cache. Merged, the model has the base's layers and numbers of other values.
Writes benchmarks/results/merged.json and the table in docs/lora_or_full.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Any

from measure import ROOT, SIZES, Row, Size, in_turn, options_of, parser_of, report, spread, start, table, threads_of

PAGE = ROOT / "docs" / "lora_or_full.md"
MODELS = {"base": "the base", "adapted": "with its LoRA", "merged": "merged"}
WORKS = {"read": "a batch read", "write": "32 tokens written"}
COLUMNS = {"size": "size", "work": "", "label": "model", "parameters": "parameters", "median_ms": "median ms",
           "ratio_to_base": "to the base", "range": "80 % between"}
PROMPT, NEW, REPEATS = 16, 32, 20


def main() -> None:
    options = options_of(parser_of(__file__, __doc__, PAGE))
    names, rounds = (["tiny"], 1) if options.quick else (["S", "M"], options.rounds)
    arms = [{"size": name, "work": work} for name in names for work in WORKS]
    rows = [row for arm, results in zip(arms, in_turn(__file__, arms, rounds)) for row in rows_of(arm, results)]
    shown = [row | {"work": WORKS[row["work"]], "label": MODELS[row["name"]], "range": "{low:.2f} to {high:.2f}".format(**row)}
             for row in rows if "median_ms" in row]
    sizes = "; ".join(f"{name}: {SIZES[name]}" for name in names)
    said = f"{sizes}. To the base: the median of {REPEATS * rounds} pairs that ran one after the other."
    report(options, "merged", rows, [said, "", *table(shown, COLUMNS)], page=PAGE)


# ---- In a process of its own ---------------------------------------------------------------------------------------

def measure_arm(size: str, work: str) -> Row:
    """Milliseconds of one kind of work by each of the three models, in turn."""
    calls, parameters = {}, {}
    for name in MODELS:
        model = model_of(SIZES[size], name)
        calls[name], parameters[name] = (reading if work == "read" else writing)(model, SIZES[size]), model.num_parameters()
        calls[name]()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            begun = perf_counter()
            call()
            times[name].append(1000 * (perf_counter() - begun))
    return {"times_ms": times, "parameters": parameters, "threads": threads_of()}


def model_of(size: Size, name: str) -> Any:
    """One of the three: the same weights, and for the last two the same LoRA, as if it had learned something."""
    import numpy as np
    from own import gpt

    from minitune import tune
    model = gpt(replace(size, T=max(size.T, PROMPT + NEW)), "full" if name == "base" else "lora").eval()
    random = np.random.default_rng(0)
    for parameter in model.parameters():        # B, which begins at 0
        if name != "base" and not parameter.data.any() and parameter.ndim == 2:
            parameter.data += 0.02 * random.standard_normal(parameter.shape, np.float32)
    if name == "merged":
        tune.merge(model)
    return model


def reading(model: Any, size: Size) -> Callable[[], Any]:
    """Logits (B, T, V) of a batch."""
    import numpy as np

    import minitune as mt
    ids = np.random.default_rng(1).integers(0, size.V, (size.B, size.T))

    def read() -> Any:
        with mt.no_grad():
            return model(ids)

    return read


def writing(model: Any, size: Size) -> Callable[[], Any]:
    """The tokens that follow one prompt."""
    prompts = [list(range(min(PROMPT, size.V)))]
    return lambda: model.generate_ids(prompts, NEW, temperature=0)


# ---- In the parent ---------------------------------------------------------------------------------------------------

def rows_of(arm: Row, results: list[Row]) -> list[Row]:
    """A row for each of the three models: its median, and its times over those of the base that ran beside them."""
    if "error" in results[-1]:
        return [arm | {"error": results[-1]["error"]}]
    rows = []
    for name in MODELS:
        times = [t for result in results for t in result["times_ms"][name]]
        base = [t for result in results for t in result["times_ms"]["base"]]
        middle, low, high = spread(t / b for t, b in zip(times, base))
        rows.append(arm | {"name": name, "parameters": results[-1]["parameters"][name], "median_ms": spread(times)[0],
                           "ratio_to_base": middle, "low": low, "high": high, "pairs": len(times),
                           "threads": results[-1]["threads"]})
    return rows


if __name__ == "__main__":
    start(main, measure_arm)
