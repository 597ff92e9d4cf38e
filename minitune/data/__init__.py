"""Texts, tokens and batches."""

from .batch import Batch, ClassificationSet, LanguageModelSet
from .dataset import Dataset, Split, nested_subsets
from .load import load
from .tokenizer import Tokenizer

__all__ = ["Batch", "ClassificationSet", "Dataset", "LanguageModelSet", "Split", "Tokenizer", "load",
           "nested_subsets"]
