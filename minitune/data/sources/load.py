"""`load`: a named data set, from the user's disk or else its official home, with fixed splits."""

from __future__ import annotations

import difflib
import json
import lzma
import os
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...formats.folder import write_text, write_together
from ..dataset import Dataset
from . import sets
from .download import download as fetch
from .packed import find_file
from .pydocs import load_pydocs


@dataclass(frozen=True)
class Source:
    """What a named data set is read from: its files, each plain or packed, and its home, if a checked one is known."""

    read: Callable[[Path], Dataset]
    files: tuple[str, ...]
    layout: str
    page: str
    home: str = ""
    checksums: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file of `home`."""
    convert: Callable[[Path], None] | None = None
    """Makes `files` of what was fetched."""


def load(name: str, folder: str | os.PathLike[str] | None = None, *, download: bool = True) -> Dataset:
    """The data set `name`, its splits and their order the same on every machine.

    Texts with labels: "ag_news_22k", "imdb", "pydocs", "sst2", "trec". Texts: "gutenberg", "tinyshakespeare",
    "wikitext2". Images with labels: "digits", "fashion_mnist", "mnist".

    "pydocs" is made from the running Python's own documentation, "digits" comes with scikit-learn; neither needs a file.
    The files of the others are looked for in `folder` when it is given, else in `$MINITUNE_DATA/<name>` (ag_news for
    "ag_news_22k"), else in the user's cache, `$XDG_CACHE_HOME/minitune/<name>` or `~/.cache/minitune/<name>`. What is found
    in neither and has an official home is downloaded into the cache, checked by its SHA-256, unless `download` is False.

    Raises ValueError for an unknown name and for a damaged file or row, FileNotFoundError when files are missing.

    >>> load("imbd")
    Traceback (most recent call last):
    ValueError: load: no data set named 'imbd'. Did you mean 'imdb'? There are: ag_news_22k, digits, fashion_mnist, gutenberg, \
imdb, mnist, pydocs, sst2, tinyshakespeare, trec, wikitext2.
    """
    if name in EMBEDDED:
        if folder is not None:
            raise ValueError(f"load({name!r}): reads what is installed with Python, got {folder=}. Leave it out.")
        return EMBEDDED[name]()
    if name not in SOURCES:
        names = sorted([*SOURCES, *EMBEDDED])
        near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"load: no data set named {name!r}.{hint} There are: {', '.join(names)}.")
    source = SOURCES[name]
    return source.read(_find_folder("ag_news" if name == "ag_news_22k" else name, source, folder, download))


def cache_folder() -> Path:
    """Where the user's system keeps what can be made or fetched again: $XDG_CACHE_HOME/minitune, else ~/.cache/minitune."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minitune"


def _find_folder(name: str, source: Source, folder: str | os.PathLike[str] | None, download: bool) -> Path:
    """The folder with every file of the set, fetched if need be, or FileNotFoundError with the layout wanted."""
    variable = os.environ.get("MINITUNE_DATA")
    cache = cache_folder() / name
    places = [Path(folder)] if folder is not None else [*([Path(variable) / name] if variable else []), cache]
    for place in places:
        if all(find_file(place, file) for file in source.files):
            return place
    problem, cause = "", None
    if download and source.home and folder is None:
        try:
            _fetch(source, cache)
            return cache
        except OSError as error:
            problem, cause = f" The download failed: {error}", error
    raise FileNotFoundError(
        f"load: the files of {name} are missing; looked in {' and '.join(map(str, places))}.{problem} Set MINITUNE_DATA to a "
        f"folder with {', '.join(f'{name}/{file}' for file in source.files)}, each plain or packed as .xz or .gz: "
        f"{source.layout}. The official page: {source.page}"
    ) from cause


def _fetch(source: Source, folder: Path) -> None:
    for file, checksum in source.checksums.items():
        fetch(source.home + file, folder / file, sha256=checksum)
    if source.convert is not None:
        source.convert(folder)


ARCHIVE = "aclImdb_v1.tar.gz"
REVIEW = re.compile(r"aclImdb/(train|test)/(neg|pos|unsup)/(\d+)_\d+\.txt")
LABELS = {"neg": 0, "pos": 1, "unsup": None}
IMDB_ROWS = {       # SHA-256 of the unpacked files that the official archive gives
    "train": "06ddcc0d7acb0102ac52832385dd4725d53b76b41c9beffb2f21cdac1420c8c9",
    "test": "b57f30936c08901b80b32d698af25440a443d6525ce05a54dd7da9981c04e47a",
    "unsup": "11092cdb5002fd5714c36717eed72aa810ffc54f7147929e28f048e2ed6e9294",
}


