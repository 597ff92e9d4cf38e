"""minitune: transfer learning from scratch, on NumPy and CUDA. Read docs/00_reading_order.md first."""

__version__ = "0.1.0"

from . import data, experiments, models, nn, ops, optim, train, tune
from . import operators as operators  # gives Tensor its operators
from .backend import KernelFallback, kernels, random, seed
from .gradcheck import gradcheck
from .tensor import Tensor, no_grad

__all__ = ["KernelFallback", "Tensor", "data", "experiments", "gradcheck", "kernels", "models", "nn", "no_grad", "ops", "optim",
           "random", "seed", "train", "tune"]
