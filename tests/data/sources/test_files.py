"""read: files and folders of one's own as data sets, and errors that a user can repair from."""

import csv
import importlib
import json
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitune.data.dataset import Split
from minitune.data.sources.files import read
from minitune.data.sources.splits import cut, divide, duplicates

tables = importlib.import_module("minitune.data.sources.tables")
REVIEWS = [("review", "sentiment"), *((f"film {i} was {word}", word) for i in range(20) for word in ("good", "bad"))]
MESSAGES = [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]


@pytest.fixture
def write(tmp_path):
    """Writes a file: text or bytes as they are, dictionaries as JSON lines, other rows as CSV, or tabs for .tsv."""
    def write(name, content):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, (str, bytes)):
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        elif isinstance(content[0], dict):
            file.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        else:
            with file.open("w", encoding="utf-8", newline="") as lines:
                csv.writer(lines, delimiter="\t" if file.suffix == ".tsv" else ",").writerows(content)
        return file
    return write


def whole(path, **options):
    """All of a file as train."""
    return read(path, valid=0, test=0, **options)


def named(dataset, split="train"):
    """(text, label) of each row."""
    split = dataset.splits[split]
    return [(text, dataset.labels[label]) for text, label in zip(split.texts, split.labels, strict=True)]


def sizes(dataset):
    """How many rows each split has."""
    return {name: len(split) for name, split in dataset.splits.items()}


# What is read


@pytest.mark.parametrize("name", ["reviews.csv", "reviews.tsv", "reviews.CSV", "reviews.jsonl"])
def test_texts_and_labels_are_found_by_their_usual_names(write, name):
    rows = [dict(zip(REVIEWS[0], row)) for row in REVIEWS[1:]] if name == "reviews.jsonl" else REVIEWS
    films = whole(write(name, rows))
    assert (films.name, films.kind, films.labels, films.citation) == ("reviews", "classification", ("bad", "good"), "")
    assert named(films) == REVIEWS[1:] and films.train.labels.dtype == np.int64 and list(films.splits) == ["train"]
    assert films.notes == ("Read as classification: texts from 'review', labels from 'sentiment'.",)


@pytest.mark.parametrize(
    ("columns", "options", "text", "label"),
    [
        (("id", "Text", "LABEL"), {}, "Text", "LABEL"),
        (("stars", "label"), {}, "stars", "label"),                             # one is the label: the other is the text
        (("text", "stars"), {"label": "stars"}, "text", "stars"),
        (("label", "text"), {"text": "label", "label": "text"}, "label", "text"),
        (("title", "topic", "text"), {"text": "title"}, "title", "topic"),
        (("question", "answer", "label"), {"kind": "classification"}, "question", "label"),
    ],
)
def test_columns_can_be_named(write, columns, options, text, label):
    file = write("a.csv", [columns, *([f"{column} {i}" for column in columns] for i in range(3))])
    found = whole(file, **options)
    assert named(found) == [(f"{text} {i}", f"{label} {i}") for i in range(3)]
    unused = [column for column in columns if column not in (text, label)]
    assert found.notes[0] == (f"Read as classification: texts from {text!r}, labels from {label!r}"
                              + (f"; not used: {unused[0]!r}." if unused else "."))


@pytest.mark.parametrize(("content", "texts"), [
    ('text;label\n"a;b";x\n"two\nlines";y\n', ["a;b", "two\nlines"]),
    ("text\tlabel\na, b\tx\nb; c\ty\n", ["a, b", "b; c"]),
    ('\ufeff"text","label"\r\n"say ""yes""",x\r\n\r\n,\r\n"two\r\nlines",y\r\n', ['say "yes"', "two\nlines"]),
    ("\n text , label \nhe said \"no\",x\nb,y", ['he said "no"', "b"]),
])
def test_csv_as_spreadsheets_write_it(write, content, texts):
    assert named(whole(write("a.csv", content))) == list(zip(texts, ["x", "y"]))


@pytest.mark.parametrize(("name", "content", "kind"), [
    ("a.csv", "text\none\ntwo\n", None), ("a.jsonl", [{"text": "one"}, {"text": "two"}], None),
    ("a.csv", "text,stars\none,1\ntwo,2\n", None), ("a.csv", "id,text,label\n1,one,\n2,two,\n", "text"),
])
def test_texts_without_labels(write, name, content, kind):
    found = whole(write(name, content), kind=kind)
    assert (found.kind, found.labels, found.train.texts) == ("text", (), ["one", "two"])
    assert found.train.labels is None and found.train.examples is None


