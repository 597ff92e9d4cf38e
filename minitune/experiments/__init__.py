"""Experiments: a call each, that returns an object with a table, a plot and JSON."""

from .pretraining import Pretraining, pretrain
from .results import Results
from .sample_efficiency import METHODS, Protocol, sample_efficiency

__all__ = ["METHODS", "Pretraining", "Protocol", "Results", "pretrain", "sample_efficiency"]
