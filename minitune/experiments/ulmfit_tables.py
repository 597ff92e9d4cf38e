"""The rows of ULMFiT's tables as recipes, and how large they are run.

Source: Howard and Ruder 2018, ULMFiT, section 5, tables 4 to 7 and figure 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..train import Trainer
from .recipe import LanguageModelStage, Recipe
from .sample_efficiency import SCRATCH, ULMFIT, Protocol

SWEPT_AT = 500                                  # labels at which figure 3's rates are chosen, for all label counts
PAPERS_FACTOR = 2.6                             # of the rates from layer to layer, its section 3.2: in both stages of tuning


@dataclass(frozen=True, repr=False)
class TwoRates(Recipe):
    """A recipe in which all layers below the head learn at the head's rate times `below`."""

    rate_factor: float = 1.0
    below: float = 0.1

    def trainer(self, model: Any, *sets: Any, **settings: Any) -> Trainer:
        trainer = super().trainer(model, *sets, **settings)
        head = {id(p) for p in model.head.parameters()}
        for group in trainer.optimizer.groups:
            if not any(id(p) in head for p in group.parameters):
                group.rate *= self.below
        return trainer


@dataclass(frozen=True)
class Row:
    """A row of a table: its recipe, the head's rates, the better of which on validation is taken, and what to know of it."""

    name: str
    recipe: Recipe
    rates: tuple[float, ...]
    note: str = ""


@dataclass(frozen=True)
class Scale:
    """How large a reproduction is: tables at `labels` labels (None: the whole training set), figure 3 at those of `curve`.

    Runs are made by `protocol`, whose label counts and rates the tables replace; `language_model` is the second stage's.
    Table 5's bases are recurrent models of the sizes `recurrent`, pre-trained by `pretraining` without any of the paper's
    dropouts and penalties, and with the share `regularization` of them. `note` says why these.
    """

    protocol: Protocol
    language_model: LanguageModelStage
    pretraining: LanguageModelStage
    labels: int | None = None
    curve: tuple[int, ...] = (100, 200, 500, 1000)
    curve_scratch: tuple[int, ...] = (2000, 5000, 10000)
    recurrent: Mapping[str, int] = field(default_factory=lambda: {"n_embd": 400, "n_hidden": 1152, "n_layer": 3})
    regularization: float = 1.0
    note: str = ""

    def protocol_of(self, rows: tuple[Row, ...], texts: int) -> Protocol:
        """The protocol of a table's rows, with a training set of so many texts."""
        return replace(self.protocol, sizes=(self.labels or texts,), scratch_sizes=(), rates=_rates(rows))

    def protocol_of_curve(self, rows: tuple[Row, ...], texts: int) -> Protocol:
        """The protocol of figure 3; where there are fewer texts than labels asked for, scratch ends with all of them."""
        sizes = tuple(n for n in self.curve if n <= texts)
        scratch_sizes = tuple(dict.fromkeys(min(n, texts) for n in self.curve_scratch if min(n, texts) > max(sizes)))
        swept_at = min(sizes, key=lambda n: abs(n - SWEPT_AT))
        return replace(self.protocol, sizes=sizes, scratch_sizes=scratch_sizes, sweep_at=(swept_at,), rates=_rates(rows))


def _rates(rows: tuple[Row, ...]) -> dict[str, tuple[float, ...]]:
    return {row.name: row.rates for row in rows}


_SMALL = Scale(
    Protocol(seeds=(0, 1, 2, 3, 4), fewer_seeds=((200, 3), (1000, 1)), block_size=256, epochs=6, most_steps=800,
             evaluations=4, patience=3, trace_memory=False),
    LanguageModelStage(least_steps=1400),
    LanguageModelStage(rate=6e-3, rate_factor=1.0, schedule="linear", batch_size=16, block_size=128),
    labels=500, recurrent={"n_embd": 128, "n_hidden": 256, "n_layer": 2, "block_size": 256}, regularization=0.2,
    note="for 2 cores: 5 seeds up to 200 labels, 3 up to 1,000, 1 above; 256 tokens of each text; one pass over the task's "
         "texts, where they are few up to twelve; a fifth of AWD-LSTM's dropouts and penalties, whose full strength is for "
         "hundreds of epochs")

SCALES: dict[str, Scale] = {
    "small": _SMALL,
    "medium": replace(
        _SMALL, language_model=LanguageModelStage(epochs=4, rate=2e-3, batch_size=64, least_steps=400),
        note="for minutes on a GPU: 5 seeds up to 200 labels, 3 up to 1,000, 1 above; 256 tokens of each text; four passes "
             "over the task's texts, where they are few up to twelve; a fifth of AWD-LSTM's dropouts and penalties, whose full "
             "strength is for hundreds of epochs"),
    "full": Scale(
        Protocol(seeds=(0, 1, 2), epochs=50, batch_size=64, evaluations=50, patience=10),
        LanguageModelStage(epochs=10, batch_size=64),
        LanguageModelStage(epochs=20, rate_factor=1.0, batch_size=64, block_size=70),
        note="the whole training set and the paper's 50 epochs: for a GPU"),
}

