"""Experiments: a call each, that returns an object with a table, a plot and JSON."""

from .finetuning import Finetuned, Finetuning, finetune
from .pretraining import Pretraining, default_base, pretrain
from .results import Results
from .sample_efficiency import METHODS, Protocol, sample_efficiency
from .text_classifier import TextClassifier

__all__ = ["METHODS", "Finetuned", "Finetuning", "Pretraining", "Protocol", "Results", "TextClassifier", "default_base",
           "finetune", "pretrain", "sample_efficiency"]
