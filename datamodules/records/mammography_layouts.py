"""Where mammography data sets keep their images, patients, views and sides: one function per layout.

View and side come from the DICOM tags, else from the file's name, else from the data set's CSV. Where they contradict
each other, the first of them wins, and the contradictions are counted in the log. Exam lists in .pkl files are never
opened: unpickling runs whatever code the file holds.
"""

import csv
import io
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from datamodules.decoding.dicom import read_dicom
from datamodules.decoding.dicom_headers import CONTRADICTION, contradicts_itself, header_or_none
from datamodules.decoding.readers import DICOM, PICTURES, read_grey, read_table_bytes
from datamodules.files.errors import DataError, UnreadableImageError
from datamodules.files.files import find_files, in_threads, walk_files
from datamodules.files.pseudonyms import quoted, remember
from datamodules.records.mammography_tags import (
    REASONS,
    SIDES,
    _words,
    oblique,
    tag_about,
    tag_chest_wall,
    tag_reasons,
    tag_side,
    tag_view,
)
from datamodules.records.patients import patient_key

if TYPE_CHECKING:
    from pydicom import Dataset

log = logging.getLogger(__name__)
Row = dict[str, str]

UNKNOWN = "unknown patient of "  # begins the group of a file whose header cannot be read

_COLUMNS = ("file", "patient", "view", "side", "exclude")  # of a folder's CSV
_VIEW_IN_NAME = re.compile(r"(?<![A-Za-z])(L|R|LEFT|RIGHT)[-_ ]?(CC|MLO)(?![A-Za-z])", re.IGNORECASE)
_CBIS = re.compile(r"(?:Calc|Mass)-(?:Test|Training)_(P_\d+)_(LEFT|RIGHT)_(CC|MLO)(_\d+)?")
_INBREAST = re.compile(r"(\d+)_([0-9a-f]+)_MG_([LR])_(CC|MLO|ML)_ANON", re.IGNORECASE)
_EXAM = re.compile(r"(\d+)_[LR][-_](?:CC|MLO)(_benign|_malignant)?")  # 0_L-CC.png; a suffix marks a lesion's mask


@dataclass(frozen=True)
class Found:
    """One image of a layout.

    Attributes:
        path: Its file.
        patient: Whose image it is; images of one patient never lie in two splits.
        view: "CC", "MLO", another view's name, or None if it is not known.
        side: "LEFT", "RIGHT" or None.
        excluded: Reasons (of ``REASONS``) for which it may be left out.
        chest_wall: Border at which the chest wall lies by the file's PatientOrientation: "left", "right" or None.
        tag: The file's PatientID, "" if it has none.
        size: Rows and columns by a DICOM header; None = not known.
        about: What header or table say besides, as text: sex, age in years, columns of a table that have no meaning
            here.
    """

    path: Path
    patient: str
    view: str | None
    side: str | None
    excluded: tuple[str, ...] = ()
    chest_wall: str | None = None
    tag: str = ""
    size: tuple[int, int] | None = None
    about: dict[str, str] = field(default_factory=dict)


class _Notes:
    """Counts what was odd, with examples, and logs it once at the end."""

    def __init__(self) -> None:
        self.examples: dict[str, list[str]] = defaultdict(list)

    def add(self, what: str, example: str) -> None:
        self.examples[what].append(example)

    def log(self, root: Path) -> None:
        for what, examples in self.examples.items():
            log.warning("%s: %d files: %s, e.g. %s", root, len(examples), what, examples[0])


# Layouts ----------------------------------------------------------------------------------------------------------


