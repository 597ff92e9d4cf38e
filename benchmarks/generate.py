"""How fast does a model write, with a cache of keys and values, without one, and beside Hugging Face?

    python benchmarks/generate.py --json --page             # made the committed results

Greedy generation by a model of size M with room for 256 tokens, random weights, from prompts of 16 tokens; Hugging Face reads
the folder that minitune wrote. The tokens must be the same: where they part, both candidates' logits must be a near tie, else
this ends with an error. Writes benchmarks/results/generate.json and the table in docs/performance.md.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from time import perf_counter
from typing import Any

from measure import SIZES, Row, Size, in_turn, options_of, parser_of, report, run_child, spread, start, table, threads_of

LABELS = {"cache": "minitune", "no_cache": "minitune, cache=False", "hugging_face": "Hugging Face"}
COLUMNS = {"batch": "rows", "new": "new tokens", "label": "", "tokens_per_second": "tokens a second",
           "times_hugging_face": "times Hugging Face", "range": "80 % between",
           "same_tokens": "the same tokens"}
PROMPT, REPEATS = 16, 3
TIE = 1e-3      # logits of about 10 in float32 differ by some 1e-5 between two orders of summing; this leaves room


def main() -> None:
    options = options_of(parser_of(__file__, __doc__))
    size = replace(SIZES["tiny"], T=64) if options.quick else replace(SIZES["M"], T=256)
    lengths, batches, rounds = ((4,), (1, 2), 1) if options.quick else ((64, 200), (1, 8), options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        made = run_child(__file__, {"name": "make", "folder": folder, "size": vars(size)})
        if "error" in made:
            sys.exit(made["error"])
        names = [name for name in LABELS if name != "hugging_face" or find_spec("transformers")]
        arms = [{"name": name, "batch": batch, "new": new, "folder": folder}
                for batch in batches for new in lengths for name in names]
        rows = [row_of(arm, found) for arm, found in zip(arms, in_turn(__file__, arms, rounds))]
        own = {(row["batch"], row["new"]): row.get("tokens") for row in rows if row["name"] == "cache"}
        for row in rows:
            row["same_tokens"] = agreement(row, own[row["batch"], row["new"]], folder)
    theirs = {(row["batch"], row["new"]): row.get("tokens_per_second") for row in rows if row["name"] == "hugging_face"}
    for row in rows:
        other = theirs.get((row["batch"], row["new"]))
        row["times_hugging_face"] = row["tokens_per_second"] / other if other and "tokens_per_second" in row else None
    rows = [{key: value for key, value in row.items() if key not in ("tokens", "folder")} for row in rows]
    shown = [row | {"label": LABELS[row["name"]], "range": "{low:,.0f} to {high:,.0f}".format(**row) if "low" in row else None}
             for row in rows]
    report(options, "generate", rows, [f"{size}, prompts of {PROMPT} tokens:", "", *table(shown, COLUMNS)])
    if any(row["same_tokens"].startswith("no") for row in rows):
        sys.exit("The tokens part where there is no near tie")


# ---- In a process of its own ---------------------------------------------------------------------------------------

def measure_arm(name: str, folder: str, **details: Any) -> Row:
    """Times one way to go on from the prompts; or does what the parent needs beside: "make" the model, find a "gap"."""
    jobs = {"make": make, "gap": gap}
    return jobs[name](folder, **details) if name in jobs else write(name, folder, **details)


def write(name: str, folder: str, batch: int, new: int) -> Row:
    """Tokens a second of each repetition, and the tokens of the last."""
    model = hugging_face_model(folder) if name == "hugging_face" else minitune_model(folder)
    prompts = prompts_of(batch, model.config.vocab_size)

    def generate(count: int) -> list[list[int]]:
        if name != "hugging_face":
            return model.generate_ids(prompts, count, temperature=0, cache=name == "cache")
        import torch
        ids = torch.tensor(prompts)
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, use_cache=True)
        return whole[:, PROMPT:].tolist()

    generate(2)
    rates = []
    for _ in range(REPEATS):
        start = perf_counter()
        tokens = generate(new)
        rates.append(batch * new / (perf_counter() - start))
    return {"tokens_per_second": rates, "tokens": tokens, "threads": threads_of()}


def prompts_of(batch: int, V: int) -> list[list[int]]:
    import numpy as np
    return np.random.default_rng(1).integers(0, V, (batch, PROMPT)).tolist()


def make(folder: str, size: Row) -> Row:
    """A model whose weights are large enough that it does not write one token for ever."""
    import numpy as np
    from own import gpt
    model, random = gpt(Size(**size), "full"), np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * random.standard_normal(parameter.shape, np.float32)
    model.save_pretrained(folder)
    return {}


def gap(folder: str, batch: int, partings: list[list[Any]]) -> Row:
    """The largest difference of two tokens' logits: each parting is (row, what is written so far, token, other token)."""
    import numpy as np
    model = minitune_model(folder)
    prompts = prompts_of(batch, model.config.vocab_size)
    logits = [model(np.array([prompts[row] + so_far])).numpy()[0, -1, pair] for row, so_far, *pair in partings]
    return {"gap": max(float(abs(one - other)) for one, other in logits)}


def minitune_model(folder: str) -> Any:
    from minitune import models
    return models.from_pretrained(folder)


def hugging_face_model(folder: str) -> Any:
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")         # what another library's import deprecates is not ours to mend
        from transformers import GPT2LMHeadModel
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0    # nothing ends a row early
    return model


# ---- In the parent ---------------------------------------------------------------------------------------------------

def row_of(arm: Row, results: list[Row]) -> Row:
    """All rounds of an arm in one row."""
    if "error" in results[-1]:
        return arm | {"error": results[-1]["error"]}
    rates = [rate for result in results for rate in result["tokens_per_second"]]
    middle, low, high = spread(rates)
    return arm | {"tokens": results[0]["tokens"], "tokens_per_second": middle, "low": low, "high": high, "runs": len(rates),
                  "threads": results[0]["threads"]}


def agreement(row: Row, own: list[list[int]] | None, folder: str) -> str:
    """Whether a row's tokens are minitune's with a cache: "yes", "but for near ties", or "no" and by how much."""
    if own is None or "tokens" not in row:
        return "not known"
    partings = []
    for number, (one, other) in enumerate(zip(own, row["tokens"])):
        at = next((i for i, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), None)
        if at is not None:
            partings.append([number, one[:at], one[at], other[at]])
    if not partings:
        return "yes"
    found = run_child(__file__, {"name": "gap", "folder": folder, "batch": row["batch"], "partings": partings})
    return "but for near ties" if found.get("gap", 1) < TIE else f"no: {found}"


if __name__ == "__main__":
    start(main, measure_arm)