@pytest.mark.parametrize(
    ("row", "options", "prompt", "completion"),
    [
        ({"prompt": "2 + 2 =", "completion": " 4"}, {}, "2 + 2 =", " 4"),
        ({"Question": "2 + 2?", "Answer": "4"}, {}, "2 + 2?\n", "4"),
        ({"instruction": "Add.", "input": "2 + 2", "output": "4"}, {}, "Add.\n2 + 2\n", "4"),
        ({"instruction": "Add 2 + 2.", "input": "", "output": "4", "category": "sums"}, {}, "Add 2 + 2.\n", "4"),
        ({"input": "2 + 2", "output": "4"}, {}, "2 + 2\n", "4"),
        ({"vraag": "2 + 2", "antwoord": "4"}, {"kind": "completion", "text": "vraag", "label": "antwoord"}, "2 + 2\n", "4"),
    ],
)
def test_prompts_and_completions(write, row, options, prompt, completion):
    found = whole(write("a.jsonl", [row]), **options)
    (example,) = found.train.examples
    assert (found.kind, found.train.texts, found.train.labels) == ("completion", [example.text], None)
    assert example.text == prompt + completion and example.name == "a.jsonl, line 1"
    assert example.supervised == ((len(prompt), len(example.text)),)


def test_chats(write):
    found = whole(write("a.jsonl", [{"messages": MESSAGES, "id": 1}]))
    assert (found.kind, found.train.texts) == ("chat", ["User: 2 + 2\nAssistant: 4"])
    assert found.train.examples[0].name == "a.jsonl, line 1"
    assert found.notes == ("Read as chat: texts from 'messages'; not used: 'id'.",)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["b", "a", "b"], ("a", "b")),
        ([10, 9, 2], ("2", "9", "10")),
        ([True, False, True], ("false", "true")),
        (["1.5", "-2", "x", 1], ("-2", "1", "1.5", "x")),
        ([" a ", "b", "a"], ("a", "b")),
    ],
)
def test_labels_are_sorted_numbers_as_numbers(write, found, expected):
    dataset = whole(write("a.jsonl", [{"text": f"t {i}", "label": label} for i, label in enumerate(found)]))
    assert dataset.labels == expected
    assert [label for _, label in named(dataset)] == [str(label).strip().lower() for label in found]


@pytest.mark.parametrize(("found", "labels", "indices"), [
    (["b", "a"], ["b", "a", "c"], [0, 1]), ([0, 2, 1], ["no", "yes", "perhaps"], [0, 2, 1]), ([2, 1], ["1", "2"], [1, 0]),
    ([True, False], ["no", "yes"], [1, 0]), ([1, 2], (1, 2), [0, 1]),
])
def test_labels_given_are_in_their_order_or_name_numbers(write, found, labels, indices):
    dataset = whole(write("a.jsonl", [{"text": f"t {i}", "label": label} for i, label in enumerate(found)]), labels=labels)
    assert dataset.labels == tuple(map(str, labels)) and dataset.train.labels.tolist() == indices
    assert ("No row of train has the label 'c'." in dataset.notes) == ("c" in labels)


# Folders


def test_files_named_after_splits(write, tmp_path):
    write("data/train.csv", [*REVIEWS, ("Film 0  was GOOD", "bad"), ("film 0 was good", "good")])
    write("data/dev.jsonl", [{"text": "film 0 was good", "label": "good"}, {"text": "new", "label": "bad"}])
    write("data/test.tsv", [("text", "label"), ("film 0 was good", "good"), ("NEW", "bad"), ("new", "bad")])
    write("data/README.md", "ours")
    films = read(tmp_path / "data")
    assert films.name == "data" and sizes(films) == {"train": 42, "valid": 2, "test": 3}
    assert films.notes[1:] == (
        "Rows of train that repeat a text of train, case and white space aside: 2.",
        "Rows of valid that repeat a text of train, case and white space aside: 1.",
        "Rows of test that repeat a text of train, case and white space aside: 1.",
        "Rows of test that repeat a text of valid, case and white space aside: 3.",
        "Rows of test that repeat a text of test, case and white space aside: 1.",
        "Texts under more than one label: 1, such as 'film 0 was good'.",
    )