def cbis_ddsm(root: Path, content: Literal["full", "crops"], missing_ok: float) -> list[Found]:
    """CBIS-DDSM: TCIA's tree of DICOM files, or PNG files named like its cases.

    Full mammograms, crops and masks are told apart by header and pixels: folders called "ROI mask images" hold crops,
    and the CSVs name crop and mask the wrong way round for some cases.
    """
    notes, found, cases = _Notes(), [], set()
    paths = find_files(root, DICOM | {".png"})
    headers = dict(zip(paths, in_threads(header_or_none, paths), strict=True))
    kinds = in_threads(lambda path: _cbis_kind(path, headers[path], content), paths)
    for path, kind in zip(paths, kinds, strict=True):
        case = _cbis_case(path, headers[path])
        if case is None:
            notes.add("left out, neither header nor name tells the case", path.name)
        elif kind == content:
            cases.add(case.group(0))
            named = (case.group(3), case.group(2))
            found.append(_found(path, headers[path], case.group(1), notes, ("its case", named)))
    column = "image_file_path" if content == "full" else "cropped_image_file_path"
    lists = sorted(path for path in walk_files(root) if path.match("*case_description*.csv"))
    listed = {row[column].split("/")[0] for path in lists for row in read_cbis_csv(path)}
    _check_missing(f"the CSVs of {root}", listed, listed - cases, missing_ok)
    notes.log(root)
    return found


def inbreast(root: Path, missing_ok: float) -> list[Found]:
    """INbreast: ``<image>_<patient's hash>_MG_<L|R>_<CC|ML>_ANON.dcm``; its ML is the oblique view (MLO)."""
    notes, found, images = _Notes(), [], set()
    lists = sorted(path for path in walk_files(root) if path.match("INbreast*.csv"))
    rows = [row for path in lists for row in read_rows(path, ("File Name",))]
    by_image = {row["File Name"]: row for row in rows}
    paths = find_files(root, DICOM)
    for path, header in zip(paths, in_threads(header_or_none, paths), strict=True):
        name = _INBREAST.match(path.name)
        if name is None:
            notes.add("left out, not named <image>_<patient>_MG_<L|R>_<view>_ANON.dcm", path.name)
            continue
        image, patient, side, view = name.groups()
        images.add(image)
        row = by_image.get(image, {})
        in_csv = (oblique(row.get("View", "").upper() or None), SIDES.get(row.get("Laterality", "").upper()))
        in_name = (oblique(view.upper()), SIDES[side.upper()])
        found.append(_found(path, header, patient, notes, ("its name", in_name), ("the CSV", in_csv), view_of=oblique))
    _check_missing(f"the CSV of {root}", set(by_image), by_image.keys() - images, missing_ok)
    notes.log(root)
    return found


def vindr(root: Path, missing_ok: float) -> list[Found]:
    """VinDr-Mammo: ``images/<study>/<image>.dicom`` (or .dcm, .png); a study is all images of one patient."""
    notes, found = _Notes(), []
    rows: dict[str, Row] = {}
    for name in ("breast-level_annotations.csv", "finding_annotations.csv"):
        if (root / name).is_file():
            columns = ("study_id", "image_id", "laterality", "view_position")
            rows |= {row["image_id"]: row for row in read_rows(root / name, columns)}
    images = root / "images" if (root / "images").is_dir() else root
    paths = find_files(images, DICOM | {".png"})
    for path, header in zip(paths, in_threads(header_or_none, paths), strict=True):
        row = rows.get(path.stem, {})
        in_csv = (row.get("view_position", "").upper() or None, SIDES.get(row.get("laterality", "").upper()))
        patient = row.get("study_id") or path.parent.name
        found.append(_found(path, header, patient, notes, ("the CSV", in_csv)))
    _check_missing(f"the CSVs of {root}", set(rows), rows.keys() - {path.stem for path in paths}, missing_ok)
    notes.log(root)
    return found


def folder(root: Path, csv_path: Path | None, missing_ok: float) -> list[Found]:
    """Any folder of DICOM, PNG or JPEG files, with a CSV (file, patient, perhaps view, side, exclude) or without."""
    notes = _Notes()
    if csv_path is not None:
        found = _folder_by_csv(root, csv_path, missing_ok, notes)
    else:
        found = _folder_by_names(root, notes)
    notes.log(root)
    return found


