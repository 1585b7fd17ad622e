"""Values as text: for pages, terminals and spreadsheets."""

import csv
import io
from collections.abc import Iterable
from typing import Any


def text_of(value: Any) -> str:
    """Return a value as short, printable text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(character if character.isprintable() else " " for character in text)  # a terminal obeys some others


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # false for NaN


def csv_cell(value: Any) -> str:
    """Return a text that spreadsheets do not take for a formula, or a number, written out or not, as it is."""
    if is_number(value):
        return str(value)
    text = text_of(value)
    if not text.startswith(("=", "+", "-", "@")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Return rows as CSV, each cell by ``csv_cell``; None is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows(["" if cell is None else csv_cell(cell) for cell in row] for row in rows)
    return buffer.getvalue()
