"""Training and evaluation."""

from .average import WeightAverage
from .callbacks import TensorBoard, Unfreeze
from .checkpoint import remove_checkpoints
from .evaluate import evaluate, predict, predict_proba
from .history import History
from .lr_find import RateFinding, RateSweep, lr_find, sweep
from .metrics import ClassificationMetrics, classification_metrics
from .trainer import Callback, Trainer

__all__ = ["Callback", "ClassificationMetrics", "History", "RateFinding", "RateSweep", "TensorBoard", "Trainer", "Unfreeze",
           "WeightAverage", "classification_metrics", "evaluate", "lr_find", "predict", "predict_proba", "remove_checkpoints",
           "sweep"]
