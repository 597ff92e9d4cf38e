"""load, Dataset and nested_subsets, on small files in the layout of the real ones, and on those where they are."""

import gzip
import hashlib
import importlib
import io
import json
import lzma
import os
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from minitune.data.dataset import Dataset, Split, nested_subsets
from minitune.data.sources import sets
from minitune.data.sources.load import load

module = importlib.import_module("minitune.data.sources.load")  # the package exports the function under this name
load_here = partial(load, download=False)
DIGITS = np.repeat(np.arange(10, dtype=np.uint8), 3)


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
    monkeypatch.setattr(sets, "VALID_ROWS", 8)
    monkeypatch.setattr(sets, "VALID_IMAGES", 10)
    monkeypatch.setattr(module, "fetch", lambda *_, **__: pytest.fail("a download was begun"))
    return tmp_path


def write_small_sets(folder):
    """The sets of texts that have no file in `data`, and the two of images: 3 images of each class."""
    questions = [(f"What is {label} {i} ?", label) for label in range(6) for i in range(5)]
    write(folder / "trec/train.jsonl.xz", [*questions, ("Who ?", 3), ("What is 0 1 ?", 0)])
    write(folder / "trec/test.jsonl.xz", [("Who ?", 3), ("Where ?", 4)])
    (folder / "trec/labels.txt").write_text("ABBR\nDESC\nENTY\nHUM\nLOC\nNUM\n")
    films = [(f"a {word} film {i}", label) for label, word in enumerate(["dull", "fine"]) for i in range(5)]
    write(folder / "sst2/sent_train.jsonl.xz", [*films, ("in both", 1)])
    write(folder / "sst2/sent_dev.jsonl.xz", [("dev", 0)])
    write(folder / "sst2/sent_test.jsonl.xz", [("in both", 1), ("so fine", 1)])
    write(folder / "sst2/glue_train.jsonl.xz", [*films, ("dull", 0), ("fine", 1), ("so fine", 1), ("dev", 0)])
    (folder / "sst2/labels.txt").write_text("negative\npositive\n")
    for name in ("train", "valid", "test"):
        file = folder / f"wikitext2/{name}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(f" \n = {name} A = \n \n k = 1 ,\n = 2 = \n = = Part = = \n \n \n = B = \n \n end \n".encode())
    (folder / "tinyshakespeare").mkdir()
    (folder / "tinyshakespeare/input.txt.gz").write_bytes(gzip.compress(b"0123456789\r\n" * 10))
    (folder / "gutenberg").mkdir()
    for name, titles in (("train", ["Emma", "Siddhartha"]), ("valid", ["Siddhartha"])):
        rows = "".join(json.dumps({"id": "1", "title": title, "text": f"{name} {title}"}) + "\n" for title in titles)
        (folder / f"gutenberg/{name}.jsonl").write_text(rows)
    for name in ("mnist", "fashion_mnist"):
        (folder / name).mkdir()
        images = bytes([0, 0, 8, 3, 0, 0, 0, 30, 0, 0, 0, 2, 0, 0, 0, 3]) + np.repeat(DIGITS, 6).tobytes()
        labels = bytes([0, 0, 8, 1, 0, 0, 0, 30]) + DIGITS.tobytes()
        for part in ("train", "t10k"):
            (folder / f"{name}/{part}-images-idx3-ubyte").write_bytes(images)
            (folder / f"{name}/{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


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


def test_trec_keeps_splits_apart(data):
    write_small_sets(data)
    questions = load("trec")
    assert questions.labels == ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
    assert [len(split) for split in questions.splits.values()] == [26, 4, 2, 26]
    labelled = questions.train.texts + questions.valid.texts
    assert len(set(labelled)) == 30 and "Who ?" not in labelled and "Who ?" in questions.test.texts
    assert questions.unlabelled.texts == questions.train.texts and questions.unlabelled.labels is None
    for text, label in zip(questions.train.texts, questions.train.labels, strict=True):
        assert text.startswith(f"What is {label} ")
    assert questions.notes == ("2 of 32 texts left train: repeated, or in test too.",)


def test_sst2_keeps_sentences_and_phrases_free_of_dev_and_test(data):
    write_small_sets(data)
    films = load("sst2")
    assert {name: len(split) for name, split in films.splits.items()} == {
        "train": 10, "valid": 1, "test": 2, "phrases": 12, "unlabelled": 10}
    held_out = {*films.valid.texts, *films.test.texts}
    assert held_out == {"dev", "in both", "so fine"}
    assert not held_out & {*films.train.texts, *films.splits["phrases"].texts, *films.unlabelled.texts}
    assert films.splits["phrases"].labels[films.splits["phrases"].texts.index("dull")] == 0
    assert "1 of 11 texts left train" in films.notes[0] and "2 of 14 texts left phrases" in films.notes[1]


def test_wikitext2_is_one_text_an_article_and_nothing_is_lost(data):
    write_small_sets(data)
    wiki = load("wikitext2")
    assert wiki.kind == "text" and wiki.labels == () and list(wiki.splits) == ["train", "valid", "test"]
    for name, split in wiki.splits.items():
        assert "".join(split.texts).encode() == (data / f"wikitext2/{name}.txt").read_bytes()
        assert [text.split("\n")[1] for text in split.texts] == [f" = {name} A = ", " = B = "]


def test_tinyshakespeare_is_cut_at_nine_tenths(data):
    write_small_sets(data)
    plays = load("tinyshakespeare")
    assert plays.kind == "text" and len(plays.train.texts[0]) == 108
    assert plays.train.texts[0] + plays.valid.texts[0] == "0123456789\r\n" * 10


def test_gutenberg_has_titles_as_groups_and_no_title_in_both_splits(data):
    write_small_sets(data)
    books = load("gutenberg")
    assert books.kind == "text" and books.train.texts == ["train Emma"] and books.train.groups == ["Emma"]
    assert books.valid.groups == ["Siddhartha"] and "1 of 2 books left train" in books.notes[0]
    (data / "gutenberg/valid.jsonl").write_text('{"title": "Emma"}\n')
    with pytest.raises(ValueError, match=r'valid\.jsonl, row 1: expected {"title": str, "text": str}'):
        load("gutenberg")


@pytest.mark.parametrize(("name", "first"), [("mnist", "0"), ("fashion_mnist", "T-shirt/top")])
def test_image_sets_have_a_balanced_validation_split(data, name, first):
    write_small_sets(data)
    images = load(name)
    assert images.kind == "images" and images.labels[0] == first and len(images.labels) == 10
    assert [len(split) for split in images.splits.values()] == [20, 10, 30]
    assert np.bincount(images.valid.labels).tolist() == [1] * 10
    for split in images.splits.values():
        assert split.images.shape[1:] == (2, 3) and np.array_equal(split.images[:, 1, 2], split.labels)
    assert load(name).fingerprint == images.fingerprint


@pytest.mark.parametrize(("labels", "message"), [([*DIGITS[1:], 10], "up to 10"), (DIGITS[1:], "expected 30 .* got 29")])
def test_image_labels_that_do_not_belong_are_named(data, labels, message):
    write_small_sets(data)
    (data / "mnist/t10k-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, len(labels), *labels])))
    with pytest.raises(ValueError, match=rf"t10k-labels-idx1-ubyte\.gz: .*{message}"):
        load("mnist")


def test_a_set_is_the_same_plain_or_packed(data):
    expected = load("imdb").fingerprint
    for packed in (data / "imdb").glob("*.xz"):
        content = lzma.decompress(packed.read_bytes())
        if packed.name.startswith("train"):
            packed.with_suffix(".gz").write_bytes(gzip.compress(content))
        else:
            packed.with_suffix("").write_bytes(content)
        packed.unlink()
    assert load("imdb").fingerprint == expected


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
    with pytest.raises(FileNotFoundError, match=r"MINITUNE_DATA.*imdb/unsup\.jsonl, each plain.*https://ai\.stanford\.edu"):
        load_here("imdb")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load("imdb", folder="nowhere")


@pytest.mark.parametrize("name", ["ag_news_22k", "gutenberg", "sst2", "trec"])
def test_a_set_without_a_checked_home_is_not_downloaded(data, monkeypatch, name):
    monkeypatch.delenv("MINITUNE_DATA")
    with pytest.raises(FileNotFoundError, match=r"are missing.*Set MINITUNE_DATA.*The official page: https://"):
        load(name)


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist", "tinyshakespeare", "wikitext2"])
def test_missing_files_are_fetched_from_a_secure_home_into_the_cache(data, monkeypatch, name):
    """What is fetched is what the sets are read from, each file with a checksum."""
    write_small_sets(data)
    monkeypatch.setenv("MINITUNE_DATA", str(data / "empty"))
    fetched = {}

    def fetch(url, file, *, sha256):
        fetched[url] = sha256
        file.parent.mkdir(parents=True, exist_ok=True)
        content = next((data / name).glob(f"{file.name.removesuffix('.gz')}*"))
        content = gzip.decompress(content.read_bytes()) if content.suffix == ".gz" else content.read_bytes()
        file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)

    monkeypatch.setattr(module, "fetch", fetch)
    there = load(name, folder=data / name).fingerprint
    assert not fetched and load(name).fingerprint == there
    assert len(fetched) == len(module.SOURCES[name].files) == len(list((data / "cache/minitune" / name).iterdir()))
    assert all(url.startswith("https://") for url in fetched)
    assert all(len(bytes.fromhex(checksum)) == 32 for checksum in fetched.values())
    fetched.clear()
    assert load_here(name).fingerprint == there and not fetched


def test_without_a_network_the_error_names_page_and_layout(data, monkeypatch):
    def fetch(*_, **__):
        raise ConnectionError("download: no route to host")

    monkeypatch.setattr(module, "fetch", fetch)
    with pytest.raises(FileNotFoundError, match=r"mnist are missing.*no route to host.*mnist/t10k-labels.*IDX.*page: http"):
        load("mnist")


def review_archive(file, reviews):
    """An archive in the layout of the official one: reviews {member: text} and some other files."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz") as archive:
        for name, text in {**reviews, "README": "About", "train/urls_neg.txt": "http", "imdb.vocab": "the"}.items():
            member = tarfile.TarInfo(f"aclImdb/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))


def test_the_imdb_archive_becomes_rows_in_the_order_of_their_numbers(data, monkeypatch):
    reviews = {"train/pos/0_9.txt": "großartig", "train/neg/10_1.txt": "ten", "train/neg/9_4.txt": "nine<br />",
               "train/unsup/1_0.txt": "one", "train/unsup/0_0.txt": "zero", "test/pos/0_10.txt": "p", "test/neg/0_1.txt": "n"}
    row = '{"text": "%s", "label": %s}\n'
    lines = {"train": row % ("nine<br />", 0) + row % ("ten", 0) + row % ("großartig", 1),
             "test": row % ("n", 0) + row % ("p", 1), "unsup": row % ("zero", "null") + row % ("one", "null")}
    folder = data / "cache/minitune/imdb"
    monkeypatch.setattr(module, "fetch", lambda url, file, sha256: review_archive(file, reviews))
    monkeypatch.setattr(sets, "imdb", lambda folder: sorted(file.name for file in folder.iterdir()))
    monkeypatch.setitem(module.SOURCES, "imdb", replace(module.SOURCES["imdb"], read=sets.imdb))
    (data / "imdb/labels.txt").unlink()
    with pytest.raises(ValueError, match=r"other train reviews, 3, than the official ones: expected SHA-256 06ddcc0d.*, got"):
        load("imdb")
    assert [file.name for file in folder.iterdir()] == [module.ARCHIVE]
    monkeypatch.setattr(module, "IMDB_ROWS", {name: hashlib.sha256(lines[name].encode()).hexdigest() for name in lines})
    assert load("imdb") == ["labels.txt", "test.jsonl.xz", "train.jsonl.xz", "unsup.jsonl.xz"]
    for name, expected in lines.items():
        assert lzma.open(folder / f"{name}.jsonl.xz", "rt", encoding="utf-8").read() == expected
    assert (folder / "labels.txt").read_text() == "negative\npositive\n"


def test_digits_come_with_scikit_learn_and_are_split_alike_every_time():
    pytest.importorskip("sklearn", reason="scikit-learn, which holds the images, is not installed")
    digits = load("digits")
    assert (digits.kind, digits.labels, len(digits.splits)) == ("images", tuple("0123456789"), 3)
    assert [len(split) for split in (digits.train, digits.valid, digits.test)] == [1197, 200, 400]
    assert digits.train.images.shape[1:] == (8, 8) and digits.train.images.max() == 255
    assert np.bincount(digits.valid.labels).tolist() == [20] * 10 and np.bincount(digits.test.labels).tolist() == [40] * 10
    assert digits.fingerprint == load("digits").fingerprint == "8e344335220ec164"
    whole = np.concatenate([split.images for split in digits.splits.values()])
    from sklearn.datasets import load_digits
    expected = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, whole)) == sorted(map(bytes, expected))       # every image once


def test_digits_without_scikit_learn_name_the_repair(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'"digits" comes with scikit-learn: pip install "minitune\[demo\]"'):
        load("digits")


def test_unknown_name():
    with pytest.raises(ValueError, match="Did you mean 'ag_news_22k'"):
        load("ag_news")
    with pytest.raises(ValueError, match="There are: ag_news_22k, .*imdb, .*pydocs, .*wikitext2"):
        load("qqq")
    with pytest.raises(ValueError, match="Leave it out"):
        load("pydocs", folder="somewhere")
    with pytest.raises(ValueError, match="load.'digits'.: reads what is installed .*Leave it out"):
        load("digits", folder="somewhere")


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
        with pytest.raises(ValueError, match=r"train\.jsonl\.xz is damaged .*Fetch it again"):
            load("imdb")


def test_too_few_rows_for_a_validation_split(data, monkeypatch):
    monkeypatch.setattr(sets, "VALID_ROWS", 100)
    with pytest.raises(ValueError, match="100 labels were asked for"):
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


def test_a_class_with_too_few_rows_gives_all_it_has_and_the_others_stay_balanced():
    labels = np.repeat([0, 1, 2], [3, 20, 30])
    subsets = nested_subsets(labels, [9, 25, 53], seed=0)
    assert [np.bincount(labels[rows]).tolist() for rows in subsets.values()] == [[3, 3, 3], [3, 11, 11], [3, 20, 30]]
    assert set(subsets[9]) < set(subsets[25]) and len(set(subsets[53].tolist())) == 53


def test_nested_subsets_leave_the_odd_rows_to_any_class():
    labels = np.repeat([0, 1, 2], 10)
    extra = {int(np.bincount(labels[nested_subsets(labels, [4], seed)[4]]).argmax()) for seed in range(20)}
    assert extra == {0, 1, 2}


@pytest.mark.parametrize(
    ("labels", "sizes", "message"),
    [
        ([0, 0, 1], [1], "at least the number of classes, 2, got 1"),
        ([0, 0, 1], [2, 4], "4 labels were asked for, but there are 3"),
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
    news = load_here("ag_news_22k")
    assert [len(split) for split in news.splits.values()] == [21_273, 1_000, 7_600, 14_065 + 21_273]
    assert not set(news.test.texts) & {*news.train.texts, *news.valid.texts, *news.unlabelled.texts}
    assert news.fingerprint == "dca4be92d1112c8d"


@real("imdb")
def test_real_imdb():
    films = load_here("imdb")
    assert len(films.valid) == 1_000 and len(films.test) == 25_000
    assert 23_500 < len(films.train) < 24_000 and 49_000 < len(films.unlabelled) < 50_000
    assert not set(films.test.texts) & {*films.train.texts, *films.valid.texts, *films.unlabelled.texts}
    assert films.fingerprint == "2199d3ea42b6f1c1"


@real("imdb")
def test_real_imdb_rows_are_those_that_the_archive_must_give():
    for name, checksum in module.IMDB_ROWS.items():
        with lzma.open(Path(os.environ["MINITUNE_DATA"]) / f"imdb/{name}.jsonl.xz") as rows:
            assert hashlib.sha256(rows.read()).hexdigest() == checksum


@real("trec")
def test_real_trec():
    questions = load_here("trec")
    assert questions.notes == ("81 of 5,452 texts left train: repeated, or in test too.",)
    assert [len(split) for split in questions.splits.values()] == [5_452 - 81 - 500, 500, 500, 5_452 - 81 - 500]
    assert np.bincount(questions.test.labels).tolist() == [9, 138, 94, 65, 81, 113]
    assert np.bincount(questions.train.labels).min() > 70


@real("sst2")
def test_real_sst2():
    films = load_here("sst2")
    assert [len(split) for split in films.splits.values()] == [6_920 - 11, 872, 1_821, 67_349 - 372, 6_920 - 11]
    held_out = {*films.valid.texts, *films.test.texts}
    assert not held_out & {*films.train.texts, *films.splits["phrases"].texts}


@real("wikitext2")
def test_real_wikitext2_has_the_published_counts_of_articles_and_tokens():
    wiki = load_here("wikitext2")
    assert [len(split) for split in wiki.splits.values()] == [600, 60, 60]
    text = {name: "".join(split.texts) for name, split in wiki.splits.items()}
    assert [len(text[name].split()) + text[name].count("\n") for name in text] == [2_088_628, 217_646, 245_569]
    for name, checksum in module.SOURCES["wikitext2"].checksums.items():
        assert hashlib.sha256(text[name.removesuffix(".txt")].encode()).hexdigest() == checksum


@real("tinyshakespeare")
def test_real_tinyshakespeare():
    plays = load_here("tinyshakespeare")
    train, valid = plays.train.texts[0], plays.valid.texts[0]
    assert (len(train), len(valid), len(set(train + valid))) == (1_003_854, 111_540, 65)
    checksum = hashlib.sha256((train + valid).encode()).hexdigest()
    assert checksum == module.SOURCES["tinyshakespeare"].checksums["input.txt"]


@real("gutenberg")
def test_real_gutenberg():
    books = load_here("gutenberg")
    assert (len(books.train), len(books.valid)) == (175, 4) and not set(books.train.groups) & set(books.valid.groups)


@pytest.mark.parametrize("name", [pytest.param(name, marks=real(name)) for name in ("mnist", "fashion_mnist")])
def test_real_images(name):
    images = load_here(name)
    assert {part: split.images.shape for part, split in images.splits.items()} == {
        "train": (55_000, 28, 28), "valid": (5_000, 28, 28), "test": (10_000, 28, 28)}
    assert np.bincount(images.valid.labels).tolist() == [500] * 10
    assert tuple((Path(os.environ["MINITUNE_DATA"]) / name / "labels.txt").read_text().splitlines()) == images.labels
