"""few_shot: k labelled examples in a prompt, and the class whose label a language model finds likeliest; nothing trains."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data import Batch, Split
from ..data.dataset import nested_subsets
from ..devices import array_module, to_device
from ..models.classifier import softmax
from ..models.language_model import LanguageModel
from ..ops import IGNORE

Ids = list[int]


@dataclass(frozen=True)
class FewShot:
    """How a prompt is made and read.

    `k` examples, classes in balance, are written after `template`, in which {text} and, after it, {label} stand once each; then
    comes a text with each label in turn. Labels of several tokens are compared by their mean log-likelihood a token
    (`normalize="token"`), a word ("word"), or by the sum (None). A text is cut after `text_tokens` tokens, if given.
    `calibrate` divides each class's probability by the mean one that it has after the texts `content_free`, which say nothing:
    what a model prefers whatever it reads. It changes no parameter.
    Raises ValueError for settings out of range.
    Sources: Brown et al. 2020, Language models are few-shot learners, section 2.4; calibration: Zhao et al. 2021, Calibrate
    before use: improving few-shot performance of language models, section 5, with W = diag(p)^-1 and b = 0, and the result
    divided by its sum.
    """

    k: int = 8
    template: str = "{text}\nLabel: {label}\n\n"
    normalize: str | None = "token"
    calibrate: bool = False
    content_free: tuple[str, ...] = ("N/A", "[MASK]", "")
    text_tokens: int | None = None
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name, value, least in ("k", self.k, 0), ("batch_size", self.batch_size, 1), ("text_tokens", self.text_tokens, 1):
            if not (isinstance(value, (int, np.integer)) and value >= least or name == "text_tokens" and value is None):
                raise ValueError(f"FewShot: {name} must be a whole number from {least}, got {value!r}")
        before, text, rest = self.template.partition("{text}")
        if not text or self.template.count("{text}") + self.template.count("{label}") != 2 or "{label}" not in rest:
            raise ValueError("FewShot: template must hold {text} and after it {label}, once each, as in '{text}\\nLabel: "
                             f"{{label}}\\n\\n', got {self.template!r}")
        if self.normalize not in ("token", "word", None):
            raise ValueError(f'FewShot: normalize must be "token", "word" or None, got {self.normalize!r}')
        if self.calibrate and not self.content_free:
            raise ValueError("FewShot: calibrate needs at least one text in content_free")


@dataclass(frozen=True)
class FewShotPredictions:
    """What `few_shot` found for N texts and K classes."""

    predictions: np.ndarray     # (N,) the likeliest class of each text
    probabilities: np.ndarray   # (N, K) float64; a row's sum is 1
    log_likelihoods: np.ndarray             # (N, K) float64, in nats a token, a word or a label: the probabilities come of them
    examples: np.ndarray        # (k,) which rows of the labelled split are in the prompt, in its order
    content_free: np.ndarray | None = None  # (K,) the probabilities that calibration divided by

    def error(self, split: Split) -> float:
        """The share of the texts of `split`, those that were given, that are put into a wrong class."""
        if split.labels is None or len(split) != len(self.predictions):
            raise ValueError(f"FewShotPredictions.error: expected the {len(self.predictions)} texts that were given, and their "
                             f"labels, got {split!r}")
        return float((self.predictions != split.labels).mean())


def few_shot(model: LanguageModel, train: Split, texts: Split, labels: Sequence[str],
             settings: FewShot | None = None) -> FewShotPredictions:
    """The class of each text of a split by a prompt with `settings.k` examples of `train`; the model is not changed.

    `labels` are the names of the classes as the prompt writes them, in the order of the split's numbers. The probability of a
    class is e^l / sum(e^l) over the classes' log-likelihoods l, calibrated where `settings` say so.
    Raises TypeError for a model that predicts no next token, ValueError for one without tokenizer or with one that reads
    backwards, for too few examples, and where a prompt outgrows the model's block_size: then with the number of examples that
    do fit.
    """
    settings = FewShot() if settings is None else settings
    prompt = _Prompt(model, train, tuple(map(str, labels)), settings)
    scores = prompt.scores(texts.texts)                                     # (N, K)
    probabilities, free = softmax(scores), None
    if settings.calibrate:
        free = softmax(prompt.scores(settings.content_free)).mean(0)        # (K,)
        probabilities = probabilities / free
        probabilities /= probabilities.sum(1, keepdims=True)
    return FewShotPredictions(probabilities.argmax(1), probabilities, scores, prompt.examples, free)


class _Prompt:
    """The examples as tokens, to which texts and labels are added."""

    def __init__(self, model: Any, train: Split, labels: tuple[str, ...], settings: FewShot) -> None:
        _check(model, train, labels)
        self.model, self.settings, tokenizer = model, settings, model.tokenizer
        before, _, rest = settings.template.partition("{text}")
        middle, _, after = rest.partition("{label}")
        label_start = middle[len(middle.rstrip(" ")):]      # " yes" is one token where " " and "yes" are two
        pieces = [before, middle.rstrip(" "), after, *(label_start + label for label in labels)]
        self.before, self.middle, self.after, *self.labels = tokenizer.encode_batch(pieces)
        if empty := [label for label, ids in zip(labels, self.labels) if not ids]:
            raise ValueError(f"few_shot: a label must have at least one token, got {empty[0]!r}")
        self.counts = np.array([{"token": len(ids), "word": len(label.split()), None: 1}[settings.normalize]
                                for label, ids in zip(labels, self.labels)])
        self.start = [] if tokenizer.start is None else [tokenizer.start]
        self.examples = _chosen(train, len(labels), settings)
        texts = self.encoded([train.texts[row] for row in self.examples])
        self.shots = [self.query(text) + self.labels[train.labels[row]] + self.after        # type: ignore[index]
                      for row, text in zip(self.examples, texts)]

    def encoded(self, texts: Sequence[str]) -> list[Ids]:
        """Each text's tokens, as far as they are read."""
        return [ids[: self.settings.text_tokens] for ids in self.model.tokenizer.encode_batch(list(texts))]

    def query(self, text: Ids) -> Ids:
        """A text as the template has it, up to the label."""
        return self.before + text + self.middle

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """The log-likelihood of every label after every text, float64 (N, K)."""
        encoded = self.encoded(texts)
        self._require_room(encoded)
        prompt = self.start + [token for shot in self.shots for token in shot]
        nothing = [] if prompt else [self.model.tokenizer.end]              # a first token needs one before it
        rows = [(self.query(text) or nothing, label) for text in encoded for label in self.labels]
        order = np.argsort([len(context) + len(label) for context, label in rows], kind="stable")
        sums = np.zeros(len(rows))
        with self.model.evaluating():
            cache = self._read(prompt)
            for at in range(0, len(order), self.settings.batch_size):
                chosen = order[at : at + self.settings.batch_size]
                sums[chosen] = log_likelihoods(self.model, [rows[row] for row in chosen], len(prompt), cache)
        return sums.reshape(len(texts), len(self.labels)) / self.counts

    def _read(self, prompt: Ids) -> Any:
        """A cache that holds the prompt, which all rows share; None where it is empty."""
        if not prompt:
            return None
        cache = self.model.new_cache(self.model.config.block_size)
        self.model.features(Batch.causal([[prompt]]).to(self.model.device), cache)
        return cache

    def _require_room(self, texts: list[Ids]) -> None:
        """Raises ValueError where a row is longer than the model reads, with what is not."""
        room = self.model.config.block_size - len(self.start) - max(map(len, self.labels))
        room -= max((len(self.query(text)) for text in texts), default=0)
        lengths = np.cumsum([0, *map(len, self.shots)])                     # of the first 0, 1, 2 ... examples
        if lengths[-1] > room:
            fit = int((lengths <= room).sum()) - 1
            advice = f"{fit} of these examples fit, FewShot(k={fit})" if fit >= 0 else "No example fits"
            raise ValueError(f"few_shot: the model reads {self.model.config.block_size} tokens; {len(self.shots)} examples, of "
                             f"{lengths[-1]} tokens, and the longest text are {lengths[-1] - room} more. {advice}; or cut the "
                             "texts, FewShot(text_tokens=...)")


