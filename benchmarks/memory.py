"""How much memory does a training step take, beside PyTorch and Hugging Face, and as the texts grow longer?

    python benchmarks/memory.py --json --page               # made the committed results

Peak resident memory of a process that does a few steps, above what it held after its imports and a step of a tiny model.
First size M in every mode; then minitune alone with B T = 2,048 tokens a step, cut into longer and longer rows. Writes
benchmarks/results/memory.json and the tables in docs/performance.md.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial

from measure import SIZES, Row, Size, in_turn, measure_step, options_of, parser_of, report, start, summary, table
from train_step import NAMES, modules_of, reason_to_skip, step_of

STEPS, TOKENS, LENGTHS = 3, 2048, (128, 512, 1024, 2048)


def main() -> None:
    options = options_of(parser_of(__file__, __doc__))
    size = SIZES["tiny" if options.quick else "M"]
    lengths = (8, 16) if options.quick else LENGTHS
    rounds = 1 if options.quick else options.rounds
    peers = [{"name": name, "mode": mode, "size": asdict(size)} for mode in ("full", "lora", "last")
             for name in ("minitune", "torch", "hugging_face") if not reason_to_skip(name, False)]
    total = size.T * size.B if options.quick else TOKENS
    longer = [{"name": "minitune", "mode": "full", "size": asdict(replace(size, T=T, B=total // T))} for T in lengths]
    arms = peers + longer
    rows = [arm | summary(results) for arm, results in zip(arms, in_turn(__file__, arms, rounds))]
    peers, longer = rows[: len(peers)], rows[len(peers) :]
    compare(peers, {row["mode"]: row for row in peers if row["name"] == "torch"})
    theirs = {row["mode"]: row.get("above_import_mb") for row in peers if row["name"] == "hugging_face"}
    for row in peers:
        other = theirs.get(row["mode"])
        row["ratio_to_hugging_face"] = row["above_import_mb"] / other if other and "above_import_mb" in row else None
    compare(longer, {"full": longer[0]})
    report(options, "memory", rows, tables(peers, longer))


def compare(rows: list[Row], bases: dict[str, Row]) -> None:
    """Each row's memory beside that of its mode's base."""
    for row in rows:
        base = bases.get(row["mode"], {}).get("peak_mb")
        row["ratio"] = row["peak_mb"] / base if base and "peak_mb" in row else None


def measure_arm(name: str, mode: str, size: Row) -> Row:
    """In a process of its own."""
    return measure_step(partial(step_of, name, mode), Size(**size), STEPS, modules=modules_of(name))


def tables(peers: list[Row], longer: list[Row]) -> list[str]:
    """Beside the others, and by length."""
    peers = [row | {"label": NAMES[row["name"]][0]} for row in peers]
    first = longer[0]["size"]
    return [f"{Size(**peers[0]['size'])}:", "",
            *table(peers, {"mode": "trains", "label": "", "peak_mb": "peak MB", "ratio": "to PyTorch",
                           "above_import_mb": "above imports, MB", "ratio_to_hugging_face": "of it, to Hugging Face",
                           "libraries_mb": "libraries, MB"}), "",
            f"minitune, all of it trained, {first['T'] * first['B']:,} tokens a step:", "",
            *table([row | row["size"] for row in longer],
                   {"T": "T", "B": "B", "peak_mb": "peak MB", "ratio": f"to T = {first['T']}", "median_ms": "ms a step"})]


if __name__ == "__main__":
    start(main, measure_arm)