def test_a_missing_split_is_taken_from_train(write, tmp_path):
    write("train.csv", REVIEWS)
    write("test.csv", [("text", "label"), ("a", "good"), ("b", "bad")])
    films = read(tmp_path)
    assert sizes(films) == {"train": 36, "valid": 4, "test": 2}
    assert named(films, "test") == [("a", "good"), ("b", "bad")]
    assert list(read(tmp_path, valid=0).splits) == ["train", "test"]


def test_folders_of_texts_named_after_labels(write, tmp_path):
    for label in ("neg", "pos"):
        for i in range(5):
            write(f"films/train/{label}/{i}.txt", f"{label} {i}")
        write(f"films/test/{label}/0.txt", f"test {label}")
    films = read(tmp_path / "films", valid=0)
    assert named(films) == [(f"{label} {i}", label) for label in ("neg", "pos") for i in range(5)]
    assert named(films, "test") == [("test neg", "neg"), ("test pos", "pos")]
    assert named(whole(tmp_path / "films/train")) == named(films)
    assert films.notes == ("Read as classification: texts from 'text', labels from 'folder'.",)


def test_a_folder_of_texts(write, tmp_path):
    for i in range(10):
        write(f"{i}.txt", f"text {i}\r\nends")
    found = read(tmp_path)
    assert found.kind == "text" and sizes(found) == {"train": 8, "valid": 1, "test": 1}
    assert sorted(text for split in found.splits.values() for text in split.texts) == [f"text {i}\nends" for i in range(10)]


# Splits


def test_a_split_is_the_same_for_the_same_seed(write):
    file = write("a.csv", REVIEWS)
    films, again, other = read(file), read(file), read(file, seed=1)
    assert films.fingerprint == again.fingerprint != other.fingerprint
    assert {name: np.bincount(split.labels).tolist() for name, split in films.splits.items()} == {
        "train": [16, 16], "valid": [2, 2], "test": [2, 2]}
    assert films.notes[1:] == ("Taken at random from the 40 rows of train: valid (10 %) and test (10 %); seed 0; equal texts "
                               "stayed together.",)
    assert sorted(row for name in films.splits for row in named(films, name)) == sorted(REVIEWS[1:])


TEXTS = st.sampled_from(["a", "A ", "b", "c d", "c  D", "e"]) | st.text("abcde", min_size=1)
SHARES = st.sampled_from([{}, {"test": 0.3}, {"valid": 0.1, "test": 0.1}, {"valid": 0.5, "test": 0.4}])


@settings(derandomize=True, database=None, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.integers(0, 2)), min_size=1, max_size=60), SHARES, st.integers(0, 3))
def test_every_row_is_in_one_split_and_equal_texts_are_together(rows, shares, seed):
    split = Split([text for text, _ in rows], np.array([label for _, label in rows]), groups=[str(i) for i in range(len(rows))])
    parts = divide(split, shares, seed)
    assert sorted(int(row) for part in parts.values() for row in part.groups) == list(range(len(rows)))
    for part in parts.values():
        assert [rows[int(row)] for row in part.groups] == list(zip(part.texts, part.labels.tolist()))
    assert all(len({name for name, _ in places}) == 1 for places in duplicates(parts))
    assert set(parts["train"].labels) == set(split.labels)
    assert all(np.array_equal(part.labels, parts[name].labels) for name, part in divide(split, shares, seed).items())


@settings(derandomize=True, database=None, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.sampled_from([0.1, 0.2, 0.4]), st.sampled_from([0.1, 0.3]))
def test_every_class_keeps_its_shares(sizes, valid, test):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    parts = divide(Split([str(i) for i in range(len(labels))], labels), {"valid": valid, "test": test}, seed=0)
    for label, size in enumerate(sizes):
        counts = [int((parts[name].labels == label).sum()) if name in parts else 0 for name in ("train", "valid", "test")]
        if size >= 3:
            assert counts[1:] == [max(1, round(valid * size)), max(1, round(test * size))]
        assert counts[0] >= 1


def test_many_copies_of_one_text_do_not_fill_a_small_split():
    parts = divide(Split(["same"] * 50 + [str(i) for i in range(50)]), {"valid": 0.1, "test": 0.1}, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 80, "valid": 10, "test": 10}


