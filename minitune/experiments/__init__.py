"""Experiments: a call each, that returns an object with a table, a plot and JSON."""

from .few_shot import FewShot, FewShotPredictions, few_shot
from .finetuning import Finetuned, Finetuning, finetune
from .pretraining import Pretraining, pretrain
from .recipe import LanguageModelStage, Recipe
from .reproduction import Reproduction, reproduce
from .results import Results
from .sample_efficiency import METHODS, ULMFIT, Protocol, sample_efficiency
from .text_classifier import TextClassifier
from .ulmfit import Labels, ULMFiT, ulmfit
from .ulmfit_tables import SCALES, Scale

__all__ = ["METHODS", "SCALES", "ULMFIT", "FewShot", "FewShotPredictions", "Finetuned", "Finetuning", "Labels",
           "LanguageModelStage", "Pretraining", "Protocol", "Recipe", "Reproduction", "Results", "Scale", "TextClassifier",
           "ULMFiT", "few_shot", "finetune", "pretrain", "reproduce", "sample_efficiency", "ulmfit"]