def _folder_by_csv(root: Path, csv_path: Path, missing_ok: float, notes: _Notes) -> list[Found]:
    rows: dict[Path, Row] = {}
    for row in read_rows(csv_path, ("file", "patient")):
        if not row["file"] or not row["patient"]:
            raise DataError(f"{csv_path}: a row has no file or no patient: {row}; complete it")
        unknown = set(_words(row.get("exclude", ""))) - set(REASONS)
        if unknown:
            raise DataError(
                f"{csv_path}: exclude={row['exclude']!r} of {row['file']!r} must be of {', '.join(REASONS)}"
            )
        listed = rows.setdefault(_below(root, row["file"], csv_path), row)
        if patient_key(listed["patient"]) != patient_key(row["patient"]):
            raise DataError(f"{csv_path}: {row['file']!r} is listed with two patients")
    paths = sorted(path for path in rows if path.is_file())
    _check_missing(str(csv_path), {str(path) for path in rows}, {str(p) for p in rows.keys() - set(paths)}, missing_ok)
    found = []
    for path, header in zip(paths, in_threads(header_or_none, paths), strict=True):
        row = rows[path]
        in_csv = (row.get("view", "").upper() or None, SIDES.get(row.get("side", "").upper()))
        one = _found(path, header, row["patient"], notes, ("its name", _from_name(path)), ("the CSV", in_csv))
        excluded = tuple(sorted({*one.excluded, *_words(row.get("exclude", ""))}))
        others = {name.lower(): value for name, value in row.items() if name and name not in _COLUMNS and value}
        found.append(replace(one, excluded=excluded, about={**one.about, **others}))
    return found


def _folder_by_names(root: Path, notes: _Notes) -> list[Found]:
    found, unknown = [], []
    paths = find_files(root, DICOM | PICTURES)
    for path, header in zip(paths, in_threads(header_or_none, paths), strict=True):
        exam = _EXAM.fullmatch(path.stem)
        if exam and exam.group(2):
            notes.add("left out, they are masks of lesions", path.name)
            continue
        patient = str(header.get("PatientID") or "").strip() if header is not None else ""
        if not patient and exam:
            patient = exam.group(1)
        if not patient and path.suffix.lower() in DICOM and header is None:
            patient = f"{UNKNOWN}{path.name}"  # refused when it is read, and so counted
        if not patient:
            unknown.append(path)
            continue
        found.append(_found(path, header, patient, notes, ("its name", _from_name(path))))
    if unknown:
        raise DataError(
            f"data.root={root}: of {len(unknown)} files the patient is not known, e.g. {unknown[0].name}; images of a "
            "patient must not lie in two splits. Pass data.csv=FILE with columns file and patient (view, side, exclude)"
        )
    return found


def _below(root: Path, name: str, csv_path: Path) -> Path:
    """Return the path of a file that a CSV names, which may be a stranger's: it must lie below the root."""
    if name.isprintable() and Path(os.path.realpath(root / name)).is_relative_to(os.path.realpath(root)):
        return root / name
    raise DataError(
        f"{csv_path}: file {name[:60]!r} does not lie below data.root={root} (perhaps by a symbolic link); correct the "
        "list, or choose a root that holds all of its files"
    )


# One image --------------------------------------------------------------------------------------------------------