def _convert_imdb(folder: Path) -> None:
    """From the archive, one file a review, to JSON lines: negatives by id, then positives by id; removes the archive."""
    reviews: dict[str, dict[Any, str]] = {name: {} for name in IMDB_ROWS}
    with tarfile.open(folder / ARCHIVE) as archive:
        for member in tqdm(archive, desc="imdb: unpacking", unit=" files"):
            if found := REVIEW.fullmatch(member.name):
                part, kind, number = found.groups()
                text = archive.extractfile(member).read().decode()      # type: ignore[union-attr]
                reviews["unsup" if kind == "unsup" else part][LABELS[kind], int(number)] = text
    rows = {name: "".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n"
                          for (label, _), text in sorted(texts.items())).encode() for name, texts in reviews.items()}
    for name, content in rows.items():
        if sha256(content).hexdigest() != IMDB_ROWS[name]:
            raise ValueError(f"load: {folder / ARCHIVE} gives other {name} reviews, {len(reviews[name]):,}, than the official "
                             f"ones: expected SHA-256 {IMDB_ROWS[name]}, got {sha256(content).hexdigest()}. Please report it.")
    write_together({folder / f"{name}.jsonl.xz": partial(_pack, content) for name, content in rows.items()})
    write_text(folder / "labels.txt", "negative\npositive\n")
    (folder / ARCHIVE).unlink()


def _pack(content: bytes, file: Path) -> None:
    file.write_bytes(lzma.compress(content, preset=1))


ROWS = 'labels.txt names label 0, 1, ... one a line, the others are JSON lines {"text": str, "label": int or null}'
IMAGES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
GITHUB = "https://raw.githubusercontent.com/"
EMBEDDED: dict[str, Callable[[], Dataset]] = {"digits": sets.digits, "pydocs": load_pydocs}
# Checksums of .gz files are those published in TensorFlow Datasets, url_checksums/{fashion_mnist,imdb_reviews,mnist}.txt.
SOURCES = {
    "ag_news_22k": Source(
        sets.ag_news_22k, ("labels.txt", "train_subset.jsonl", "train_desc_only.jsonl", "test.jsonl"), ROWS,
        "https://github.com/mhjabreel/CharCnn_Keras/tree/master/data/ag_news_csv"),
    "fashion_mnist": Source(
        sets.fashion_mnist, IMAGES, "the official IDX files", "https://github.com/zalandoresearch/fashion-mnist",
        GITHUB + "zalandoresearch/fashion-mnist/master/data/fashion/", {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"}),
    "gutenberg": Source(
        sets.gutenberg, ("train.jsonl", "valid.jsonl"), 'JSON lines {"title": str, "text": str}, one a book',
        "https://www.gutenberg.org/"),
    "imdb": Source(
        sets.imdb, ("labels.txt", "train.jsonl", "test.jsonl", "unsup.jsonl"), ROWS,
        "https://ai.stanford.edu/~amaas/data/sentiment/", "https://ai.stanford.edu/~amaas/data/sentiment/",
        {ARCHIVE: "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"}, _convert_imdb),
    "mnist": Source(
        sets.mnist, IMAGES, "the official IDX files", "http://yann.lecun.com/exdb/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/", {     # the PyTorch project's mirror, as in torchvision
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"}),
    "sst2": Source(
        sets.sst2, ("labels.txt", "sent_train.jsonl", "sent_dev.jsonl", "sent_test.jsonl", "glue_train.jsonl"), ROWS,
        "https://nlp.stanford.edu/sentiment/"),
    "tinyshakespeare": Source(
        sets.tinyshakespeare, ("input.txt",), "the official UTF-8 text",
        "https://github.com/karpathy/char-rnn/tree/master/data/tinyshakespeare",
        GITHUB + "karpathy/char-rnn/master/data/tinyshakespeare/",
        {"input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"}),
    "trec": Source(
        sets.trec, ("labels.txt", "train.jsonl", "test.jsonl"), ROWS, "https://cogcomp.seas.upenn.edu/Data/QA/QC/"),
    "wikitext2": Source(
        sets.wikitext2, ("train.txt", "valid.txt", "test.txt"), "the tokenised UTF-8 texts, with <unk>",
        "https://github.com/pytorch/examples/tree/main/word_language_model/data/wikitext-2",
        GITHUB + "pytorch/examples/main/word_language_model/data/wikitext-2/", {
            "train.txt": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
            "valid.txt": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            "test.txt": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"}),
}
