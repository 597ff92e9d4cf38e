"""Files and folders as tables: rows of named cells, and the place each row stands at, for errors."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

SPLITS = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid", "test": "test",
          "unlabelled": "unlabelled", "unlabeled": "unlabelled"}
SIGNATURES = {b"PK\x03\x04": "a zip archive or an Excel workbook (.xlsx). Unpack it, or save the sheet as CSV",
              b"\xd0\xcf\x11\xe0": "an old Excel or Word file. Save it as CSV or as text",
              b"%PDF": "a PDF. Save its text as .txt",
              b"\x1f\x8b": "gzip-compressed. Unpack it", b"\xfd7zXZ": "xz-compressed. Unpack it"}
LAYOUTS = ("a .txt, .csv, .tsv or .jsonl file; or a folder of train, valid and test (each such a file or folder), "
           "of a folder of .txt files for each label, or of .txt files")
LONGEST_CELL = 10_000_000       # characters; a quote left open would swallow the rest of any file
SHOWN = 3                       # how many of the rows at fault an error names


@dataclass(frozen=True)
class Table:
    """The rows of a file or folder, {column: cell}, by the place each stands at: "row 2", "line 1" or a file's name."""

    source: Path
    columns: list[str]
    rows: dict[str, dict[str, Any]]
    notes: tuple[str, ...] = ()                 # what a person should be told, such as what was not read


def refuse(source: Path, faults: list[str], repair: str) -> None:
    """Where there are faults, raises one ValueError that names the first of them, counts the rest and says the repair."""
    if faults:
        rest = f"; and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""
        raise ValueError(f"read: {source}: {'; '.join(faults[:SHOWN])}{rest}. {repair}")


def read_tables(path: Path, encoding: str) -> dict[str, Table]:
    """The table of each split that `path` holds; "train" alone where it names no splits.

    Raises FileNotFoundError or ValueError, with the layouts accepted, where there is nothing to read.
    """
    if not path.exists():
        near = get_close_matches(path.name, [entry.name for entry in path.parent.glob("*")], n=1)
        raise FileNotFoundError(f"read: there is no file or folder {path}. "
                                + (f"Did you mean {near[0]!r}?" if near else f"Expected {LAYOUTS}"))
    given: dict[str, Path] = {}
    for entry in sorted(path.iterdir()) if path.is_dir() else []:
        split = SPLITS.get(entry.stem.casefold())
        if split and (entry.is_dir() or entry.suffix.casefold() in READERS):
            if split in given:
                raise ValueError(f"read: {path}: {given[split].name} and {entry.name} are both {split}. Leave one of them")
            given[split] = entry
    if given and "train" not in given:
        raise ValueError(f"read: {path}: there is {' and '.join(entry.name for entry in given.values())} but no train to "
                         "learn from. Add one, such as train.csv, or read the other file by itself")
    return {split: (_read_folder if entry.is_dir() else _read_file)(entry, encoding)
            for split, entry in (given or {"train": path}).items()}


