"""What papers report of LoRA beside full fine-tuning, as data: each figure with its place and what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from .published import Published

LORA = "Hu et al. 2021, LoRA: Low-rank adaptation of large language models, arXiv 2106.09685v2"
BIDERMAN = "Biderman et al. 2024, LoRA learns less and forgets less, arXiv 2405.09673"
REGRET = "Schulman and Thinking Machines 2025, LoRA without regret"
ACCURACY = "accuracy on MNLI of GPT-3 175B tuned on so many of its labels"
NOISE = 0.3                                     # points by which an accuracy of Table 16 typically wavers, as the paper says
SIZES = 100, 1_000, 10_000, 392_000             # the labels of its columns
CALLED = {"lora": "LoRA", "prefix": "PrefixLayer", "prompt": "PrefixEmbed"}     # our methods, and what the paper calls them
TABLE_16: dict[str, tuple[float, ...]] = {
    "Fine-Tune": (60.2, 85.8, 88.9, 89.5), "PrefixEmbed": (37.6, 75.2, 79.5, 88.6), "PrefixLayer": (48.3, 82.5, 85.9, 89.6),
    "LoRA": (63.8, 85.6, 89.2, 91.7)}
LOW_DATA: dict[tuple[str, int], Published] = {
    (row, labels): Published(LORA, "Table 16", f"MNLI-{labels:,}", row, value, "%", ACCURACY)
    for row, values in TABLE_16.items() for labels, value in zip(SIZES, values, strict=True)}
PROMPTED = tuple(Published(LORA, "Appendix A", "MNLI-m", row, value, "%", "accuracy of GPT-3 175B")
                 for row, value in (("few-shot", 40.6), ("Fine-Tune", 89.5)))
RATE_RATIOS = (
    Published(LORA, "the rates of its appendix, GPT-3: 2e-4 and 5e-6", "MNLI and others", "LoRA's rate over full's", 40,
              "times", "the rates that were used"),
    Published(BIDERMAN, "version 2", "code and mathematics", "LoRA's rate over full's", 10, "times",
              "best rates of Llama-2-7B, about: an order of magnitude"),
    Published(REGRET, "on the optimal rate", "several", "LoRA's rate over full's", 9.8, "times",
              "best rates of 14 Llama and Qwen models, fitted"))


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper that our runs can agree with or not, and what is different there."""

    paper: str
    says: str
    there: str


LEARNS_LESS = Claim(BIDERMAN, "LoRA learns less: it ends with the larger error",
                    "Llama-2-7B on code and mathematics, with far more data than here")
FORGETS_LESS = Claim(BIDERMAN, "LoRA forgets less: the base loses less of what it knew",
                     "forgetting is the fall of accuracy on HellaSwag, ARC-Challenge and WinoGrande; here it is the rise of "
                     "the loss on a general text")
