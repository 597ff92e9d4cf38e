"""`read`: a data set of one's own, from a file or a folder."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import combinations, combinations_with_replacement
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ..dataset import Dataset, Split
from ..example import Example
from .overlap import without
from .splits import cut, divide, duplicates
from .tables import Table, read_tables, refuse

SPLITS = ("train", "valid", "test")
KINDS = ("classification", "text", "completion", "chat")
# Usual names of columns; the first of them that a file has is taken.
TEXTS = "text texts sentence review content message comment document body tweet post description question".split()
LABELS = "label labels class category target sentiment topic intent emotion genre type tag folder".split()
PROMPTS = "prompt instruction question input".split()
CONTEXTS = "input context".split()
COMPLETIONS = "completion response output answer".split()
NUMBER = re.compile(r"-?\d+(\.\d+)?")


class Columns(NamedTuple):
    """What a table's rows are, the columns of their texts, and the column of their label or completion, or ""."""

    kind: str
    texts: list[str]
    target: str = ""


def read(path: str | os.PathLike[str], *, text: str | None = None, label: str | None = None, kind: str | None = None,
         labels: Sequence[str] | None = None, valid: float = 0.1, test: float = 0.1, seed: int = 0,
         encoding: str = "utf-8") -> Dataset:
    """A data set of one's own: a .txt, .csv, .tsv or .jsonl file, or a folder.

    A folder holds train, valid and test, each such a file or folder; or a folder of .txt files for each label; or .txt files.
    Beside labelled texts it may hold `unlabelled` ones, to go on with a language model: `Dataset.unlabelled`.
    Columns are found by their usual names ("text", "review", ...; "label", "category", ...) or named by `text` and `label`.
    From them follows the `kind`: "classification", a text and a label; "completion", a prompt and a completion, a question
    and an answer, or an instruction, perhaps an input, and an output (`text` names the prompt and `label` the completion);
    "chat", messages; "text". `labels` are the labels in their order, or names for the file's labels 0, 1, ... A prompt and a
    column "completion" are joined as they are; before an answer, output or response the prompt gets a line break.

    Where valid or test is missing, that share of train's rows is taken, the same for the same `seed`; 0 takes none. Classes
    keep their shares, and texts that are equal but for case and white space stay together. A single text is cut at ends of
    paragraphs into train, valid and test, in this order. `Dataset.notes` says what was found and done.

    Raises FileNotFoundError, or ValueError with the rows at fault: a spreadsheet's row numbers (.csv, .tsv) or lines (.jsonl).
    """
    _check(label, kind, labels, valid, test)
    tables = read_tables(Path(path).expanduser(), encoding)
    unlabelled = tables.pop("unlabelled", None)
    columns = choose_columns(tables["train"], text, label, kind or ("classification" if labels else None))
    rows = {name: _rows(table, choose_columns(table, text, label, columns.kind)) for name, table in tables.items()}
    names = _names(tables["train"], rows["train"], labels) if columns.kind == "classification" else ()
    given = {name: _split(tables[name], found, names, labels is not None) for name, found in rows.items()}
    shares = {name: share for name, share in zip(SPLITS[1:], (valid, test)) if share and name not in given}
    made, how = _take(tables["train"].source, given["train"], shares, seed)
    splits: dict[str, Split] = {name: (given | made)[name] for name in SPLITS if name in given | made}
    notes = [_about_columns(tables["train"], columns), *(note for table in tables.values() for note in table.notes), *how,
             *_about_rows(splits, names)]
    if unlabelled:                              # after the notes: its rows may repeat those of train, and have no label
        splits["unlabelled"] = _unlabelled(unlabelled, columns, text, splits)
    return Dataset(Path(path).resolve().stem, names, splits, "", kind=columns.kind, notes=tuple(notes))


