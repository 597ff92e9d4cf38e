"""Recipe: how a classifier is made from a language model. Each trick of ULMFiT is a switch: what it does can be measured.

Source: Howard and Ruder 2018, Universal language model fine-tuning for text classification (ULMFiT), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from math import ceil
from pathlib import Path
from typing import Any

from ..data import Dataset, LanguageModelSet, Tokenizer
from ..data.sources.overlap import without
from ..models import Classifier, from_pretrained
from ..nn import Dropout, Module
from ..optim import SCHEDULES, AdamW
from ..train import Callback, Trainer, Unfreeze
from ..train.evaluate import BatchSet
from ..tune import FullConfig, Unfreezing, apply, chain_thaw, discriminative, gradual, last_only, remap_vocabulary
from ..tune.apply import Method
from ..tune.patterns import backbone_of
from ..tune.standardized import StandardizedLinear, standardize
from .finetuning import model_folder

BETAS = 0.7, 0.99                               # of Adam, in the paper's section 4.1
TEXTS = "unlabelled", "labelled"
UNFREEZINGS: dict[str, Callable[[Any, int], Unfreezing] | None] = {
    "all": None, "gradual": gradual, "chain-thaw": chain_thaw, "last": lambda model, every: last_only(model)}


def _check(name: str, value: Any, known: Any) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def check_numbers(settings: Any, above_0: Sequence[str] = (), **least: int) -> None:
    """Raises ValueError for the first of the named settings that is neither None nor above 0, or at least what is given."""
    for name, bound in {**dict.fromkeys(above_0, 0), **least}.items():
        value = getattr(settings, name)
        if value is not None and not (value > bound or name in least and value == bound):
            raise ValueError(f"{type(settings).__name__}: {name} must be {'at least' if name in least else 'above'} {bound}, "
                             f"got {value}")


@dataclass(frozen=True)
class LanguageModelStage:
    """The second stage: before it sees a label, the language model goes on learning on the texts of the task.

    `texts` "unlabelled" are all that the data set has but those of valid and test, the training texts among them without their
    labels; "labelled" are those texts alone whose labels are used. It makes `epochs` passes over them, or as many more as
    `least_steps` steps take, up to `most_epochs`, with `batch_size` rows a step of `block_size` tokens (None: the model's).
    `rate` is the last layer's; each layer below has its rate divided by `rate_factor`. With `vocab_size` a tokenizer of so
    many tokens is learned from these texts first, and the model takes on its vocabulary (`tune.remap_vocabulary`); None: the
    model's own stays. Raises ValueError for what does not exist, and for numbers that cannot work.
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
        check_numbers(self, ("rate",), epochs=1, most_epochs=1, rate_factor=1, batch_size=1, block_size=1, least_steps=0,
                      vocab_size=1)


@dataclass(frozen=True, repr=False)
class Recipe:
    """From a language model to a classifier; as it stands, ULMFiT's third stage.

    Where `pretrained` is False the model begins with new weights, of the same sizes. `language_model` is the stage before,
    None for none. `method` is what `tune.apply` prepares. The head learns at the run's rate, each layer group at that of the
    group above divided by `rate_factor`. `unfreezing` "gradual" begins with the head and takes up one group more at a time,
    until after the share `thawed` of all steps everything trains; "chain-thaw" trains the head, then each group alone, then
    all; "last" the head; "all" is no schedule: what `method` lets train does so from the first step. `pooling` None is the
    protocol's. `dropout` is that of a transformer's layers while it is tuned (None: as the model has it). With `standardize`
    the trainer has the head read each pooled feature with mean 0 and deviation 1 over up to 256 training texts, as the prepared
    model reads them before it is tuned (`tune.standardize`); `tune.fold` ends it.
    Raises ValueError for what does not exist, for numbers that cannot work, and for an unfreezing schedule beside a method
    that freezes by itself.
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
    standardize: bool = field(default=False, repr=False)        # shown where it is True: runs of before are known by the text

    def __repr__(self) -> str:
        shown = [f.name for f in fields(self) if f.repr or getattr(self, f.name)]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def __post_init__(self) -> None:
        _check("Recipe: schedule", self.schedule, SCHEDULES)
        _check("Recipe: unfreezing", self.unfreezing, UNFREEZINGS)
        check_numbers(self, rate_factor=1)
        if not 0 < self.thawed <= 1:
            raise ValueError(f"Recipe: thawed is a share of the steps, above 0 and at most 1, got {self.thawed}")
        if not (0 <= (self.dropout or 0) < 1 and all(0 <= beta < 1 for beta in self.betas)):
            raise ValueError(f"Recipe: dropout and betas must be from 0 to below 1, got {self.dropout} and {self.betas}")
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
        if self.standardize and not isinstance(model.head, StandardizedLinear):
            standardize(model, train)
        schedule, unfreezing = SCHEDULES[self.schedule], UNFREEZINGS[self.unfreezing]
        every = max(1, int(steps * self.thawed) // max(1, len(model.layer_groups()) - 1))
        callbacks = [] if unfreezing is None else [Unfreeze(unfreezing(model, every))]
        # by its name where that says it all: a checkpoint knows the schedules by theirs, and all functions as one
        return Trainer(model, train, valid, lr=rate, optimizer=AdamW(discriminative(model, self.rate_factor), rate, self.betas),
                       schedule=self.schedule if longest == 1 else lambda step, _: schedule(step, steps), callbacks=callbacks,
                       steps=steps * longest, **settings)


def plain(method: Method, pretrained: bool = True) -> Recipe:
    """One rate for all layers, constant after its rise, and everything that `method` lets train from the first step on."""
    return Recipe(pretrained, None, method, rate_factor=1.0, schedule="constant", unfreezing="all", pooling=None,
                  betas=(0.9, 0.999))


def set_dropout(model: Module, p: float | None) -> None:
    """Gives every Dropout layer the probability `p`; None leaves all as they are."""
    for _, part in model.named_modules():
        if isinstance(part, Dropout) and p is not None:
            part.p = p


def starting_model(folder: str | Path, pretrained: bool) -> Any:
    """The model without a head in a folder, or of that name, with its tokenizer: pre-trained, or new weights of its sizes.

    Raises FileNotFoundError for a folder without a model, ValueError for a model without a tokenizer.
    """
    stored = from_pretrained(model_folder(folder))
    if stored.tokenizer is None:
        raise ValueError(f"expected a model with its tokenizer in {folder}, and tokenizer.json is not there")
    backbone = backbone_of(stored)
    model = backbone if pretrained else type(backbone)(backbone.config)
    model.tokenizer = stored.tokenizer
    return model


def texts_of(dataset: Dataset) -> list[str]:
    """Every text that may be read without its label, each once: none that is equal, but for case and white space, to one of
    valid or test."""
    read, held_out = ([text for name in names if name in dataset.splits
                       for text in dataset.splits[name].texts]                           # type: ignore[union-attr]
                      for names in (("unlabelled", "train"), ("valid", "test")))
    return without(read, held_out)


def tune_language_model(model: Any, texts: list[str], stage: LanguageModelStage, valid: list[str] | None = None,
                        out: str | Path | None = None, callbacks: tuple[Callback, ...] = (),
                        progress: bool | str = False, dropout: float | None = None) -> Trainer:
    """Trains a language model in place on texts, as `stage` says, and returns its ended Trainer.

    The model has its `tokenizer`; where the stage has a `vocab_size`, it gets another. `dropout` is that of the recipe.
    With the texts of `valid`, the weights that predict these best are kept: few texts are soon known by heart. With `out` it
    writes checkpoints there, and goes on from the last. Texts of less than two tokens have nothing to predict and are left out.
    Raises ValueError where no text is left to learn from.
    """
    if not texts:
        raise ValueError("tune_language_model: expected texts to learn from, got none")
    if stage.vocab_size:
        tokenizer = Tokenizer.train(texts, stage.vocab_size)
        tokenizer.backward = model.tokenizer.backward
        remap_vocabulary(model, tokenizer)
    set_dropout(model, dropout)
    block_size = stage.block_size or model.config.block_size
    train, measured = (_rows(model, given, block_size) for given in (texts, valid or []))
    if train is None:
        raise ValueError(f"tune_language_model: none of the {len(texts):,} texts has two tokens, one to predict the other from")
    epoch = max(1, len(train) / stage.batch_size)           # fewer rows than a batch are read whole in each step
    steps = ceil(max(stage.epochs * epoch, min(stage.least_steps, stage.most_epochs * epoch)))
    trainer = Trainer(model, train, measured, steps=steps, lr=stage.rate, schedule=stage.schedule, batch_size=stage.batch_size,
                      optimizer=AdamW(discriminative(model, stage.rate_factor), stage.rate, BETAS),
                      evaluate_every=max(1, steps // 8), out=out, callbacks=callbacks, progress=progress)
    trainer.fit(resume=out is not None)
    return trainer


def _rows(model: Any, texts: list[str], block_size: int) -> LanguageModelSet | None:
    """The texts as rows of `block_size` tokens; too few for one make one shorter row, texts without a target None."""
    framed = [model.tokenizer.frame(ids) for ids in model.tokenizer.encode_batch(texts)]
    documents = [ids for ids in framed if len(ids) > 1]
    return LanguageModelSet(documents, min(block_size, sum(map(len, documents)))) if documents else None
