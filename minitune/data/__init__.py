"""Texts, tokens and batches."""

from .batch import Batch, ClassificationSet, LanguageModelSet
from .dataset import Dataset, Split, nested_subsets
from .example import Example, chat_prompt
from .example_set import ExampleSet
from .images import ImageSplit
from .sources import load, read
from .tokenizer import Tokenizer

__all__ = ["Batch", "ClassificationSet", "Dataset", "Example", "ExampleSet", "ImageSplit", "LanguageModelSet", "Split",
           "Tokenizer", "chat_prompt", "load", "nested_subsets", "read"]
