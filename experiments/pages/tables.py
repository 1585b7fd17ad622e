"""Tables of a page. One that is wider than the page scrolls in its own box."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from experiments.pages.elements import Html, element


@dataclass(frozen=True)
class Cell:
    """A cell that is marked, or takes several columns.

    Attributes:
        text: What it shows.
        kind: Its classes in the style, e.g. "good" or "bad".
        columns: How many it takes.
    """

    text: str
    kind: str = ""
    columns: int = 1


def table(head: Sequence[str], rows: Iterable[Sequence[str | Cell]], kind: str = "") -> Html:
    """Return a table.

    Args:
        head: Titles of the columns.
        rows: The cells of each row, texts, HTML or ``Cell``.
        kind: "" = numbers after a first column of words; "words" = words in all columns, "last" = sentences in the
            last, or both; "map" = coloured numbers.
    """
    top = element("tr", *(element("th", title) for title in head))
    body = (element("tr", *map(_cell, row)) for row in rows)
    return element("div", element("table", top, *body, kind=kind), kind="scroll")


def _cell(cell: str | Cell) -> Html:
    if isinstance(cell, str):
        return element("td", cell)
    wide = {"colspan": str(cell.columns)} if cell.columns > 1 else {}
    return element("td", cell.text, kind=cell.kind, **wide)
