"""Models: a file each, readable from top to bottom."""

from .classifier import Classifier
from .gpt import GPT, GPTConfig
from .loading import from_pretrained

__all__ = ["GPT", "Classifier", "GPTConfig", "from_pretrained"]