def _found(
    path: Path,
    header: "Dataset | None",
    patient: str,
    notes: _Notes,
    *sources: tuple[str, tuple[str | None, str | None]],
    view_of: Callable[[str | None], str | None] = lambda view: view,
) -> Found:
    """Merge what tags and other sources say of view and side, the first that says anything wins."""
    tags = (None, None) if header is None else (view_of(tag_view(header)), tag_side(header))
    chosen: list[str | None] = [None, None]
    for said_by, said in (("its tags", tags), *sources):
        for i, what in enumerate(("view", "side")):
            if chosen[i] is None:
                chosen[i] = said[i]
            elif said[i] is not None and said[i] != chosen[i]:
                pair = quoted(f"{chosen[i]}, {said[i]}")
                notes.add(f"{what} contradicts {said_by}, which is not followed", f"{path.name} ({pair})")
    if header is not None and contradicts_itself(header):
        notes.add(CONTRADICTION, path.name)
    remember((path.name, patient))
    found = Found(path, patient, chosen[0], chosen[1])
    if header is None:
        return found
    tag = str(header.get("PatientID") or "").strip()
    rows, columns = header.get("Rows"), header.get("Columns")
    size = (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None
    return replace(
        found,
        excluded=tag_reasons(header),
        chest_wall=tag_chest_wall(header),
        tag=tag,
        size=size,
        about=tag_about(header),
    )


def view_of(path: Path) -> str | None:
    """Return "CC", "MLO", another view's name or None, by a file's DICOM tags, else by its name."""
    header = header_or_none(path)
    return (None if header is None else tag_view(header)) or _from_name(path)[0]


def _from_name(path: Path) -> tuple[str | None, str | None]:
    match = _VIEW_IN_NAME.search(path.stem)
    return (match.group(2).upper(), SIDES[match.group(1).upper()]) if match else (None, None)


def _cbis_case(path: Path, header: "Dataset | None") -> re.Match[str] | None:
    names = [str(header.get("PatientID") or "")] if header is not None else []
    return next((match for name in (*names, *reversed(path.parts)) if (match := _CBIS.search(name))), None)


def _cbis_kind(path: Path, header: "Dataset | None", content: str) -> str:
    """Return "full", "crops" or "mask". Only where the headers do not decide it is the file decoded."""
    case = _cbis_case(path, header)
    numbered = case is not None and case.group(4) is not None  # of a lesion, not of a mammogram
    if path.suffix.lower() in PICTURES:
        kind = "full" if path.stem.endswith("=full") else "crops"
    else:
        description = str(header.get("SeriesDescription") or "").lower() if header is not None else ""
        kind = (
            "full"
            if "full" in description or not (numbered or "crop" in description or "mask" in description)
            else "crops"
        )
        if kind == "crops" and header is not None and header.get("BitsAllocated") == 8:
            return "mask"
    if kind == "crops" and content == "crops" and case is not None:
        try:
            values = read_grey(path) if path.suffix.lower() in PICTURES else read_dicom(path)
        except UnreadableImageError:
            return kind  # reading it again will fail, be counted and say why
        if len(np.unique(values)) <= 2:
            return "mask"
    return kind


# CSVs -------------------------------------------------------------------------------------------------------------


def read_cbis_csv(path: Path) -> list[Row]:
    """Read one of the four CSVs of CBIS-DDSM: columns with underscores ("breast_density"), paths without line ends."""
    rows = [{name.replace(" ", "_"): value for name, value in row.items()} for row in read_rows(path, ("patient_id",))]
    needed = ("image_file_path", "cropped_image_file_path", "ROI_mask_file_path", "pathology")
    missing = [name for name in needed if name not in rows[0]]
    if missing:
        raise DataError(f"{path}: has no column {' and no column '.join(missing)}; it has {list(rows[0])}")
    return rows


def read_rows(path: Path, needed: tuple[str, ...]) -> list[Row]:
    """Read a CSV separated by commas or semicolons; names and values are stripped of blanks and line ends.

    Raises:
        DataError: With the file, if it cannot be read, holds no row or lacks one of the ``needed`` columns.
    """
    try:
        with io.StringIO(read_table_bytes(path).decode("utf-8-sig"), newline="") as file:
            header = file.readline()
            delimiter = ";" if header.count(";") > header.count(",") else ","
            file.seek(0)
            table = [[cell.strip() for cell in line] for line in csv.reader(file, delimiter=delimiter, strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is not a readable CSV file ({error})") from error
    names, *lines = table or [[]]
    missing = [name for name in needed if name not in names]
    if missing:
        raise DataError(f"{path}: has no column {' and no column '.join(missing)}; it has {names}")
    rows = [dict(zip(names, line + [""] * len(names), strict=False)) for line in lines if any(line)]
    if not rows:
        raise DataError(f"{path}: holds no row")
    return rows


def _check_missing(source: str, listed: Iterable[str], missing: Iterable[str], missing_ok: float) -> None:
    total, absent = len(set(listed)), sorted(missing)
    remember(absent)
    if not absent:
        return
    text = f"{source}: {len(absent)} of {total} listed images are not on disk, e.g. {absent[0]}"
    if len(absent) > missing_ok * total:
        raise DataError(
            f"{text}; if that is known, pass data.missing_ok={len(absent) / total:.3g} (it is {missing_ok:g})"
        )
    log.warning(text)
