"""The tables of ChestX-ray14: entries, boxes and lists, of both releases."""

import csv
import difflib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datamodules.decoding.readers import read_table_bytes
from datamodules.files.errors import DataError
from datamodules.files.pseudonyms import remember
from datamodules.records.records import NO_FINDING

FINDINGS = (  # in the order of NIH's paper and of nearly every classifier since
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
MAX_AGE = 110  # above, the first release has typing errors up to 414 years
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position")
_NAME = re.compile(r"([0-9]{8})_[0-9]{3}\.png")  # patient, number of the follow-up
_AGE = re.compile(r"([0-9]{1,4})([YMD]?)")  # 058Y, 009M, 001D in the first release, 58 in the second
_PER_YEAR = {"": 1, "Y": 1, "M": 12, "D": 365}
ORIGINAL_SIZE = 1024  # pixels per side; what the boxes refer to


class Entry(NamedTuple):
    """What the table says of an image.

    Attributes:
        labels: Its findings in the order of ``FINDINGS``; empty = no finding.
        age: Whole years, or None if the table's value cannot be an age.
        sex: "M" or "F".
        view: "PA" or "AP".
    """

    labels: tuple[str, ...]
    age: int | None
    sex: str
    view: str


@dataclass(frozen=True)
class Box:
    """Where a finding is, in pixels of the 1024x1024 original; x and y are the upper left corner."""

    finding: str
    x: float
    y: float
    width: float
    height: float


def read_table(path: Path) -> dict[str, Entry]:
    """Read NIH's table of either release: the entry of each image, by its name.

    Columns are found by name. Those after the first seven are not used: their names hold commas, which split them.

    Raises:
        DataError: With file and line, if anything in it cannot be right.
    """
    found: dict[str, Entry] = {}
    labels_of: dict[str, tuple[str, ...]] = {}  # 112,120 rows have at most 836 different texts
    for line, (name, labels, patient, age, sex, view) in _rows(path, _COLUMNS):
        where = f"{path}, line {line}"
        match = _NAME.fullmatch(name)
        if match is None:
            raise DataError(f"{where}: image {shown(name)} is not named like 00000013_004.png")
        if not re.fullmatch("[0-9]{1,8}", patient) or int(patient) != int(match[1]):
            raise DataError(f"{where}: patient {shown(patient)} contradicts the image's name {name}")
        if name in found:
            raise DataError(f"{where}: {name} is listed twice")
        if labels not in labels_of:
            labels_of[labels] = _labels(labels, where)
        if sex not in ("M", "F"):
            raise DataError(f"{where}: sex {shown(sex)} is neither M nor F")
        if view not in ("PA", "AP"):
            raise DataError(f"{where}: view {shown(view)} is neither PA nor AP")
        remember((name, name[:8]))
        found[name] = Entry(labels_of[labels], _age(age, where), sex, view)
    if not found:
        raise DataError(f"{path}: holds no image")
    return found


def about(entry: Entry) -> dict[str, str]:
    """Return sex, view and, where known, age of an entry."""
    age = {} if entry.age is None else {"age": str(entry.age)}
    return {"sex": entry.sex, "view": entry.view, **age}


def read_boxes(path: Path) -> dict[str, list[Box]]:
    """Read ``BBox_List_2017.csv``: the boxes of each image, by its name.

    Raises:
        DataError: With file and line, if anything in it cannot be right.
    """
    found: dict[str, list[Box]] = {}
    for line, (name, finding, *numbers) in _rows(path, ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")):
        where = f"{path}, line {line}"
        finding = "Infiltration" if finding == "Infiltrate" else finding
        if not _NAME.fullmatch(name):
            raise DataError(f"{where}: image {shown(name)} is not named like 00000013_004.png")
        if finding not in FINDINGS:
            raise DataError(f"{where}: {unknown_finding(finding)}")
        try:
            x, y, width, height = (float(number) for number in numbers)
        except ValueError as error:
            raise DataError(f"{where}: a box needs four numbers ({shown(str(error))})") from error
        inside = 0 <= x and 0 <= y and x + width <= ORIGINAL_SIZE and y + height <= ORIGINAL_SIZE
        if not (inside and width > 0 and height > 0):  # false for nan and inf too
            raise DataError(f"{where}: box {x}, {y}, {width}, {height} does not lie in {ORIGINAL_SIZE}x{ORIGINAL_SIZE}")
        found.setdefault(name, []).append(Box(finding, x, y, width, height))
    if not found:
        raise DataError(f"{path}: holds no box")
    return found


def read_list(path: Path) -> frozenset[str]:
    """Read one of NIH's lists: an image name per line, the last one without a line end.

    Raises:
        DataError: With file and line, if a line is not an image's name.
    """
    names = set()
    for line, text in enumerate(_text(path).split("\n"), start=1):
        name = text.strip()
        if name and not _NAME.fullmatch(name):
            raise DataError(f"{path}, line {line}: {shown(name)} is not named like 00000013_004.png")
        names.add(name)
    names.discard("")
    if not names:
        raise DataError(f"{path}: lists no image")
    return frozenset(names)


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield line number and the cells of the named columns of each row."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    places: list[int] = []
    width, previous = 0, 0
    try:
        for cells in reader:
            line, previous = previous + 1, reader.line_num
            if line != reader.line_num:
                raise DataError(f"{path}, line {line}: a quoted cell does not end on this line")
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not places:
                places = _places(path, line, cells, columns)
                continue
            width = width or len(cells)  # not that of the header, which may have empty cells at its end
            if len(cells) != width or width <= max(places):
                expected = max(width, max(places) + 1)
                raise DataError(f"{path}, line {line}: has {len(cells)} cells, expected {expected}")
            yield line, tuple([cells[place] for place in places])
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: is not readable as CSV ({error})") from error
    if not places:
        raise DataError(f"{path}: is empty")


def _places(path: Path, line: int, header: list[str], columns: tuple[str, ...]) -> list[int]:
    wrong = [name for name in columns if header.count(name) != 1]
    if wrong:
        raise DataError(
            f"{path}, line {line}: has no column {' and no column '.join(map(repr, wrong))}, or has it twice; "
            f"its header is {shown(', '.join(header), 200)}"
        )
    return [header.index(name) for name in columns]


def _text(path: Path) -> str:
    raw = read_table_bytes(path)
    try:
        return raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: is not text ({error.reason} in UTF-8)") from error


def _labels(text: str, where: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split("|")]
    if names == [NO_FINDING]:
        return ()
    if NO_FINDING in names:
        raise DataError(f"{where}: {shown(text)} is both without and with a finding")
    for name in names:
        if name not in FINDINGS:
            raise DataError(f"{where}: {unknown_finding(name)}")
    return tuple(finding for finding in FINDINGS if finding in names)


def _age(text: str, where: str) -> int | None:
    match = _AGE.fullmatch(text)
    if match is None:
        raise DataError(f"{where}: age {shown(text)} is not written like 58, 058Y, 009M or 001D")
    years = int(match[1]) // _PER_YEAR[match[2]]
    return years if years <= MAX_AGE else None


def shown(text: str, length: int = 60) -> str:
    """Return the beginning of a text, quoted."""
    return repr(text[:length] + "..." if len(text) > length else text)


def unknown_finding(name: str) -> str:
    """Say that a finding is none, and which is the nearest."""
    nearest = difflib.get_close_matches(name[:60], (*FINDINGS, NO_FINDING), n=1, cutoff=0.0)
    return f"{shown(name)} is not a finding; the nearest is {nearest[0]!r}"
