"""What the studies of instruments keep in their folder: finished rows to go on from, and the table of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.pages.text import csv_text
from experiments.record.run_directory import write_text


def finished(record: Path) -> list[dict[str, Any]]:
    """Return the rows that an earlier call has written with ``append_rows``; no file = none."""
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


def publish(rows: Sequence[Sequence[str]], path: Path) -> None:
    """Print rows of text in columns, the head first, and write them as CSV."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print("\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows))
    write_text(path, csv_text(rows))
