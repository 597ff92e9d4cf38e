"""Training and evaluation."""

from .average import WeightAverage
from .callbacks import Callback, TensorBoard
from .checkpoint import remove_checkpoints
from .evaluate import evaluate, predict, predict_proba
from .history import History
from .metrics import ClassificationMetrics, classification_metrics
from .trainer import Trainer

__all__ = ["Callback", "ClassificationMetrics", "History", "TensorBoard", "Trainer", "WeightAverage",
           "classification_metrics", "evaluate", "predict", "predict_proba", "remove_checkpoints"]