def _check(label: str | None, kind: str | None, labels: Sequence[str] | None, valid: float, test: float) -> None:
    """Refuses arguments that mean nothing or do not go together."""
    if kind not in (None, *KINDS):
        raise ValueError(f"read: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if label is not None and kind in ("text", "chat") or labels is not None and kind not in (None, "classification"):
        raise ValueError(f"read: kind={kind!r} takes no {'label' if labels is None else 'labels'}. Leave one of the two out")
    if labels is not None and (isinstance(labels, str) or len(set(map(str, labels))) < max(2, len(labels))):
        raise ValueError(f'read: labels must be two different names or more, as in ["no", "yes"], got {labels!r}')
    if not (valid >= 0 and test >= 0 and valid + test < 1):
        raise ValueError(f"read: valid and test are shares of the rows and must leave some for train, got {valid=}, {test=}. "
                         "Usual is 0.1 each")


def choose_columns(table: Table, text: str | None, label: str | None, kind: str | None) -> Columns:
    """The columns that `text` and `label` name, else those with usual names, and the kind that follows from them.

    Of two columns of which one is the label, the other is the text. Raises ValueError, with the columns, where one is missing.
    """
    for column, option in ((text, "text"), (label, "label")):
        if column is not None and column not in table.columns:
            _no_column(table, f"named {column!r}", option, near=column)
    usual = text is None and label is None and kind is None
    if kind == "chat" or usual and _find(table, ["messages"]):
        return Columns("chat", [text or _find(table, ["messages"]) or _no_column(table, "of messages", "text")])
    if kind == "completion" or usual and _find(table, PROMPTS) and _find(table, COMPLETIONS):
        prompt = text or _find(table, PROMPTS, label) or _no_column(table, "of prompts", "text")
        target = label or _find(table, COMPLETIONS, prompt) or _no_column(table, "of completions", "label")
        context = None if text else _find(table, CONTEXTS, prompt)
        return Columns("completion", [prompt, context] if context else [prompt], target)
    if kind != "text":
        label = label or _find(table, LABELS, text)
    text = text or _find(table, TEXTS, label)
    if text is None and label and len(table.columns) == 2:
        text = next(column for column in table.columns if column != label)
    if label is None and kind == "classification":
        _no_column(table, "of labels", "label")
    return Columns("classification" if label else "text", [text or _no_column(table, "of texts", "text")], label or "")


def _find(table: Table, names: list[str], other: str | None = None) -> str | None:
    """The column with the first of the usual names that the table has, `other` aside."""
    columns = {column.casefold(): column for column in table.columns if column != other}
    return next((columns[name] for name in names if name in columns), None)


def _no_column(table: Table, what: str, option: str, near: str = "") -> NoReturn:
    closest = get_close_matches(near, table.columns, n=1) or table.columns
    columns = ", ".join(f"{column!r:.40}" for column in table.columns[:12])
    raise ValueError(f"read: {table.source}: no column {what} among {columns}. Name one, as in {option}={closest[0]!r:.40}; "
                     "the first row of .csv and .tsv must hold the columns' names")


def _rows(table: Table, columns: Columns) -> dict[str, tuple[str, Any]]:
    """(text, label or Example or None) of each row by its place, or one error for all rows at fault."""
    rows, faults = {}, []
    for place, row in table.rows.items():
        where = f"{table.source.name}, {place}"
        try:
            rows[place] = _row(row, columns, where)
            rows[place][0].encode()             # JSON can hold half a character, which no tokenizer takes
        except ValueError as fault:
            faults.append(f"{place}: {str(fault).removeprefix(f'{where}: ')}")
    refuse(table.source, faults, "Correct these rows or leave them out")
    return rows


def _row(row: dict[str, Any], columns: Columns, where: str) -> tuple[str, Any]:
    if columns.kind == "chat":
        example = Example.chat(row.get(columns.texts[0]), where)            # type: ignore[arg-type]
    elif columns.kind == "completion":
        parts = [_text(row, column) for column in columns.texts if column == columns.texts[0] or row.get(column)]
        end = "" if columns.target.casefold() == "completion" else "\n"
        example = Example.completion("\n".join(parts) + end, _text(row, columns.target), where)
    else:
        return _text(row, columns.texts[0]), _label(row, columns.target) if columns.target else None
    return example.text, example


def _label(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    return str(value).lower() if isinstance(value, int) else _text(row, column, "a word, a whole number, true or false").strip()


def _text(row: dict[str, Any], column: str, wanted: str = "a text") -> str:
    value = row.get(column)
    if value is None or isinstance(value, str) and not value.strip():
        raise ValueError(f"{column!r} is {'missing' if value is None else 'empty'}")
    if not isinstance(value, str):
        raise ValueError(f"{column!r} must be {wanted}, got {value!r:.40}")
    return value


def _unlabelled(table: Table, columns: Columns, text: str | None, splits: dict[str, Split]) -> Split:
    """The texts of a table without labels, each once, but for those that stand in valid or test."""
    if columns.kind != "classification":
        raise ValueError(f"read: {table.source}: unlabelled texts go beside labelled ones, and this data set is of kind "
                         f"{columns.kind!r}. Read them by themselves")
    rows = _rows(table, choose_columns(table, text if text in table.columns else None, None, "text"))
    held_out = [text for name in ("valid", "test") if name in splits for text in splits[name].texts]
    return Split(without((text for text, _ in rows.values()), held_out))


def _names(table: Table, rows: dict[str, tuple[str, Any]], labels: Sequence[str] | None) -> tuple[str, ...]:
    """The labels given, else those found: numbers in their order, then words."""
    found = {label for _, label in rows.values()}
    if len(found) < 2:
        raise ValueError(f"read: {table.source}: every row has the label {found.pop()!r}; a classifier needs two or more. Is "
                         'it the right column? For the texts alone pass kind="text"')
    numbers = {label: float(label) for label in found if NUMBER.fullmatch(label)}
    return tuple(map(str, labels or sorted(found, key=lambda label: (label not in numbers, numbers.get(label), label))))


def _split(table: Table, rows: dict[str, tuple[str, Any]], names: tuple[str, ...], named: bool) -> Split:
    """The rows as a split, labels as indices into `names`; where the user `named` them, the file may hold the numbers."""
    texts, found = [text for text, _ in rows.values()], [found for _, found in rows.values()]
    if not names:
        return Split(texts, examples=None if found[0] is None else found)
    index, numbers = {name: i for i, name in enumerate(names)}, ""
    if named and not any(map(NUMBER.fullmatch, names)):
        index = {"false": 0, "true": 1} | {str(i): i for i in range(len(names))} | index
        numbers = f" or a number from 0 to {len(names) - 1}"
    unknown = {place: label for place, (_, label) in rows.items() if label not in index}
    near = [f". Did you mean {name!r}?" for label in [*unknown.values()][:1] for name in get_close_matches(label, names, n=1)]
    refuse(table.source, [f"{place}: label {label!r} is unknown" for place, label in unknown.items()],
           f"Expected {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}{numbers}{''.join(near)}")
    return Split(texts, np.array([index[label] for label in found], np.int64))


def _take(source: Path, train: Split, shares: dict[str, float], seed: int) -> tuple[dict[str, Split], list[str]]:
    """Train without what is taken for the splits in `shares`, these, and notes on how."""
    if not shares:
        return {"train": train}, []
    parts = " and ".join(f"{name} ({100 * share:.3g} %)" for name, share in shares.items())
    if len(train) == 1 and train.examples is None:
        try:
            pieces = cut(train.texts[0], shares)
        except ValueError as short:
            raise ValueError(f"read: {source}: {short}") from short
        return {name: Split([text]) for name, text in pieces.items()}, [f"The text was cut; its end is {parts}."]
    made = divide(train, shares, seed)
    return made, [f"Taken at random from the {len(train):,} rows of train: {parts}; seed {seed}; equal texts stayed together.",
                  *(f"There are too few rows for {name}." for name in shares if name not in made)]


def _about_columns(table: Table, columns: Columns) -> str:
    """A sentence on what the rows are and which columns were taken."""
    labels = "labels" if columns.kind == "classification" else "completions"
    others = [repr(column) for column in table.columns if column not in (*columns.texts, columns.target)]
    return (f"Read as {columns.kind}: texts from {' and '.join(map(repr, columns.texts))}"
            + (f", {labels} from {columns.target!r}" if columns.target else "")
            + (f"; not used: {', '.join(others)}" if others else "") + ".")


def _about_rows(splits: dict[str, Split], names: tuple[str, ...]) -> list[str]:
    """Sentences on repeated texts, within and across splits, on texts under several labels, and on labels without a row."""
    repeated: Counter[tuple[str, str]] = Counter()
    disputed = []
    for places in duplicates(splits) if max(map(len, splits.values())) > 1 else []:
        rows = Counter(split for split, _ in places)
        repeated.update({(split, split): count - 1 for split, count in rows.items()})
        repeated.update({(first, second): rows[second] for first, second in combinations(rows, 2)})
        if names and len({splits[split].labels[row] for split, row in places}) > 1:         # type: ignore[index]
            disputed.append(splits[places[0][0]].texts[places[0][1]])
    alike = Counter(name.casefold() for name in names)
    present = set() if splits["train"].labels is None else set(splits["train"].labels.tolist())
    return [*(f"Rows of {second} that repeat a text of {first}, case and white space aside: {repeated[first, second]:,}."
              for first, second in combinations_with_replacement(splits, 2) if repeated[first, second]),
            *([f"Texts under more than one label: {len(disputed):,}, such as {disputed[0]!r:.60}."] if disputed else []),
            *(f"Labels that differ in case alone are different: {', '.join(n for n in names if n.casefold() == name)}."
              for name, count in alike.items() if count > 1),
            *(f"No row of train has the label {name!r}." for i, name in enumerate(names) if i not in present)]
