"""minitune: transfer learning from scratch, on NumPy and CUDA. Read docs/00_reading_order.md first."""

__version__ = "0.1.0"

from . import data, experiments, models, nn, ops, optim, show, train, tune
from . import operators as operators  # gives Tensor its operators
from .backend import KernelFallback, emulated_gpu, kernels, random, seed
from .experiments import TextClassifier
from .gradcheck import gradcheck
from .tensor import Tensor, detect_anomaly, no_grad

__all__ = ["KernelFallback", "Tensor", "TextClassifier", "data", "detect_anomaly", "emulated_gpu", "experiments", "gradcheck",
           "kernels", "models", "nn", "no_grad", "ops", "optim", "random", "seed", "show", "train", "tune"]