def _read_folder(folder: Path, encoding: str) -> Table:
    """Texts labelled by the subfolders they are in, else those of the folder itself."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    inside = {entry.name: _texts_in(entry) for entry in entries if entry.is_dir()}
    labelled, beside = [file for texts in inside.values() for file in texts], _texts_in(folder)
    if beside and sum(map(bool, inside.values())) == 1:         # one subfolder makes no classes
        labelled = []
    files, columns = (labelled, ["text", "folder"]) if labelled else (beside, ["text"])
    if not files:
        raise ValueError(f"read: {folder}: nothing to read. Expected {LAYOUTS}")
    rows = {file.relative_to(folder).as_posix(): (decode(file, encoding), file.parent.name) for file in files}
    unread = [file.name for file in beside] if labelled else []
    unread += [f"{name}/" for name, texts in inside.items() if not (labelled and texts)]
    notes = (f"Not read in {folder.name}: {', '.join(unread[:6])}{' ...' if len(unread) > 6 else ''}.",) if unread else ()
    return Table(folder, columns, {place: dict(zip(columns, cells)) for place, cells in rows.items()}, notes)


def _texts_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.casefold() == ".txt" and file.is_file())


def _read_file(file: Path, encoding: str) -> Table:
    reader = READERS.get(file.suffix.casefold())
    if reader is None:
        raise ValueError(f"read: {file}: expected {LAYOUTS}; got {file.suffix or 'no suffix'!r}. Save it as one of these")
    text = decode(file, encoding)
    if not text.strip():
        raise ValueError(f"read: {file} is empty. Is it the right file, and was it saved?")
    return reader(file, text)


def decode(file: Path, encoding: str) -> str:
    """The file's text, "\\n" at line ends, without a byte order mark; an error says where and what it is instead."""
    data = file.read_bytes()
    for signature, what in SIGNATURES.items():
        if data.startswith(signature):
            raise ValueError(f"read: {file} is not text but {what}")
    try:
        text = data.decode(encoding)
    except LookupError as error:
        raise ValueError(f"read: there is no encoding {encoding!r}. Usual ones: utf-8, utf-16, cp1252, latin-1") from error
    except UnicodeDecodeError as error:
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        repair = 'is UTF-16: pass encoding="utf-16"' if utf16 else 'may be Latin-1: pass encoding="latin-1"'
        before = data[: error.start].split(b"\n")
        raise ValueError(f"read: {file}: line {len(before)}: byte {len(before[-1]) + 1}, 0x{data[error.start]:02x}, is not "
                         f"{encoding}. The file {repair}, or save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f'read: {file} holds zero bytes: it is no text, or it is UTF-16, then pass encoding="utf-16"')
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _read_txt(file: Path, text: str) -> Table:
    return Table(file, ["text"], {file.name: {"text": text}})


def _read_csv(file: Path, text: str) -> Table:
    """Rows are numbered as in a spreadsheet, the header being row 1; blank ones are left out."""
    rows = {f"row {number}": cells for number, cells in enumerate(_records(file, text), 1) if any(map(str.strip, cells))}
    columns = [name.strip() for name in rows.pop(next(iter(rows)))]
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    refuse(file, [f"two columns are named {name!r}" for name in twice], "Rename one of them")
    if not rows:
        raise ValueError(f"read: {file}: expected rows below the header {columns}, got none. Was the whole sheet saved?")
    refuse(file, [f"{place}: {len(cells)} in place of {len(columns)} cells" for place, cells in rows.items()
                  if len(cells) != len(columns)], 'A text that holds the delimiter needs quotes around it, "like, this"')
    return Table(file, columns, {place: dict(zip(columns, cells)) for place, cells in rows.items()})


def _records(file: Path, text: str) -> list[list[str]]:
    """Every row's cells; the delimiter of .csv is the one that gives the first line most cells."""
    records, line, usual = [], 1, csv.field_size_limit(LONGEST_CELL)
    try:
        header = [text.lstrip("\n").partition("\n")[0]]
        delimiter = max("\t" if file.suffix.casefold() == ".tsv" else ",;\t",
                        key=lambda delimiter: len(next(csv.reader(header, delimiter=delimiter))))
        reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
        for cells in reader:
            records.append(cells)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"read: {file}: row {len(records) + 1}, from line {line} on: {error}. Is a quote left open? A text "
                         'that begins with a quote ends with one, and holds others twice: "say ""yes"""') from error
    finally:
        csv.field_size_limit(usual)
    return records


def _read_jsonl(file: Path, text: str) -> Table:
    rows, faults = {}, []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            faults.append(f"line {number}: {line[:40]!r}")
        elif line.strip():
            rows[f"line {number}"] = row
    refuse(file, faults, 'Expected one JSON object a line, as in {"text": "..."}')
    return Table(file, list(dict.fromkeys(column for row in rows.values() for column in row)), rows)


READERS = {".txt": _read_txt, ".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl}
