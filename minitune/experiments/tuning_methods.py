"""The methods that `compare` knows by name, the rates that are tried for each, and two that are more than a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .. import tune
from ..models.language_model import LanguageModel
from ..optim import AdamW
from ..train import Trainer
from ..tune.apply import Method
from .few_shot import FewShot, few_shot
from .recipe import Recipe, plain
from .results import SCRATCH
from .sample_efficiency import RATES, Task, language_model, test_columns

FEWEST_TOKENS = 8                               # of a text in a prompt: less says too little about it


@dataclass(frozen=True, repr=False)
class LoRAPlus(Recipe):
    """LoRA in which each B learns `ratio` times as fast as A and all else, one rate over time.

    Source: Hayou, Ghosh and Yu 2024, LoRA+: Efficient low rank adaptation of large models, section 4.
    """

    method: Method = tune.LoRAConfig(r=8, lora_alpha=16)
    rate_factor: float = 1.0
    schedule: str = "constant"
    unfreezing: str = "all"
    pooling: str | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    standardize: bool = field(default=True, repr=False)
    ratio: float = 16.0

    def trainer(self, model: Any, *sets: Any, rate: float, **settings: Any) -> Trainer:
        """As a recipe's, with LoRA+'s groups in the optimizer."""
        trainer = super().trainer(model, *sets, rate=rate, **settings)
        trainer.optimizer = AdamW(tune.lora_plus(model, self.ratio), rate, self.betas)
        return trainer


@dataclass(frozen=True, repr=False)
class Prompting(Recipe):
    """Nothing trains: some of the run's labelled texts stand in a prompt, as `settings` say, and the base reads it.

    So that a prompt fits the model, its texts are cut to equal lengths; where less than 8 tokens of each were left, there are
    fewer of them. `settings.text_tokens`, where given, stays as it is, and with it the number of texts.
    """

    settings: FewShot = field(default_factory=FewShot)

    def run(self, task: Task, spec: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
        """A run of it: what a run that trains measures, as far as there is any."""
        model = language_model(task, self)
        settings = self.fitted(model, task.labels, len(rows), spec["seed"])
        train, valid, test = task.splits["train"].subset(rows), task.splits["valid"], task.splits["test"]
        found = [few_shot(model, train, texts, task.labels, settings) for texts in (valid, test)]
        return {"valid_error": found[0].error(valid), "steps": 0, "best_step": 0, "training_seconds": 0.0, "k": settings.k,
                "text_tokens": settings.text_tokens, "trainable_parameters": 0, "total_parameters": model.num_parameters(),
                **(task.measure.columns(task, spec, rows, None) if task.measure else {}),
                **test_columns(task, found[1].predictions)}

    def fitted(self, model: Any, labels: Sequence[str], count: int, seed: int) -> FewShot:
        """The settings for `count` labelled texts, at most as many in the prompt as fit.

        Raises ValueError for a model that writes no text, and where it reads too few tokens for a text and its label.
        """
        if not isinstance(model, LanguageModel):
            raise ValueError(f"compare: few-shot prompts a model that predicts next tokens; {type(model).__name__} is none. "
                             "Leave few-shot out")
        settings = replace(self.settings, k=min(self.settings.k, count), seed=seed)
        if settings.text_tokens is not None:
            return settings
        tokenizer: Any = model.tokenizer
        around = [tokenizer.encode(settings.template.replace("{text}", "").replace("{label}", label)) for label in labels]
        needed = max(map(len, around)) + 2      # tokens of a template may fall otherwise beside a text
        for k in range(settings.k, -1, -1):
            each = (model.config.block_size - 1) // (k + 1) - needed
            if each >= FEWEST_TOKENS:
                return replace(settings, k=k, text_tokens=each)
        raise ValueError(f"compare: few-shot needs a base that reads more tokens than {model.config.block_size}; the template "
                         f"and a label take {needed} of them. Take a shorter template, or leave few-shot out")


USUAL: dict[str, Any] = {"r": 8, "lora_alpha": 16}
KNOWN: dict[str, Method | Recipe | FewShot] = {
    "full": tune.FullConfig(), "head": tune.FreezeConfig(), "top2": tune.TopLayersConfig(2), "bitfit": tune.BitFitConfig(),
    "lora": tune.LoRAConfig(**USUAL), "rslora": tune.LoRAConfig(**USUAL, use_rslora=True), "lora+": LoRAPlus(),
    "dora": tune.DoRAConfig(**USUAL), "pissa": tune.PiSSAConfig(**USUAL), "adapters": tune.AdapterConfig(bottleneck=32),
    "prefix": tune.PrefixConfig(length=10), "prompt": tune.PromptConfig(length=20), "ia3": tune.IA3Config(),
    "few-shot": FewShot()}
LOW, MIDDLE, HIGH = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
RATES_OF: dict[type, tuple[float, ...]] = {     # of the first kind that a method is of
    tune.FullConfig: LOW, tune.TopLayersConfig: LOW, tune.PiSSAConfig: MIDDLE, tune.LoRAConfig: (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    tune.AdapterConfig: MIDDLE, **dict.fromkeys((tune.FreezeConfig, tune.BitFitConfig, tune.PrefixConfig, tune.PromptConfig,
                                                 tune.IA3Config), HIGH)}


def chosen_methods(methods: Mapping[str, Any] | Iterable[str]) -> dict[str, Recipe]:
    """{name: recipe} of names that are known here, or of a mapping from names to tuning methods, recipes or few-shot settings.

    Raises ValueError for a name that is not known, and for no method; TypeError for what is no method.
    """
    if isinstance(methods, str):
        methods = [methods]
    if not isinstance(methods, Mapping):
        names = list(methods)
        if unknown := [name for name in names if name not in KNOWN]:
            raise ValueError(f"compare: there is no method {unknown[0]!r}; there are {', '.join(KNOWN)}")
        methods = {name: KNOWN[name] for name in names}
    if not methods:
        raise ValueError(f"compare: expected at least one method; there are {', '.join(KNOWN)}")
    return {name: _recipe(name, method) for name, method in methods.items()}


def _recipe(name: str, method: Any) -> Recipe:
    if isinstance(method, Recipe):
        return method
    if isinstance(method, FewShot):
        return Prompting(settings=method)
    if not hasattr(method, "install"):
        raise TypeError(f"compare: expected for {name!r} a method such as LoRAConfig(r=4), a Recipe or FewShot(), got "
                        f"{method!r}")
    return replace(plain(method, pretrained=name != SCRATCH), standardize=name != SCRATCH)


def rates_of(name: str, recipe: Recipe) -> tuple[float, ...]:
    """The rates that are tried for a method unless told. Raises ValueError for a kind of method that has none."""
    if isinstance(recipe, Prompting):
        return (0.0,)                           # nothing trains
    if name == SCRATCH:
        return RATES[SCRATCH]
    if isinstance(recipe, LoRAPlus):
        return LOW
    for kind, rates in RATES_OF.items():
        if isinstance(recipe.method, kind):
            return rates
    raise ValueError(f"compare: there are no usual learning rates for {name!r}, {recipe.method!r}. Give some: "
                     f"Protocol(rates={{{name!r}: (1e-4, 1e-3, 1e-2)}})")
