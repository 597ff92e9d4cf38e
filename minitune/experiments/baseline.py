"""The plain baseline: TF-IDF features and logistic regression, which any transfer must be measured against."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

STRENGTHS = (1.0, 10.0, 100.0)      # inverse regularisation, chosen on the validation set


class Baseline(NamedTuple):
    """What `tfidf` found: predicted classes of the test texts, the validation error and the number of weights."""

    predictions: np.ndarray
    valid_error: float
    parameters: int


def require_scikit_learn() -> None:
    """Loads scikit-learn. Raises ImportError with the repair where it is not installed."""
    try:
        import sklearn.feature_extraction.text
        import sklearn.linear_model  # noqa: F401
    except ImportError as missing:
        raise ImportError('the plain baseline needs scikit-learn: pip install "minitune[demo]", or leave it out with '
                          "baseline=False") from missing


def tfidf(train: list[str], train_labels: np.ndarray, valid: list[str], valid_labels: np.ndarray,
          test: list[str], weighted_by: list[str] | None = None) -> Baseline:
    """Logistic regression on TF-IDF of words and word pairs, the regularisation chosen on the validation texts.

    Which words are rare is counted in the texts `weighted_by`, which need no labels; None: in those of `train`.
    Raises ImportError where scikit-learn is not installed.
    """
    require_scikit_learn()
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    features = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), dtype=np.float32)
    features.fit(train if weighted_by is None else weighted_by)
    rows, valid_rows = features.transform(train), features.transform(valid)
    fitted = [LogisticRegression(C=strength, max_iter=1000).fit(rows, train_labels) for strength in STRENGTHS]
    errors = [float((model.predict(valid_rows) != valid_labels).mean()) for model in fitted]
    best = fitted[int(np.argmin(errors))]
    return Baseline(best.predict(features.transform(test)), min(errors), best.coef_.size + best.intercept_.size)