def test_too_few_rows_for_a_split_are_told(write):
    pair = read(write("a.csv", [("text", "label"), ("a", "x"), ("b", "y")]))
    assert len(pair.train) == 2 and list(pair.splits) == ["train"]
    assert pair.notes[2:] == ("There are too few rows for valid.", "There are too few rows for test.")


def test_one_text_is_cut_at_paragraphs_its_end_held_out(write):
    text = "".join(f"Paragraph {i}\nhas two lines.\n\n" for i in range(100))
    book = read(write("book.txt", text.replace("\n", "\r\n")))
    parts = [split.texts for split in book.splits.values()]
    assert (book.kind, list(book.splits), [len(part) for part in parts]) == ("text", ["train", "valid", "test"], [1, 1, 1])
    assert "".join(part for part, in parts) == text
    assert all(part.endswith(".\n\n") and part.startswith("Paragraph") for part, in parts)
    assert [part.count("Paragraph") for part, in parts] == [80, 10, 10]
    assert book.notes[1] == "The text was cut; its end is valid (10 %) and test (10 %)."


def test_the_end_of_the_text_of_train_is_what_is_missing(write, tmp_path):
    write("book/train.txt", "One.\n\nTwo.\n\nThree.\n\nFour.\n\n")
    write("book/test.txt", "Five.")
    book = read(tmp_path / "book", valid=0.25)
    assert [split.texts for split in book.splits.values()] == [["One.\n\nTwo.\n\nThree.\n\n"], ["Four.\n\n"], ["Five."]]


@pytest.mark.parametrize("text", ["title\n\n" + "a line\n" * 50, "word " * 100])
def test_a_text_without_paragraphs_is_cut_at_lines_or_words(text):
    parts = cut(text, {"test": 0.25})
    assert "".join(parts.values()) == text and parts["train"][-1] == text[-1]
    assert abs(len(parts["test"]) / len(text) - 0.25) < 0.02


@settings(derandomize=True, database=None, deadline=None)
@given(st.text("ab \n", min_size=1), SHARES)
def test_no_part_of_a_cut_text_is_empty(text, shares):
    try:
        parts = cut(text, shares)
    except ValueError as error:
        assert "too short to be cut" in str(error)
    else:
        assert "".join(parts.values()) == text and all(parts.values()) and list(parts) == ["train", *shares]


def test_duplicates_are_found_by_text():
    splits = {"train": Split(["A film", "b", "a  film"]), "test": Split(["B", "c"])}
    assert duplicates(splits) == [[("train", 0), ("train", 2)], [("train", 1), ("test", 0)]]


def test_ten_thousand_rows_are_read_at_once(write):
    words = "the film was not what its makers had promised us in spring " * 10
    file = write("a.csv", [("text", "label"), *((f"{i % 9000} {words}", f"topic {i % 500}") for i in range(10_000))])
    start = process_time()                          # of this process alone: others may be busy
    read(file)
    assert process_time() - start < 3               # 0.3 s; less than anything quadratic


