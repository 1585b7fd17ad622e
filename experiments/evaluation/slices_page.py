"""The page and the table of slices: where a generator is worse than elsewhere."""

import csv
import html
import io
from pathlib import Path

from experiments.evaluation.page import OWN_STYLE, picture
from experiments.evaluation.slices import AT_MOST
from experiments.evaluation.slices_found import Slice, Slices, nothing_worse, sentence
from experiments.evaluation.slices_parts import Part
from experiments.measuring.rows import Row, in_half_widths, is_bad
from experiments.measuring.scoring import Sets
from experiments.record.report import STYLE, csv_cell, text_of
from experiments.record.run_directory import write_text

SHOWN = 8  # images of each kind in a slice
SLICE_STYLE = """
.map td { text-align: center } .map td:first-child { text-align: left }
.bad1 { background: #fde0d2 } .bad2 { background: #f7a889 } .bad3 { background: #d9573f; color: #fff }
.good { background: #d5e5f2 } .even { background: #e6f2e8 } .worse { font-weight: 700; outline: 2px solid #a50f15 }
.named { border-left: 4px solid #a50f15; background: #fdeeea; padding: .5rem 1rem }
"""
STEPS = ((1.0, "even"), (3.0, "bad1"), (10.0, "bad2"))  # half-widths of the floor; beyond the last is bad3


def write_slices(folder: Path, what: str, slices: Slices, sets: Sets) -> None:
    """Write ``slices.html``, which opens without network, and ``slices.csv``.

    Args:
        folder: Where they are written.
        what: What was evaluated.
        slices: What was found.
        sets: Where pictures come from.
    """
    _write_csv(folder / "slices.csv", slices)
    title = f"Slices of {what}"
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title>",
        f"<style>{STYLE}{OWN_STYLE}{SLICE_STYLE}</style><h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(slices.how)}</p>",
        "<p class=note>This file shows real images beside generated ones. Treat it as patient data.</p>",
        "<h2>Worse than elsewhere</h2>",
        _worse(slices),
        "<h2>All scores, by slice</h2>",
        _map(slices),
        _how_to_read(slices),
        "<h2>The slices</h2>",
        _sizes(slices),
        *(_details(part, sets) for part in slices.found),
    ]
    write_text(folder / "slices.html", "\n".join(parts))
    (folder / "slices.html").chmod(0o600)


def _worse(slices: Slices) -> str:
    if not slices.worse:
        said = nothing_worse(slices)
        return f"<p>{said[0].upper()}{said[1:]}.</p>"
    listed = "".join(f"<li>{html.escape(sentence(part, row))}" for part, row in slices.worse)
    return f"<div class=named><ul>{listed}</ul></div>"


def _map(slices: Slices) -> str:
    """Return how far every score of every slice lies from its floor: scores of different units in one table."""
    shown = [part for part in slices.found if part.rows]
    names = list(dict.fromkeys(row["name"] for part in shown for row in part.rows if "low" in row))
    head = "".join(f"<th>{html.escape(part.by)}<br>{html.escape(part.name)}" for part in shown)
    body = ""
    for name in names:
        rows = [next((row for row in part.rows if row["name"] == name), None) for part in shown]
        body += f"<tr><td>{html.escape(name.replace('_', ' '))}{''.join(map(_cell, rows))}"
    return f"<div class=scroll><table class=map><tr><th>score{head}{body}</table></div>"


def _cell(row: Row | None) -> str:
    if row is None or "low" not in row:
        return "<td>-"
    value = in_half_widths(row, row["at_floor_size"])
    colour = "good" if value < -1 else next((name for limit, name in STEPS if value <= limit), "bad3")
    if row.get("worse"):
        return f"<td class='{colour} worse'>{value:+.1f}*"
    return f"<td class={colour}>{value:+.1f}"


def _how_to_read(slices: Slices) -> str:
    return (
        "<p>Each number says how far the score lies from the middle of its floor, in half-widths of the floor; above 1 "
        "is worse than the floor. The floor is real images of the slice in place of generated ones, at the same "
        "number of images. An asterisk and a frame mark what is worse than its floor and, by more than chance, further "
        "from it than elsewhere: the same score of as many images that are not in the slice, with their own floor "
        f"(one-sided; corrected for all {slices.tests} differences, Holm 1979). Of each set at most {AT_MOST:,} images "
        'of a slice are taken. "share" is the share of the images that belong to the slice; worse means fewer than '
        'among the real ones. "reached" is the share of the slice\'s real images that have a generated image nearby, '
        "among all generated ones.</p>"
    )


