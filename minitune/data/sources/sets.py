"""The named data sets: for each, what its files hold becomes splits that are the same on every machine.

No text that valid or test holds is in train or in `unlabelled`; test is the official one, repetitions included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..dataset import Dataset, Split, nested_subsets
from ..images import ImageSplit
from .packed import read_books, read_images, read_labelled, read_names, read_text, read_unlabelled

VALID_ROWS = 1_000
VALID_IMAGES = 5_000
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
AnySplit = TypeVar("AnySplit", Split, ImageSplit)


def ag_news_22k(folder: Path) -> Dataset:
    """AG News, 22k-example training subset: never to be reported as the usual setting of 120,000 training examples.

    `valid` is 1,000 rows taken from the training subset; `unlabelled` is `train` and 14,065 further descriptions.
    """
    labels = read_names(folder)
    train, descriptions, test = (read_labelled(folder, f"{name}.jsonl", len(labels))
                                 for name in ("train_subset", "train_desc_only", "test"))
    train, valid = take_valid(shuffled(train), VALID_ROWS)
    splits = {"train": train, "valid": valid, "test": shuffled(test)}
    splits["unlabelled"] = shuffled(Split(descriptions.texts + train.texts))
    return Dataset(
        "ag_news_22k", labels, splits,
        citation="A. Gulli's AG corpus of news articles; task and split by Zhang, Zhao, LeCun 2015, Character-level "
                 "Convolutional Networks for Text Classification. A subset of 22,273 of the 120,000 training examples.")


def imdb(folder: Path) -> Dataset:
    """The Large Movie Review Dataset; `unlabelled` is its 50,000 unlabelled reviews, which may repeat `train`.

    `valid` is 1,000 rows of the official train.
    """
    labels = read_names(folder)
    official, test = (read_labelled(folder, f"{name}.jsonl", len(labels)) for name in ("train", "test"))
    reviews = read_unlabelled(folder, "unsup.jsonl")
    kept = without(official, test.texts)
    train, valid = take_valid(shuffled(kept), VALID_ROWS)
    unlabelled = without(reviews, test.texts + valid.texts)
    return Dataset(
        "imdb", labels, {"train": train, "valid": valid, "test": shuffled(test), "unlabelled": shuffled(unlabelled)},
        citation="Maas et al. 2011, Learning Word Vectors for Sentiment Analysis (Large Movie Review Dataset v1.0).",
        notes=(left_out(official, kept, "train", "test"), left_out(reviews, unlabelled, "unlabelled", "valid or test")))


def trec(folder: Path) -> Dataset:
    """TREC question classification, six coarse classes, uneven in size: ABBR has fewer than 90 rows.

    `valid` is 500 random rows of the official train, its classes as uneven; `unlabelled` is `train`.
    """
    labels = read_names(folder)
    official, test = (read_labelled(folder, f"{name}.jsonl", len(labels)) for name in ("train", "test"))
    kept = without(official, test.texts)
    rows, cut = shuffled(kept), VALID_ROWS // 2
    train, valid = rows.subset(range(cut, len(rows))), rows.subset(range(cut))
    return Dataset(
        "trec", labels, {"train": train, "valid": valid, "test": shuffled(test), "unlabelled": Split(train.texts)},
        citation="Li and Roth 2002, Learning Question Classifiers.",
        notes=(left_out(official, kept, "train", "test"),))


def sst2(folder: Path) -> Dataset:
    """The Stanford Sentiment Treebank, binary, sentence level: the official train, dev and test sentences.

    `phrases` is GLUE's training file, labelled: the training sentences and fragments of them. None equals a sentence of
    valid or test; short ones ("a good film") do stand inside such sentences. `unlabelled` is the sentences of `train`
    alone, as fragments add no text.
    """
    labels = read_names(folder)
    official, valid, test, glue = (read_labelled(folder, f"{name}.jsonl", len(labels))
                                   for name in ("sent_train", "sent_dev", "sent_test", "glue_train"))
    train, phrases = (without(split, test.texts + valid.texts) for split in (official, glue))
    splits = {"train": shuffled(train), "valid": shuffled(valid), "test": shuffled(test), "phrases": shuffled(phrases)}
    splits["unlabelled"] = Split(splits["train"].texts)
    return Dataset(
        "sst2", labels, splits,
        citation="Socher et al. 2013, Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank; "
                 "phrases as in Wang et al. 2018, GLUE.",
        notes=(left_out(official, train, "train", "valid or test"), left_out(glue, phrases, "phrases", "valid or test")))


def wikitext2(folder: Path) -> Dataset:
    """WikiText-2, tokenised, with <unk> for rare words: one text an article; joined, a split's texts are its file."""
    return Dataset(
        "wikitext2", (), {name: Split(articles(read_text(folder, f"{name}.txt"))) for name in ("train", "valid", "test")},
        citation="Merity et al. 2016, Pointer Sentinel Mixture Models (WikiText-2). Text from Wikipedia, CC BY-SA 3.0.",
        kind="text")


