"""Texts, tokens and batches."""

from .batch import Batch, ClassificationSet, LanguageModelSet
from .dataset import Dataset, Split, nested_subsets
from .example import Example, chat_prompt
from .example_set import ExampleSet
from .image_set import Augmentation, ImageBatch, ImageSet
from .images import ImageSplit
from .labelled_sets import LongTextSet, MultipleChoiceSet, TokenClassificationSet
from .masking import MaskedSet, NextSentenceSet, mask_tokens
from .sources import load, read
from .sources.overlap import Overlap, overlap
from .tokenizer import Tokenizer

__all__ = ["Augmentation", "Batch", "ClassificationSet", "Dataset", "Example", "ExampleSet", "ImageBatch", "ImageSet",
           "ImageSplit", "LanguageModelSet", "LongTextSet", "MaskedSet", "MultipleChoiceSet", "NextSentenceSet", "Overlap",
           "Split", "TokenClassificationSet", "Tokenizer", "chat_prompt", "load", "mask_tokens", "nested_subsets", "overlap",
           "read"]