# What is refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "words,stars\na,1\n", "no column of texts among 'words', 'stars'. Name one, as in text='words'; the first"),
        ("a.json", "{}", r"expected a \.txt, \.csv, \.tsv or \.jsonl file; .*got '\.json'"),
        ("a.xlsx", b"PK\x03\x04", "got '.xlsx'"),
        ("a", "x", "got 'no suffix'"),
        ("a.csv", "", "is empty. Is it the right file"),
        ("a.txt", " \n ", "is empty"),
        ("a.csv", "text,label\n\n", r"expected rows below the header \['text', 'label'\], got none"),
        ("a.csv", "text,text\na,b\n", "two columns are named 'text'. Rename"),
        ("a.csv", "text,label\na,x\n ,y\n\nb,y\n", "row 3: 'text' is empty. Correct these rows or leave them out"),
        ("a.csv", 'text,label\n"a\nb",x\n,y\nb,\n', "row 3: 'text' is empty; row 4: 'label' is empty"),
        ("a.csv", "text,label\na,x\nb,y\na,b,c\nd\n", "row 4: 3 in place of 2 cells; row 5: 1 in place of 2.*needs quotes"),
        ("a.csv", 'text,label\na,x\n"two\nlines",y\n"left open,x\nb,y\n', "row 4, from line 5 on: .*Is a quote left open"),
        ("a.tsv", 'text\tlabel\na\tx\n"No" he said\ty\n', "row 3, from line 3 on: .*Is a quote left open"),
        ("a.csv", "text,label\na,x\nb,x\n", 'every row has the label \'x\'.*two or more.*kind="text"'),
        ("a.jsonl", '{"text": "a", "label": 0}\n{"text": "b"}\n{"label": 1}\n', "line 2: 'label' is missing; line 3: 'text'"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": ["b"]}\n', r"line 3: 'text' must be a text, got \['b'\]"),
        ("a.jsonl", '{"text": "a", "label": 0.5}\n', "line 1: 'label' must be a word, a whole number, true or false, got 0.5"),
        ("a.jsonl", '{"text": "\\ud83d", "label": 0}\n', "line 1: .*surrogates not allowed"),
        ("a.jsonl", '{"text": "a"}\n[1]\n{"text"\n' + "[" * 100_000, r"line 2: '\[1\]'; line 3.*line 4.*Expected one JSON"),
        ("a.jsonl", [{"prompt": "a", "completion": ""}], "line 1: 'completion' is empty"),
        ("a.jsonl", [{"prompt": " ", "completion": "a"}], "line 1: 'prompt' is empty"),
        ("a.jsonl", [{"messages": MESSAGES}, {"messages": [{"role": "bot"}]}, {"messages": MESSAGES[:1]}],
         "a.jsonl: line 2: message 0: role must be one of .* got 'bot'; line 3: no message of the assistant"),
        ("a.jsonl", [{"messages": MESSAGES}, {"text": "a"}], "line 2: expected a list of messages"),
        ("a.txt", "café".encode("latin-1"), 'line 1: byte 4, 0xe9, is not utf-8.*may be Latin-1: pass encoding="latin-1", or'),
        ("a.csv", b"text,label\na,x\nb\xff,y\n", "line 3: byte 2, 0xff"),
        ("a.txt", "text".encode("utf-16"), 'is UTF-16: pass encoding="utf-16"'),
        ("a.txt", "text".encode("utf-16-le"), 'holds zero bytes.*encoding="utf-16"'),
        ("a.csv", b"PK\x03\x04\x00", r"is not text but a zip archive or an Excel workbook \(\.xlsx\).*save the sheet as CSV"),
        ("a.txt", b"%PDF-1.7", "is not text but a PDF"),
        ("a.jsonl", b"\x1f\x8b\x08", "gzip-compressed"),
        ("a.txt", "short", "a.txt: a text of 5 characters.*too short to be cut into splits.*valid=0"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_refused(write, name, content, message):
    file = write(name, content)
    with pytest.raises(ValueError, match=message) as error:
        read(file)
    assert str(error.value).startswith(f"read: {file}") and "\n" not in str(error.value)


def test_only_the_first_faults_are_named_and_the_rest_counted(write):
    file = write("a.csv", [("text", "label"), *(("", "x") for _ in range(1_003))])
    with pytest.raises(ValueError, match="row 2: 'text' is empty; row 3: .*; row 4: [^;]*; and 1,000 more. Correct"):
        read(file)


def test_a_quote_left_open_ends_at_the_longest_cell(write, monkeypatch):
    monkeypatch.setattr(tables, "LONGEST_CELL", 1_000)
    usual = csv.field_size_limit()
    file = write("a.csv", 'text,label\na,x\n"left open,x\n' + "b,y\n" * 1_000)
    with pytest.raises(ValueError, match=r"row 3, from line 3 on: field larger than field limit \(1000\). Is a quote"):
        read(file)
    assert csv.field_size_limit() == usual


def test_a_long_text_is_no_fault(write):
    long = "word " * 50_000                         # longer than what the csv module takes by itself
    assert whole(write("a.csv", [("text", "label"), (long, "x"), ("short", "y")])).train.texts[0] == long


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "reviews"}, "no column named 'reviews' among 'review', 'sentiment'. Name one, as in text='review'"),
        ({"label": "Sentiment"}, "as in label='sentiment'"),
        ({"kind": "chat"}, "no column of messages among"),
        ({"kind": "completion"}, "no column of prompts among"),
        ({"kind": "completion", "text": "review"}, "no column of completions among .*label="),
        ({"kind": "regression"}, "kind must be one of classification, text, completion, chat, got 'regression'"),
        ({"kind": "text", "label": "sentiment"}, "kind='text' takes no label. Leave one"),
        ({"kind": "chat", "labels": ["a", "b"]}, "kind='chat' takes no labels"),
        ({"labels": ["good", "goods"]}, "row 3: label 'bad' is unknown; .*and 17 more. Expected good, goods or a number from"),
        ({"labels": ["goodness", "bad"]}, "row 2: label 'good' is unknown.*Did you mean 'goodness'"),
        ({"labels": ["good", "good"]}, "labels must be two different names or more"),
        ({"labels": "good"}, "labels must be two different names or more"),
        ({"valid": 0.5, "test": 0.5}, "must leave some for train, got valid=0.5, test=0.5"),
        ({"valid": -0.1}, "must leave some for train"),
        ({"test": float("nan")}, "must leave some for train"),
        ({"encoding": "utf8-bom"}, "there is no encoding 'utf8-bom'. Usual ones: utf-8"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused(write, options, message):
    with pytest.raises(ValueError, match=message):
        read(write("a.csv", REVIEWS), **options)


def test_a_label_out_of_range_is_named(write):
    file = write("a.csv", [("text", "label"), ("a", "1"), ("b", "2"), ("c", "3")])
    with pytest.raises(ValueError, match="row 4: label '3' is unknown. Expected no, yes, perhaps or a number from 0 to 2"):
        read(file, labels=["no", "yes", "perhaps"])


def test_a_label_that_train_does_not_have_is_named(write, tmp_path):
    write("train.csv", REVIEWS)
    write("test.csv", [("text", "label"), ("a", "goood")])
    with pytest.raises(ValueError, match=r"test\.csv: row 2: label 'goood' is unknown. Expected bad, good. Did you mean 'goo"):
        read(tmp_path)


def test_other_encodings_can_be_named(write):
    for encoding in ("latin-1", "utf-16"):
        assert whole(write("a.txt", "café".encode(encoding)), encoding=encoding).train.texts == ["café"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"nothing to read. Expected a \.txt.*a folder of \.txt files for each label"),
        (["notes.md"], "nothing to read"),
        (["test.csv"], r"there is test\.csv but no train"),
        (["train.csv", "dev.csv", "validation.csv"], r"dev\.csv and validation\.csv are both valid. Leave one"),
        (["train/notes.md"], "train: nothing to read"),
    ],
)
def test_a_folder_of_another_layout_is_refused(write, tmp_path, files, message):
    for file in files:
        write(file, REVIEWS)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_an_empty_text_in_a_folder_is_named(write, tmp_path):
    write("a/1.txt", "text")
    write("b/2.txt", "")
    with pytest.raises(ValueError, match=r"b/2\.txt: 'text' is empty"):
        read(tmp_path)