def articles(text: str) -> list[str]:
    """The text cut before the blank line above each article's title, " = Title = "; sections have more signs.

    >>> articles(" \\n = A = \\n \\n Text . \\n \\n = = Part = = \\n \\n \\n = B = \\n \\n")
    [' \\n = A = \\n \\n Text . \\n \\n = = Part = = \\n \\n', ' \\n = B = \\n \\n']
    """
    titles = [title.start() for title in re.finditer(r"(?m)^ \n(?= = [^=\n].* = \n \n)", text)]
    starts = [0, *titles[1:], len(text)]
    return [text[start:end] for start, end in zip(starts, starts[1:])]


def tinyshakespeare(folder: Path) -> Dataset:
    """1.1 million characters of Shakespeare: the first 90 % train, the last 10 % valid, one text each."""
    text = read_text(folder, "input.txt")
    cut = len(text) * 9 // 10
    return Dataset(
        "tinyshakespeare", (), {"train": Split([text[:cut]]), "valid": Split([text[cut:]])},
        citation="Karpathy 2015, The Unreasonable Effectiveness of Recurrent Neural Networks; plays of William Shakespeare.",
        kind="text")


def gutenberg(folder: Path) -> Dataset:
    """180 English prose books of Project Gutenberg, for pre-training: one text a book, its title as group.

    A title of valid is not in train, be it another translation. No published benchmark.
    """
    valid = read_books(folder, "valid.jsonl")
    books = read_books(folder, "train.jsonl")
    assert books.groups and valid.groups
    train = books.subset([row for row, title in enumerate(books.groups) if title not in valid.groups])
    return Dataset(
        "gutenberg", (), {"train": train, "valid": valid},
        citation="Project Gutenberg, https://www.gutenberg.org/; the texts are in the public domain in the USA.",
        kind="text", notes=(f"{len(books) - len(train)} of {len(books)} books left train, as their titles are in valid.",))


def mnist(folder: Path) -> Dataset:
    """MNIST: handwritten digits, 28 x 28; `valid` is 5,000 images of the official train, 500 a class."""
    return _images("mnist", tuple("0123456789"), folder, "LeCun, Cortes, Burges, The MNIST Database of Handwritten Digits; "
                   "LeCun et al. 1998, Gradient-Based Learning Applied to Document Recognition.")


def fashion_mnist(folder: Path) -> Dataset:
    """Fashion-MNIST: articles of clothing, 28 x 28; `valid` is 5,000 images of the official train, 500 a class."""
    return _images("fashion_mnist", FASHION, folder, "Xiao, Rasul, Vollgraf 2017, Fashion-MNIST: a Novel Image Dataset for "
                   "Benchmarking Machine Learning Algorithms.")


def digits() -> Dataset:
    """Handwritten digits, 8 x 8, which come with scikit-learn: 1,797 images by 13 writers, who are in every split.

    The images are the test split of the original set; these splits are minitune's own, balanced: test 400, valid 200.
    Raises ImportError where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as missing:
        raise ImportError('load: "digits" comes with scikit-learn: pip install "minitune[demo]"') from missing
    found = load_digits()                                       # 0 to 16 as float64
    whole = ImageSplit((found.images * 255 / 16).round().astype(np.uint8), found.target.astype(np.int64))
    rest, test = take_valid(whole, 400)
    train, valid = take_valid(rest, 200)
    return Dataset("digits", tuple("0123456789"), {"train": train, "valid": valid, "test": test}, kind="images",
                   citation="Alpaydin, Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning "
                            "Repository; Pedregosa et al. 2011, Scikit-learn.")


def _images(name: str, labels: tuple[str, ...], folder: Path, citation: str) -> Dataset:
    train, valid = take_valid(read_images(folder, "train", len(labels)), VALID_IMAGES)
    test = read_images(folder, "t10k", len(labels))
    return Dataset(name, labels, {"train": train, "valid": valid, "test": test}, citation, kind="images")


def shuffled(split: Split) -> Split:
    """The rows in an order that is random and always the same: the files are sorted by label or source."""
    return split.subset(np.random.Generator(np.random.PCG64(0)).permutation(len(split)))


def without(split: Split, texts: Sequence[str]) -> Split:
    """The rows whose text is neither in `texts` nor earlier in the split."""
    seen = set(texts)
    rows = []
    for row, text in enumerate(split.texts):
        if text not in seen:
            seen.add(text)
            rows.append(row)
    return split.subset(rows)


def left_out(before: Split, after: Split, name: str, others: str) -> str:
    """The note on what `without` took out."""
    return f"{len(before) - len(after):,} of {len(before):,} texts left {name}: repeated, or in {others} too."


def take_valid(split: AnySplit, size: int) -> tuple[AnySplit, AnySplit]:
    """Takes a class-balanced validation split of `size` rows, always the same, out of the rest, train."""
    assert split.labels is not None
    rows = nested_subsets(split.labels, [size], seed=0)[size]
    return split.subset(np.setdiff1d(np.arange(len(split)), rows)), split.subset(rows)
