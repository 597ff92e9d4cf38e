"""load, Dataset and nested_subsets, on small files in the layout of the real ones."""

import importlib
import json
import lzma
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from minitune.data.dataset import Dataset, Split, nested_subsets
from minitune.data.load import load

module = importlib.import_module("minitune.data.load")  # the package exports the function under this name


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(file, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """$MINITUNE_DATA with a small "ag_news" and "imdb", label-sorted; validation splits of 8 rows."""
    names = ["World", "Sports", "Business", "Sci/Tech"]
    news = [(f"{name} article {i}", label) for label, name in enumerate(names) for i in range(10)]
    write(tmp_path / "ag_news/train_subset.jsonl.xz", news)
    write(tmp_path / "ag_news/train_desc_only.jsonl.xz", [(f"description {i}", i % 4) for i in range(6)])
    write(tmp_path / "ag_news/test.jsonl.xz", [(f"test {name}", label) for label, name in enumerate(names)])
    (tmp_path / "ag_news/labels.txt").write_text("\n".join(names) + "\n")
    reviews = [(f"{word} film {i}", label) for label, word in enumerate(["bad", "good"]) for i in range(20)]
    write(tmp_path / "imdb/train.jsonl.xz", [*reviews, ("good film 1", 1), ("in both", 1)])
    write(tmp_path / "imdb/test.jsonl.xz", [("dull", 0), ("in both", 1), ("seen before", 1)])
    write(
        tmp_path / "imdb/unsup.jsonl.xz", [(t, None) for t in ["seen before", "some film", "some film", "bad film 3"]]
    )
    (tmp_path / "imdb/labels.txt").write_text("negative\npositive\n")
    monkeypatch.setenv("MINITUNE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "VALID_ROWS", 8)
    return tmp_path


def test_ag_news(data):
    news = load("ag_news_22k")
    assert news.labels == ("World", "Sports", "Business", "Sci/Tech")
    assert (len(news.train), len(news.valid), len(news.test), len(news.unlabelled)) == (32, 8, 4, 38)
    assert np.bincount(news.valid.labels).tolist() == [2, 2, 2, 2]
    assert not set(news.valid.texts) & {*news.train.texts, *news.unlabelled.texts}
    assert set(news.train.texts) < set(news.unlabelled.texts)
    assert news.train.labels.dtype == np.int64 and news.unlabelled.labels is None
    for text, label in zip(news.train.texts, news.train.labels, strict=True):
        assert text.startswith(news.labels[label])
    assert news.train.labels.tolist() != sorted(news.train.labels)
    assert load("ag_news_22k").train.texts == news.train.texts


def test_imdb_keeps_splits_apart(data):
    films = load("imdb")
    assert films.test.labels.sum() == 2 and len(films.test) == 3
    assert np.bincount(films.valid.labels).tolist() == [4, 4]
    labelled = films.train.texts + films.valid.texts
    assert len(labelled) == len(set(labelled)) == 40 and "in both" not in labelled
    assert not set(films.unlabelled.texts) & {*films.test.texts, *films.valid.texts}
    assert Counter(films.unlabelled.texts)["some film"] == 1


def test_fingerprint_covers_every_text_and_label(data):
    before = load("imdb").fingerprint
    assert len(before) == 16 and load("imdb").fingerprint == before
    write(data / "imdb/test.jsonl.xz", [("dull", 1), ("in both", 1), ("seen before", 1)])
    assert load("imdb").fingerprint != before
    write(data / "imdb/test.jsonl.xz", [("dull.", 0), ("in both", 1), ("seen before", 1)])
    assert load("imdb").fingerprint != before
    pair = [Dataset("a", (), {"train": Split(texts)}, "") for texts in (["ab", "c"], ["a", "bc"])]
    assert pair[0].fingerprint != pair[1].fingerprint


def test_where_files_are_looked_for(data, monkeypatch):
    expected = load("imdb").fingerprint
    assert load("imdb", folder=data / "imdb").fingerprint == expected
    os.renames(data / "imdb", data / "cache/minitune/imdb")
    assert load("imdb").fingerprint == expected
    monkeypatch.delenv("MINITUNE_DATA")
    assert load("imdb").fingerprint == expected


def test_missing_files_name_variable_layout_and_page(data):
    (data / "imdb/unsup.jsonl.xz").unlink()
    with pytest.raises(FileNotFoundError, match=r"MINITUNE_DATA.*imdb/unsup\.jsonl\.xz.*https://ai\.stanford\.edu"):
        load("imdb")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load("imdb", folder="nowhere")


def test_unknown_name():
    with pytest.raises(ValueError, match="Did you mean 'ag_news_22k'"):
        load("ag_news")
    with pytest.raises(ValueError, match="There are: ag_news_22k, imdb, pydocs"):
        load("qqq")
    with pytest.raises(ValueError, match="Leave it out"):
        load("pydocs", folder="somewhere")


@pytest.mark.parametrize(
    "line", ["", "{", "[1]", '{"text": "a"}', '{"text": 1, "label": 0}', '{"text": "a", "label": 2}',
             '{"text": "a", "label": true}', '{"text": "a", "label": null}', '{"text": "a", "label": -1}'],
)  # fmt: skip
def test_a_malformed_row_is_named(data, line):
    with lzma.open(data / "imdb/test.jsonl.xz", "wt") as lines:
        lines.write('{"text": "fine", "label": 0}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"test\.jsonl\.xz, row 2: expected.*0 \.\. 1"):
        load("imdb")


def test_a_label_in_unlabelled_rows_is_named(data):
    write(data / "imdb/unsup.jsonl.xz", [("a", 1)])
    with pytest.raises(ValueError, match=r"unsup\.jsonl\.xz, row 1: expected.*null"):
        load("imdb")


def test_a_damaged_file_is_named(data):
    file = data / "imdb/train.jsonl.xz"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"no xz at all", lzma.compress(b"\xff\xfe")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"train\.jsonl\.xz is damaged after row"):
            load("imdb")


def test_too_few_rows_for_a_validation_split(data, monkeypatch):
    monkeypatch.setattr(module, "VALID_ROWS", 100)
    with pytest.raises(ValueError, match="100 labels of 2 classes"):
        load("imdb")


def test_missing_split_and_short_repr(data):
    films = load("imdb")
    assert repr(films) == "Dataset('imdb': train 32, valid 8, test 3, unlabelled 2; labels negative, positive)"
    assert repr(films.test) == "Split(3 texts, labelled)"
    with pytest.raises(KeyError, match="no split named 'valid'; it has train"):
        _ = Dataset("a", (), {"train": films.train}, "").valid


def test_split_of_unequal_lengths():
    with pytest.raises(ValueError, match="2 texts and 1 labels"):
        Split(["a", "b"], np.array([0]))


def test_nested_subsets_are_nested_balanced_and_random():
    labels = np.repeat([0, 1, 2], [20, 30, 50])
    subsets = nested_subsets(labels, [3, 16, 60], seed=1)
    for size, rows in subsets.items():
        counts = np.bincount(labels[rows], minlength=3)
        assert len(set(rows.tolist())) == size and counts.max() - counts.min() <= 1
    assert set(subsets[3]) < set(subsets[16]) < set(subsets[60])
    assert np.array_equal(nested_subsets(labels, [16], seed=1)[16], subsets[16])  # other sizes do not matter
    assert not np.array_equal(nested_subsets(labels, [16], seed=2)[16], subsets[16])


def test_nested_subsets_leave_the_odd_rows_to_any_class():
    labels = np.repeat([0, 1, 2], 10)
    extra = {int(np.bincount(labels[nested_subsets(labels, [4], seed)[4]]).argmax()) for seed in range(20)}
    assert extra == {0, 1, 2}


@pytest.mark.parametrize(
    ("labels", "sizes", "message"),
    [
        ([0, 0, 1], [1], "at least the number of classes, 2, got 1"),
        ([0, 0, 1], [2, 4], "class 1 has 1. Ask for at most 2"),
        ([], [2], r"labels \(N,\)"),
        ([0, 1], [], r"labels \(N,\)"),
    ],
)
def test_nested_subsets_refuses(labels, sizes, message):
    with pytest.raises(ValueError, match=message):
        nested_subsets(np.array(labels), sizes, seed=0)


def real(dataset):
    folder = Path(os.environ.get("MINITUNE_DATA", "")) / dataset
    there = "MINITUNE_DATA" in os.environ and folder.is_dir()
    return pytest.mark.skipif(not there, reason=f"needs the real files: $MINITUNE_DATA/{dataset} is not there")


@real("ag_news")
def test_real_ag_news():
    news = load("ag_news_22k")
    assert [len(split) for split in news.splits.values()] == [21_273, 1_000, 7_600, 14_065 + 21_273]
    assert not set(news.test.texts) & {*news.train.texts, *news.valid.texts, *news.unlabelled.texts}


@real("imdb")
def test_real_imdb():
    films = load("imdb")
    assert len(films.valid) == 1_000 and len(films.test) == 25_000
    assert 23_500 < len(films.train) < 24_000 and 49_000 < len(films.unlabelled) < 50_000
    assert not set(films.test.texts) & {*films.train.texts, *films.valid.texts, *films.unlabelled.texts}