RATES = ("Rates of the last layer: the paper's and a third of it, since this model is not the paper's; the better on "
         "validation is taken. So rows with discriminative rates have ten times the rate of those without, as in the paper. A "
         "row without a schedule has its full rate after a rise over a tenth of the steps.")
RATES_OF_CURVE = "Rates of the last layer: of three for each method the best on validation, near 500 labels, for all counts."
ONE_RATE = (3e-4, 1e-3)                         # the paper's .001 for rows without discriminative rates
DISCRIMINATIVE = (3e-3, 1e-2)                   # its .01 for those with them
HEAD_ALONE = (1e-3, 1e-2)
FROM_SCRATCH = (3e-4, 1e-3, 3e-3)


def table4(scale: Scale) -> tuple[Row, ...]:
    """Pre-training: what is left of the recipe without it."""
    new = replace(scale.language_model, rate_factor=1.0)
    return (Row("without pretraining", Recipe(pretrained=False, language_model=new), DISCRIMINATIVE,
                "new weights learn the task's texts first, for as many steps, at one rate for all layers; then the classifier "
                "is tuned by the whole recipe"),
            Row("with pretraining", Recipe(language_model=scale.language_model), DISCRIMINATIVE))


def table5(scale: Scale) -> tuple[Row, ...]:
    """The language model: the same sizes without and with AWD-LSTM's regularisers."""
    recipe = Recipe(language_model=scale.language_model)
    return (Row("vanilla LM", recipe, DISCRIMINATIVE, "the same sizes without any dropout or penalty, in every stage"),
            Row("AWD-LSTM LM", recipe, DISCRIMINATIVE))


def table6(scale: Scale) -> tuple[Row, ...]:
    """The second stage: how the language model is tuned. The classifier is tuned by the whole recipe in every row."""
    stage = scale.language_model
    stages = {"no LM fine-tuning": None, "full": replace(stage, rate_factor=1.0, schedule="constant"),
              "full + discr": replace(stage, schedule="constant"), "full + discr + stlr": stage}
    return tuple(Row(name, Recipe(language_model=tuned), DISCRIMINATIVE) for name, tuned in stages.items())


def table7(scale: Scale) -> tuple[Row, ...]:
    """The third stage: how the classifier is tuned. Every row but the first tunes the language model by the whole recipe."""
    stage = scale.language_model

    def row(name: str, unfreezing: str, discr: bool = False, schedule: str = "constant", rates: tuple[float, ...] = (),
            note: str = "") -> Row:
        recipe = Recipe(language_model=stage, rate_factor=PAPERS_FACTOR if discr else 1.0, schedule=schedule,
                        unfreezing=unfreezing)
        return Row(name, recipe, rates or (DISCRIMINATIVE if discr else ONE_RATE), note)

    return (Row("from scratch", Recipe(False, rate_factor=1.0, schedule="constant", unfreezing="all"), FROM_SCRATCH,
                "trains until validation has stalled; one rate more to choose from, since the paper's is not for this model"),
            row("full", "all"), row("full + discr", "all", discr=True),
            row("last", "last", rates=HEAD_ALONE,
                note="the paper's rate or ten times that: after so few steps a head alone has hardly moved at the paper's"),
            Row("chain-thaw", TwoRates(language_model=stage, schedule="constant", unfreezing="chain-thaw"), ONE_RATE,
                "layers below the head at a tenth of its rate, as in the paper: .001 and .0001, or a third of both"),
            row("freez", "gradual"), row("freez + discr", "gradual", discr=True),
            row("freez + stlr", "gradual", schedule="slanted_triangular"), row("freez + cos", "gradual", schedule="cosine"),
            row("freez + discr + stlr", "gradual", discr=True, schedule="slanted_triangular"))


def figure3(scale: Scale) -> tuple[Row, ...]:
    """The sample-efficiency curve: from scratch, on labelled texts alone, and with all unlabelled texts; and these again with
    the features standardised, which the paper's head does by batch normalisation and ours does not otherwise."""
    whole = Recipe(language_model=scale.language_model)
    methods = ULMFIT | {"semi-supervised": whole, "semi-supervised, standardized": replace(whole, standardize=True)}
    return tuple(Row(name, recipe, FROM_SCRATCH if name == SCRATCH else (1e-3, *DISCRIMINATIVE))       # type: ignore[arg-type]
                 for name, recipe in methods.items())


ROWS: dict[str, Callable[[Scale], tuple[Row, ...]]] = {
    "ulmfit.table4": table4, "ulmfit.table5": table5, "ulmfit.table6": table6, "ulmfit.table7": table7,
    "ulmfit.figure3": figure3}
