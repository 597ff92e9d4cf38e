"""Experiments: a call each, that returns an object with a table, a plot and JSON."""

from .calibration import Rates, calibrate
from .compare import compare
from .comparison import Comparison
from .few_shot import FewShot, FewShotPredictions, few_shot
from .finetuning import Finetuned, Finetuning, finetune
from .lens import Change, Lens, lens, subspace_similarity
from .plan import Measured, Plan, plan
from .pretraining import Pretraining, pretrain
from .recipe import LanguageModelStage, Recipe
from .reproduction import Reproduction, reproduce
from .results import Results
from .sample_efficiency import METHODS, ULMFIT, Protocol, sample_efficiency
from .text_classifier import TextClassifier
from .tuning_methods import LoRAPlus
from .ulmfit import Labels, ULMFiT, ulmfit
from .ulmfit_tables import SCALES, Scale

__all__ = ["METHODS", "SCALES", "ULMFIT", "Change", "Comparison", "FewShot", "FewShotPredictions", "Finetuned",
           "Finetuning", "Labels", "LanguageModelStage", "Lens", "LoRAPlus", "Measured", "Plan", "Pretraining", "Protocol",
           "Rates", "Recipe", "Reproduction", "Results", "Scale", "TextClassifier", "ULMFiT", "calibrate", "compare",
           "few_shot", "finetune", "lens", "plan", "pretrain", "reproduce", "sample_efficiency", "subspace_similarity",
           "ulmfit"]
