"""The page and the table of slices: where a generator is worse than elsewhere."""

from pathlib import Path
from typing import Any

from experiments.evaluation.slices import AT_MOST
from experiments.evaluation.slices_found import Slice, Slices, nothing_worse, sentence
from experiments.evaluation.slices_parts import Part
from experiments.measuring.rows import Row, in_half_widths, is_bad
from experiments.measuring.scoring import Sets
from experiments.pages.elements import REAL_IMAGES, Html, folded, heading, listed, page, paragraph
from experiments.pages.pictures import captioned, picture, side_by_side
from experiments.pages.tables import Cell, table
from experiments.pages.text import csv_text, text_of
from experiments.record.run_directory import write_text

SHOWN = 8  # images of each kind in a slice
STEPS = ((1.0, "even"), (3.0, "worse1"), (10.0, "worse2"))  # half-widths of the floor; beyond the last is worse3


def write_slices(folder: Path, what: str, slices: Slices, sets: Sets) -> None:
    """Write ``slices.html``, which opens without network, and ``slices.csv``.

    Args:
        folder: Where they are written.
        what: What was evaluated.
        slices: What was found.
        sets: Where pictures come from.
    """
    _write_csv(folder / "slices.csv", slices)
    parts = [
        paragraph(slices.how),
        REAL_IMAGES,
        heading("Worse than elsewhere"),
        _worse(slices),
        heading("All scores, by slice"),
        _map(slices),
        folded("How to read this", paragraph(_how_to_read(slices))),
        heading("The slices"),
        *_sizes(slices),
        *(_details(part, sets) for part in slices.found if part.rows),
    ]
    write_text(folder / "slices.html", page(f"Slices of {what}", *parts))
    (folder / "slices.html").chmod(0o600)


def _worse(slices: Slices) -> Html:
    if not slices.worse:
        said = nothing_worse(slices)
        return paragraph(f"{said[0].upper()}{said[1:]}.")
    return listed((sentence(part, row) for part, row in slices.worse), kind="named")


def _map(slices: Slices) -> Html:
    """Return how far every score of every slice lies from its floor: scores of different units in one table."""
    shown = [part for part in slices.found if part.rows]
    names = list(dict.fromkeys(row["name"] for part in shown for row in part.rows if "low" in row))
    rows = []
    for name in names:
        of_parts = [next((row for row in part.rows if row["name"] == name), None) for part in shown]
        rows.append([name.replace("_", " "), *map(_cell, of_parts)])
    return table(("score", *(f"{part.by} {part.name}" for part in shown)), rows, "map")


def _cell(row: Row | None) -> str | Cell:
    if row is None or "low" not in row:
        return "-"
    value = in_half_widths(row, row["at_floor_size"])
    colour = "better" if value < -1 else next((name for limit, name in STEPS if value <= limit), "worse3")
    return Cell(f"{value:+.1f}*", f"{colour} marked") if row.get("worse") else Cell(f"{value:+.1f}", colour)


def _how_to_read(slices: Slices) -> str:
    return (
        "Each number says how far the score lies from the middle of its floor, in half-widths of the floor; above 1 "
        "is worse than the floor. The floor is real images of the slice in place of generated ones, at the same "
        "number of images. An asterisk and a frame mark what is worse than its floor and, by more than chance, further "
        "from it than elsewhere: the same score of as many images that are not in the slice, with their own floor "
        f"(one-sided; corrected for all {slices.tests} differences, Holm 1979). Of each set at most {AT_MOST:,} images "
        'of a slice are taken. "share" is the share of the images that belong to the slice; worse means fewer than '
        'among the real ones. "reached" is the share of the slice\'s real images that have a generated image nearby, '
        "among all generated ones."
    )


def _sizes(slices: Slices) -> list[Html]:
    told = any(part.agreement is not None for part in slices.found)
    head = ("slice", "real images", "generated images", *(("kappa", "area") if told else ()), "")
    rows = []
    for part in slices.found:
        agreement = ["-", "-"] if part.agreement is None else [f"{part.agreement:.2f}", f"{part.auc:.2f}"]
        counts = [f"{len(part.real):,}", f"{len(part.generated):,}"]
        rows.append([text_of(part.title), *counts, *(agreement if told else []), part.refused])
    note = (
        "Kappa (Cohen 1960) says how well the classifier agrees with the labels of real images of patients that it "
        "has not seen: 0 is chance, 1 perfect. Area: under its ROC curve. What it cannot tell is not scored."
    )
    return [table(head, rows, "last"), *([paragraph(note)] if told else [])]


def _details(part: Slice, sets: Sets) -> Html:
    head = ("score", "value", "95 % interval", "at half size", "floor at half size", "elsewhere (floor)", "p", "")
    opened = any(row.get("worse") for row in part.rows)
    scores = table(head, map(_row, part.rows), "last")
    return folded(text_of(part.title), *_pictures(part, sets), scores, opened=opened)


def _pictures(part: Slice, sets: Sets) -> list[Html]:
    if part.refused:
        return []
    figures = []
    for caption, images, rows in (("Generated", sets.generated, part.generated), ("Real", sets.real, part.real)):
        if len(rows):
            shown = Part(images, rows[:SHOWN])
            figures.append(captioned(picture(shown.read(0, len(shown)), 4), f"{caption}, not selected"))
        else:
            figures.append(captioned(Html(), f"{caption}: none"))
    return [side_by_side(*figures)]


def _row(row: Row) -> list[str | Cell]:
    name = row["name"].replace("_", " ")
    if row["value"] is None:
        return [name, Cell(f"not measured: {row['refused']}", columns=7)]
    cells: list[str | Cell] = [name, text_of(row["value"]), "-", "-", "-", "-", "-"]
    if "low" in row:
        cells[2] = f"{row['low']:.4g} to {row['high']:.4g}"
        cells[3] = Cell(text_of(row["at_floor_size"]), "bad" if is_bad(row) else "")
        cells[4] = f"{row['floor_low']:.4g} to {row['floor_high']:.4g}"
    if "elsewhere" in row:
        value, floor = row["elsewhere"]
        cells[5] = f"{value:.4g} ({floor:.4g})"
    if "p" in row:
        cells[6] = f"{row['p']:.2g}{'*' if row['worse'] else ''}"
    return [*cells, "; ".join(row["warnings"])]


def _write_csv(path: Path, slices: Slices) -> None:
    columns = ("name", "value", "low", "high", "at_floor_size", "floor", "floor_low", "floor_high", "verdict", "better")
    head = ["by", "slice", "real", "generated", *columns, "elsewhere", "floor_elsewhere", "difference", "p", "worse"]
    lines: list[list[Any]] = [[*head, "refused", "warnings"]]
    for part in slices.found:
        about = [part.by, part.name, len(part.real), len(part.generated)]
        if part.refused:
            lines.append([*about, *[None] * (len(head) - 4), part.refused, None])
        for row in part.rows:
            values = [row.get(column) for column in columns] + [*row.get("elsewhere", (None, None))]
            values += [row.get("difference"), row.get("p"), row.get("worse")]
            lines.append([*about, *values, row.get("refused", ""), "; ".join(row.get("warnings", ()))])
    write_text(path, csv_text(lines))