def log_likelihoods(model: Any, rows: Sequence[tuple[Ids, Ids]], before: int = 0, cache: Any = None) -> np.ndarray:
    """The summed log-probability, in nats, of the second ids of each row after the first ones: float64 (B,).

    All rows follow the `before` tokens of one row that a cache holds; it is not changed.
    """
    batch = Batch.causal([[context + continuation] for context, continuation in rows])
    for b, (context, _) in enumerate(rows):
        batch.targets[b, : len(context) - 1] = IGNORE
    place = np.nonzero(batch.targets != IGNORE)                             # rows, times
    targets = batch.targets[place]
    batch.positions, batch.last = batch.positions + before, np.where(batch.valid, batch.last + before, batch.last)
    own = copy(cache)
    if own is not None:
        own.keep(to_device(np.zeros(len(rows), int), model.device))         # the one row again and again
    x = model.features(batch.to(model.device, before), own)                 # (B, T, C)
    xp = array_module(x.data)
    logits = model.head(x[tuple(map(xp.asarray, place))]).numpy().astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    chosen = logits[np.arange(len(targets)), targets] - np.log(np.exp(logits).sum(-1))
    return np.bincount(place[0], chosen, len(rows))


def _chosen(train: Split, classes: int, settings: FewShot) -> np.ndarray:
    """The rows (k,) of the examples, classes in balance, in a random order."""
    labels = np.asarray(train.labels)
    if settings.k > len(train):
        raise ValueError(f"few_shot: {settings.k} examples were asked for, and there are {len(train)}. Take a smaller k")
    if not settings.k:
        return np.zeros(0, int)
    size = max(settings.k, len(np.unique(labels)))
    return nested_subsets(labels, [size], settings.seed)[size][: settings.k]


def _check(model: Any, train: Split, labels: tuple[str, ...]) -> None:
    if not isinstance(model, LanguageModel):
        raise TypeError(f"few_shot: expected a model that predicts next tokens, such as a GPT, got {type(model).__name__}. A "
                        "classifier is asked by predict")
    model.require_head()
    if model.tokenizer is None or model.tokenizer.backward:
        raise ValueError("few_shot: the model needs a tokenizer that reads forwards. Set model.tokenizer")
    given = np.asarray([] if train.labels is None else train.labels)
    if train.labels is None or len(labels) < 2 or ((given < 0) | (given >= len(labels))).any():
        raise ValueError("few_shot: expected a labelled split and a name for each of its labels, at least two, got "
                         f"{train!r} and {str(list(labels)):.60}")
