"""Experiments: a call each, that returns an object with a table, a plot and JSON."""

from .finetuning import Finetuned, Finetuning, finetune
from .pretraining import Pretraining, pretrain
from .recipe import LanguageModelStage, Recipe
from .results import Results
from .sample_efficiency import METHODS, ULMFIT, Protocol, sample_efficiency
from .text_classifier import TextClassifier
from .ulmfit import ULMFiT, ulmfit

__all__ = ["METHODS", "ULMFIT", "Finetuned", "Finetuning", "LanguageModelStage", "Pretraining", "Protocol", "Recipe", "Results",
           "TextClassifier", "finetune", "pretrain", "sample_efficiency"]
