"""Recipe: how a classifier is made from a language model. Each trick of ULMFiT is a switch: what it does can be measured.

Source: Howard and Ruder 2018, Universal language model fine-tuning for text classification (ULMFiT), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from ..data import Dataset, LanguageModelSet, Tokenizer
from ..models import Classifier
from ..nn import Dropout, Module
from ..optim import SCHEDULES, AdamW
from ..train import Callback, Trainer, Unfreeze
from ..train.evaluate import BatchSet
from ..tune import FullConfig, Unfreezing, apply, chain_thaw, discriminative, gradual, last_only, remap_vocabulary
from ..tune.apply import Method

BETAS = 0.7, 0.99                               # of Adam, in the paper's section 4.1
TEXTS = "unlabelled", "labelled"
UNFREEZINGS: dict[str, Callable[[Any, int], Unfreezing] | None] = {
    "all": None, "gradual": gradual, "chain-thaw": chain_thaw, "last": lambda model, every: last_only(model)}


def _check(name: str, value: Any, known: Any) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


@dataclass(frozen=True)
class LanguageModelStage:
    """The second stage: before it sees a label, the language model goes on learning on the texts of the task.

    `texts` "unlabelled" are all that the data set has but those of valid and test, the training texts among them without their
    labels; "labelled" are those texts alone whose labels are used. It makes `epochs` passes over them, or as many more as
    `least_steps` steps take, up to `most_epochs`, with `batch_size` rows a step of `block_size` tokens (None: the model's).
    `rate` is the last layer's; each layer below has its rate divided by `rate_factor`. With `vocab_size` a tokenizer of so
    many tokens is learned from these texts first, and the model takes on its vocabulary (`tune.remap_vocabulary`); None: the
    model's own stays.
    """

    texts: str = "unlabelled"
    epochs: int = 1
    most_epochs: int = 12
    rate: float = 1e-3
    rate_factor: float = 1.3
    schedule: str = "slanted_triangular"
    batch_size: int = 8
    block_size: int | None = None
    least_steps: int = 30
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        _check("LanguageModelStage: texts", self.texts, TEXTS)
        _check("LanguageModelStage: schedule", self.schedule, SCHEDULES)


@dataclass(frozen=True)
class Recipe:
    """From a language model to a classifier; as it stands, ULMFiT's third stage.

    Where `pretrained` is False the model begins with new weights, of the same sizes. `language_model` is the stage before,
    None for none. `method` is what `tune.apply` prepares. The head learns at the run's rate, each layer group at that of the
    group above divided by `rate_factor`. `unfreezing` "gradual" begins with the head and takes up one group more at a time,
    until after the share `thawed` of all steps everything trains; "chain-thaw" trains the head, then each group alone, then
    all; "last" the head; "all" is no schedule: what `method` lets train does so from the first step. `pooling` None is the
    protocol's. `dropout` is that of a transformer's layers while it is tuned (None: as the model has it).
    Raises ValueError for what does not exist, and for an unfreezing schedule beside a method that freezes by itself.
    """

    pretrained: bool = True
    language_model: LanguageModelStage | None = None
    method: Method = field(default_factory=FullConfig)
    rate_factor: float = 2.6
    schedule: str = "slanted_triangular"
    unfreezing: str = "gradual"
    thawed: float = 1 / 3
    pooling: str | None = "concat"
    dropout: float | None = None
    betas: tuple[float, float] = BETAS

    def __post_init__(self) -> None:
        _check("Recipe: schedule", self.schedule, SCHEDULES)
        _check("Recipe: unfreezing", self.unfreezing, UNFREEZINGS)
        if self.unfreezing != "all" and not isinstance(self.method, FullConfig):
            raise ValueError(f"Recipe: unfreezing={self.unfreezing!r} lets train what {self.method} keeps frozen. Take "
                             "unfreezing='all' with it")

    @property
    def from_scratch(self) -> bool:
        """Whether nothing but labels is learned from."""
        return not self.pretrained and self.language_model is None

    def classifier(self, backbone: Any, labels: Sequence[str], pooling: str | None = None) -> Classifier:
        """A classifier on a language model, prepared as the recipe says; `pooling` is taken where the recipe has none."""
        model = Classifier(backbone, labels, self.pooling or pooling)
        set_dropout(model, self.dropout)
        apply(model, self.method)
        return model

    def trainer(self, model: Any, train: BatchSet, valid: BatchSet | None, *, rate: float, steps: int, longest: int = 1,
                **settings: Any) -> Trainer:
        """The trainer of a classifier that `tune.apply` has prepared. Its schedules are those of `steps` steps, whether it may
        go on `longest` times as long or not."""
        schedule, unfreezing = SCHEDULES[self.schedule], UNFREEZINGS[self.unfreezing]
        every = max(1, int(steps * self.thawed) // max(1, len(model.layer_groups()) - 1))
        callbacks = [] if unfreezing is None else [Unfreeze(unfreezing(model, every))]
        return Trainer(model, train, valid, lr=rate, optimizer=AdamW(discriminative(model, self.rate_factor), rate, self.betas),
                       schedule=lambda step, _: schedule(step, steps), callbacks=callbacks, steps=steps * longest, **settings)


def plain(method: Method, pretrained: bool = True) -> Recipe:
    """One rate for all layers, constant after its rise, and everything that `method` lets train from the first step on."""
    return Recipe(pretrained, None, method, rate_factor=1.0, schedule="constant", unfreezing="all", pooling=None,
                  betas=(0.9, 0.999))


def set_dropout(model: Module, p: float | None) -> None:
    """Gives every Dropout layer the probability `p`; None leaves all as they are."""
    for _, part in model.named_modules():
        if isinstance(part, Dropout) and p is not None:
            part.p = p


def texts_of(dataset: Dataset) -> list[str]:
    """Every text that may be read without its label, each once: neither valid's nor test's."""
    splits = [dataset.splits[name] for name in ("unlabelled", "train") if name in dataset.splits]
    return list(dict.fromkeys(text for split in splits for text in split.texts))        # type: ignore[union-attr]


def tune_language_model(model: Any, texts: list[str], stage: LanguageModelStage, valid: list[str] | None = None,
                        out: str | Path | None = None, callbacks: tuple[Callback, ...] = (),
                        progress: bool | str = False) -> Trainer:
    """Trains a language model in place on texts, as `stage` says, and returns its ended Trainer.

    The model has its `tokenizer`; where the stage has a `vocab_size`, it gets another.
    With the texts of `valid`, the weights that predict these best are kept: few texts are soon known by heart. With `out` it
    writes checkpoints there, and goes on from the last.
    """
    if stage.vocab_size:
        tokenizer = Tokenizer.train(texts, stage.vocab_size)
        tokenizer.backward = model.tokenizer.backward
        remap_vocabulary(model, tokenizer)
    block_size = stage.block_size or model.config.block_size
    sets = [_rows(model, given, block_size) for given in (texts, valid) if given]
    epoch = len(sets[0]) / stage.batch_size
    steps = ceil(max(stage.epochs * epoch, min(stage.least_steps, stage.most_epochs * epoch)))
    trainer = Trainer(model, *sets, steps=steps, lr=stage.rate, schedule=stage.schedule, batch_size=stage.batch_size,
                      optimizer=AdamW(discriminative(model, stage.rate_factor), stage.rate, BETAS),
                      evaluate_every=max(1, steps // 8), out=out, callbacks=callbacks, progress=progress)
    trainer.fit(resume=out is not None)
    return trainer


def _rows(model: Any, texts: list[str], block_size: int) -> LanguageModelSet:
    """The texts as rows of `block_size` tokens; too few for one make one shorter row."""
    documents = [model.tokenizer.frame(ids) for ids in model.tokenizer.encode_batch(texts)]
    return LanguageModelSet(documents, min(block_size, sum(map(len, documents))))
