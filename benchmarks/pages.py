"""Figures into pages: what a script measured stands between marks that name it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from minitune.formats.folder import write_text


def write_between_marks(file: Path, name: str, lines: list[str]) -> None:
    """Replaces what stands in a file between `<!-- name: ... -->` and `<!-- end of name -->`."""
    text = file.read_text(encoding="utf-8")
    mark = re.compile(f"<!-- {name}: .*?<!-- end of {name} -->", re.DOTALL)
    if not mark.search(text):
        sys.exit(f"{file} has no place for {name}: add '<!-- {name}: --> <!-- end of {name} -->' to it")
    script = Path(sys.argv[0]).name
    whole = "\n".join([f"<!-- {name}: written by benchmarks/{script} -->", *lines, f"<!-- end of {name} -->"])
    write_text(file, mark.sub(lambda _: whole, text))
