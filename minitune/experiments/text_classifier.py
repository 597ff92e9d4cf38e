"""TextClassifier: texts and labels in, predictions out, by scikit-learn's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Dataset, Split
from ..data.sources.splits import divide
from ..models import GPT, Classifier
from ..train.evaluate import predict_proba
from .finetuning import Finetuning, as_set, finetune
from .pretraining import default_base


class TextClassifier:
    """Fine-tunes a small pre-trained model on texts and labels.

    `base` is the folder of a pre-trained model, or a GPT; None means a small one that is pre-trained on the English that
    comes with Python, once, in a minute or two, and kept in the user's cache. The other settings are those of `Finetuning`;
    the share `valid` of the rows is held out to choose the epoch (0: none, and the last epoch counts).
    It works in scikit-learn's pipelines, cross-validation and searches, and needs no scikit-learn.
    """

    def __init__(self, base: str | Path | GPT | None = None, method: str = "full", epochs: int = 10, lr: float | None = None,
                 batch_size: int = 16, pooling: str = "mean", valid: float = 0.1, seed: int = 0, progress: bool = False) -> None:
        self.base, self.method, self.epochs, self.lr, self.batch_size = base, method, epochs, lr, batch_size
        self.pooling, self.valid, self.seed, self.progress = pooling, valid, seed, progress

    def fit(self, X: Sequence[str], y: Sequence[Any]) -> TextClassifier:
        """Learns to tell the classes in `y`, strings or numbers, from the texts `X`. Returns itself.

        Raises ValueError for texts that are empty or no texts, with their row, and for fewer than two classes.
        """
        texts, labels = _texts(X), np.asarray(y)
        if labels.shape != (len(texts),):
            raise ValueError(f"TextClassifier.fit: expected one label for each of {len(texts)} texts, got {labels.shape}")
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"TextClassifier.fit: expected at least two classes in y, got only {self.classes_.tolist()}")
        rows = Split(texts, numbers.astype(np.int64))
        splits = divide(rows, {"valid": self.valid}, self.seed) if self.valid else {"train": rows}
        dataset = Dataset("texts", tuple(map(str, self.classes_)), splits, citation="")
        settings = Finetuning(self.method, self.epochs, self.lr, self.batch_size, pooling=self.pooling, seed=self.seed)
        base = default_base(self.progress) if self.base is None else self.base
        made = finetune(dataset, base, settings, progress=self.progress)
        assert isinstance(made.model, Classifier)
        self.model_, self.history_, self.notes_ = made.model, made.trainer.history, made.notes
        return self

    def predict_proba(self, X: Sequence[str]) -> np.ndarray:
        """The probability of each class for each text, (N, classes), in the order of `classes_`."""
        if not hasattr(self, "model_"):
            raise ValueError("TextClassifier: not fitted yet. Call fit(X, y) first")
        return predict_proba(self.model_, texts_as_set(self.model_, _texts(X)))

    def predict(self, X: Sequence[str]) -> np.ndarray:
        """The most likely class of each text."""
        most = self.predict_proba(X).argmax(1)
        return self.classes_[most]

    def score(self, X: Sequence[str], y: Sequence[Any]) -> float:
        """The share of texts that are put into their class."""
        return float(np.mean(self.predict(X) == np.asarray(y)))

    def save(self, folder: str | Path) -> None:
        """Writes the model as a folder that `models.from_pretrained` reads."""
        self.model_.save_pretrained(folder)

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


def texts_as_set(model: Classifier, texts: list[str]) -> Any:
    """Texts without labels as a set that `predict_proba` reads."""
    gpt = model.backbone
    return as_set(Split(texts, np.zeros(len(texts), np.int64)), "classification", model.tokenizer,   # type: ignore[arg-type]
                  gpt.config.block_size)                                                             # type: ignore[attr-defined]


def _texts(X: Any) -> list[str]:
    """The texts as a list, or an error with the row of the first that is none."""
    if isinstance(X, (str, bytes)):
        raise ValueError("TextClassifier: expected a list of texts, got one text. Write [text]")
    texts = list(X)
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"TextClassifier: row {row}: expected a text that is not empty, got {text!r:.60}")
    if not texts:
        raise ValueError("TextClassifier: expected at least one text, got none")
    return texts
