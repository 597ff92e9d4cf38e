"""History: what was measured while training, a row an evaluation."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend import Array
from ..formats.folder import write_text
from ..show import training_curves


@dataclass
class Best:
    """The evaluation that did best so far: its step, what was measured on `valid`, and the trained weights then."""

    step: int
    measured: dict[str, float]
    weights: dict[str, Array]


class History:
    """Rows of {column: number}. `history["loss"]` is a column.

    The same training gives the same rows, except for "tokens_per_second" and "peak_mb", the most memory that the process
    held so far, in MB of 2^20 bytes (on Windows there is no such column).
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def __getitem__(self, column: str) -> list[float]:
        return [row[column] for row in self.rows if column in row]

    def __len__(self) -> int:
        return len(self.rows)

    def to_csv(self, file: str | Path) -> None:
        """Writes all rows as a table with a header, whole or not at all."""
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(file, text.getvalue())

    def write(self, folder: str | Path) -> None:
        """Writes history.csv and history.jsonl, each whole or not at all."""
        self.to_csv(Path(folder) / "history.csv")
        write_text(Path(folder) / "history.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))

    def plot(self, file: str | Path | None = None, title: str = "") -> Any:
        """The losses and the rate over the steps. Returns the matplotlib Figure, written to `file` if given."""
        return training_curves(self.rows, file, title)