def test_a_missing_path_is_named_with_the_nearest(write, tmp_path):
    write("reviews.csv", REVIEWS)
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*review\.csv. Did you mean 'reviews\.csv'"):
        read(tmp_path / "review.csv")
    with pytest.raises(FileNotFoundError, match=r"Expected a \.txt"):
        read("nowhere/at/all")


def test_unlabelled_texts_lie_beside_labelled_ones(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(8)))
    (tmp_path / "test.csv").write_text("text,label\nSeen,a\nother,b\n")
    (tmp_path / "unlabelled.csv").write_text("text\nnew\nnew\nSeen\nlast\n")
    found = read(tmp_path, valid=0)
    assert found.unlabelled.texts == ["new", "last"] and found.unlabelled.labels is None       # each once, none of test
    (tmp_path / "unlabelled.csv").write_text("text\nseen\nTEXT 0\ntext 1\n other  \nlast\n")       # of test and of train
    found = read(tmp_path, valid=0)
    assert found.unlabelled.texts == ["TEXT 0", "text 1", "last"]
    assert len(found.notes) == 1                # what train and they share is no fault, and disputes no label
    (tmp_path / "train.csv").write_text("text\nonly\ntexts\n")
    (tmp_path / "test.csv").unlink()
    with pytest.raises(ValueError, match="unlabelled texts go beside labelled ones, and this data set is of kind 'text'"):
        read(tmp_path, valid=0, test=0)