def _sizes(slices: Slices) -> str:
    told = any(part.agreement is not None for part in slices.found)
    head = "<th>slice<th>real images<th>generated images" + ("<th>kappa<th>area<th>" if told else "<th>")
    body = ""
    for part in slices.found:
        body += f"<tr><td>{html.escape(text_of(part.title))}<td>{len(part.real):,}<td>{len(part.generated):,}"
        if told:
            body += f"<td>{part.agreement:.2f}<td>{part.auc:.2f}" if part.agreement is not None else "<td>-<td>-"
        body += f"<td>{html.escape(part.refused)}"
    note = (
        "<p>Kappa (Cohen 1960) says how well the classifier agrees with the labels of real images of patients that it "
        "has not seen: 0 is chance, 1 perfect. Area: under its ROC curve. What it cannot tell is not scored.</p>"
    )
    return f"<div class=scroll><table><tr>{head}{body}</table></div>{note if told else ''}"


def _details(part: Slice, sets: Sets) -> str:
    if not part.rows:
        return ""
    head = "".join(
        f"<th>{name}"
        for name in (
            "score",
            "value",
            "95 % interval",
            "at half size",
            "floor at half size",
            "elsewhere (floor)",
            "p",
            "",
        )
    )
    body = "".join(_row(row) for row in part.rows)
    opened = " open" if any(row.get("worse") for row in part.rows) else ""
    return (
        f"<details{opened}><summary>{html.escape(text_of(part.title))}</summary>{_pictures(part, sets)}"
        f"<div class=scroll><table><tr>{head}{body}</table></div></details>"
    )


def _pictures(part: Slice, sets: Sets) -> str:
    if part.refused:
        return ""
    figures = ""
    for caption, images, rows in (("Real", sets.real, part.real), ("Generated", sets.generated, part.generated)):
        if len(rows):
            shown = Part(images, rows[:SHOWN])
            figures += (
                f"<figure>{picture(shown.read(0, len(shown)), 4)}<figcaption>{caption}, not selected</figcaption>"
            )
            figures += "</figure>"
        else:
            figures += f"<figure><figcaption>{caption}: none</figcaption></figure>"
    return f"<div class='pair grid'>{figures}</div>"


def _row(row: Row) -> str:
    name = html.escape(row["name"].replace("_", " "))
    if row["value"] is None:
        return f"<tr><td>{name}<td colspan=7>not measured: {html.escape(row['refused'])}"
    cells = [text_of(row["value"]), "-", "-", "-", "-", "-"]
    if "low" in row:
        cells[1] = f"{row['low']:.4g} to {row['high']:.4g}"
        cells[2] = text_of(row["at_floor_size"])
        cells[3] = f"{row['floor_low']:.4g} to {row['floor_high']:.4g}"
    if "elsewhere" in row:
        value, floor = row["elsewhere"]
        cells[4] = f"{value:.4g} ({floor:.4g})"
    if "p" in row:
        cells[5] = f"{row['p']:.2g}{'*' if row['worse'] else ''}"
    words = ["outside" if i == 2 and is_bad(row) else "" for i in range(len(cells))]
    shown = "".join(f"<td class='{word}'>{html.escape(cell)}" for word, cell in zip(words, cells, strict=True))
    return f"<tr><td>{name}{shown}<td>{html.escape('; '.join(row['warnings']))}"


def _write_csv(path: Path, slices: Slices) -> None:
    columns = ("name", "value", "low", "high", "at_floor_size", "floor", "floor_low", "floor_high", "verdict", "better")
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    head = ["by", "slice", "real", "generated", *columns, "elsewhere", "floor_elsewhere", "difference", "p", "worse"]
    writer.writerow([*head, "refused", "warnings"])
    for part in slices.found:
        about = [csv_cell(part.by), csv_cell(part.name), len(part.real), len(part.generated)]
        if part.refused:
            writer.writerow([*about, *[""] * (len(head) - 4), csv_cell(part.refused), ""])
        for row in part.rows:
            values = [row.get(column) for column in columns] + [*row.get("elsewhere", (None, None))]
            values += [row.get("difference"), row.get("p"), row.get("worse")]
            cells = ["" if value is None else csv_cell(value) for value in values]
            said = [csv_cell(row.get("refused", "")), csv_cell("; ".join(row.get("warnings", ())))]
            writer.writerow([*about, *cells, *said])
    write_text(path, buffer.getvalue())
