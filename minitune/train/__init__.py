"""Training and evaluation."""

from .average import WeightAverage
from .callbacks import TensorBoard
from .checkpoint import remove_checkpoints
from .evaluate import evaluate, predict, predict_proba
from .history import History
from .metrics import ClassificationMetrics, classification_metrics
from .trainer import Callback, Trainer

__all__ = ["Callback", "ClassificationMetrics", "History", "TensorBoard", "Trainer", "WeightAverage",
           "classification_metrics", "evaluate", "predict", "predict_proba", "remove_checkpoints"]
