"""Training and evaluation."""

from .evaluate import evaluate, predict
from .history import History
from .trainer import Trainer

__all__ = ["History", "Trainer", "evaluate", "predict"]
