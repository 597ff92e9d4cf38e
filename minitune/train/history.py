"""History: what was measured while training, a row an evaluation."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from ..formats.folder import write_text


class History:
    """Rows of {column: number}. `history["loss"]` is a column."""

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
