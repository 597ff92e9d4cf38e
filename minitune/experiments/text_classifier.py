"""TextClassifier: texts and labels in, predictions out, by scikit-learn's protocol."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from ..data import ClassificationSet, Dataset, Split
from ..data.sources.splits import divide
from ..models import GPT, Classifier, from_pretrained
from ..train.evaluate import predict_proba
from .finetuning import DEFAULT_BASE, ENOUGH, Finetuning, finetune, model_folder


class TextClassifier:
    """Fine-tunes a small pre-trained model on texts and labels.

    `base` is the folder of a pre-trained model, or a GPT, or "minitune-base", a small one that comes with the package. The
    other settings are `Finetuning`'s; the share `valid` of the rows is held out to choose the epoch, where that makes 100
    rows; else the last epoch counts.
    Texts longer than the base's block_size are cut; `notes_` says how many were, of those it learned from.
    It works in scikit-learn's pipelines, cross-validation and searches, and needs no scikit-learn.
    """

    _estimator_type = "classifier"              # how scikit-learn before 1.6 knows

    def __init__(self, base: str | Path | GPT = DEFAULT_BASE, method: str = "full", epochs: int = 15,
                 lr: float | None = None, batch_size: int = 16, pooling: str | None = None, valid: float = 0.1, seed: int = 0,
                 progress: bool = False) -> None:
        self.base, self.method, self.epochs, self.lr, self.batch_size = base, method, epochs, lr, batch_size
        self.pooling, self.valid, self.seed, self.progress = pooling, valid, seed, progress

    def fit(self, X: Iterable[str], y: Iterable[Any]) -> TextClassifier:
        """Learns to tell the classes in `y`, strings or numbers, from the texts `X`. Returns itself.

        Raises ValueError for a text or label that is missing or none, with its row, for fewer than two classes, and for
        settings that cannot work.
        """
        texts = _texts(X)
        labels = _labels(y, len(texts))
        classes, numbers = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"TextClassifier: expected at least two classes in y, got only {classes.tolist()}")
        if not 0 <= self.valid < 1:
            raise ValueError(f"TextClassifier: valid must be a share of the rows, from 0 to below 1, got {self.valid}")
        settings = Finetuning(self.method, self.epochs, self.lr, self.batch_size, pooling=self.pooling, seed=self.seed)
        rows = Split(texts, numbers)
        held_out = self.valid * len(rows) >= ENOUGH
        splits = divide(rows, {"valid": self.valid}, self.seed) if held_out else {"train": rows}
        dataset = Dataset("texts", tuple(map(str, classes)), splits, citation="")
        made = finetune(dataset, self.base, settings, progress=self.progress)
        assert isinstance(made.model, Classifier)
        self.classes_, self.model_, self.history_, self.notes_ = classes, made.model, made.trainer.history, made.notes
        return self

    def predict_proba(self, X: Iterable[str]) -> np.ndarray:
        """The probability of each class for each text, (N, classes), in the order of `classes_`."""
        return predict_proba(self._fitted(), texts_as_set(self._fitted(), _texts(X)))

    def predict(self, X: Iterable[str]) -> np.ndarray:
        """The most likely class of each text."""
        most = self.predict_proba(X).argmax(1)
        return self.classes_[most]

    def score(self, X: Iterable[str], y: Iterable[Any]) -> float:
        """The share of texts that are put into their class."""
        texts = _texts(X)
        return float(np.mean(self.predict(texts) == _labels(y, len(texts))))

    def save(self, folder: str | Path) -> None:
        """Writes the model as a folder that `models.from_pretrained` reads."""
        self._fitted().save_pretrained(folder)

    def _fitted(self) -> Classifier:
        if not hasattr(self, "model_"):
            raise ValueError("TextClassifier: not fitted yet. Call fit(X, y) first")
        return self.model_

    @classmethod
    def load(cls, folder: str | Path) -> TextClassifier:
        """The classifier in a folder that `save` or `minitune finetune` wrote, ready to predict; its classes are texts.

        Raises ValueError where the folder holds another model.
        """
        model = from_pretrained(model_folder(folder))
        if not isinstance(model, Classifier):
            raise ValueError(f"TextClassifier.load: {folder} holds a {type(model).__name__} and no classifier")
        # a GPT's head has a bias where it was standardised, as it is by default
        default = isinstance(model.backbone, GPT) and model.pooling == "mean" and model.head.bias is not None
        loaded = cls(base=str(folder), pooling=None if default else model.pooling)
        loaded.model_, loaded.classes_ = model, np.array(model.labels)
        return loaded

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings, by name."""
        return {name: getattr(self, name) for name in signature(type(self)).parameters}

    def set_params(self, **settings: Any) -> TextClassifier:
        """Changes settings; raises ValueError for one that does not exist."""
        unknown = set(settings) - set(self.get_params())
        if unknown:
            raise ValueError(f"TextClassifier: no settings {sorted(unknown)}; there are {', '.join(self.get_params())}")
        for name, value in settings.items():
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks: a classifier of texts."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags
        return Tags(estimator_type="classifier", target_tags=TargetTags(required=True), classifier_tags=ClassifierTags(),
                    input_tags=InputTags(string=True, two_d_array=False))

    def __sklearn_is_fitted__(self) -> bool:
        """Whether `fit` was called."""
        return hasattr(self, "model_")

    def __repr__(self) -> str:
        default = {name: p.default for name, p in signature(type(self)).parameters.items()}
        given = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items() if value != default[name])
        return f"TextClassifier({given})"


def texts_as_set(model: Classifier, texts: list[str]) -> ClassificationSet:
    """Texts without labels as a set that `predict_proba` reads."""
    return ClassificationSet.from_split(Split(texts, np.zeros(len(texts), int)), model.tokenizer,       # type: ignore[arg-type]
                                        model.backbone.config.block_size, model.causal)


def _texts(X: Any) -> list[str]:
    """The texts as a list, or an error with the row of the first that is none."""
    if isinstance(X, (str, bytes)):
        raise ValueError("TextClassifier: expected a list of texts, got one text. Write [text]")
    if getattr(X, "ndim", 1) != 1:
        raise ValueError(f"TextClassifier: expected a list of texts, got shape {X.shape}. Give the column that holds them")
    texts = list(X)
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"TextClassifier: row {row}: expected a text that is not empty, got {text!r:.60}")
    if not texts:
        raise ValueError("TextClassifier: expected at least one text, got none")
    return texts


def _labels(y: Any, count: int) -> np.ndarray:
    """One label for each text as an array, or an error with the row of the first that is none."""
    labels = list(y)
    if len(labels) != count:
        raise ValueError(f"TextClassifier: expected one label for each of {count} texts, got {len(labels)}")
    for row, label in enumerate(labels):
        if not isinstance(label, (str, int, float, np.generic)) or label != label:
            raise ValueError(f"TextClassifier: row {row}: expected a string or a number as label, got {label!r:.60}")
        if isinstance(label, str) != isinstance(labels[0], str):
            raise ValueError(f"TextClassifier: row {row}: {label!r:.60} and {labels[0]!r:.60} are not labels of one kind")
    array = np.asarray(labels)
    if array.dtype.kind == "f" and (array != array.round()).any():
        raise ValueError(f"TextClassifier: labels name classes, got numbers such as {array[array != array.round()][0]}. Is "
                         "this a quantity to predict? Put it into classes first")
    return array
