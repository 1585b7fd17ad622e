"""One patient under several spellings: after a spreadsheet, a table says 7 or 7.0 where a file says 00007."""

import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

log = logging.getLogger(__name__)

# Ids of a table that are taken for one patient because their DICOM tag is the same; an anonymised tag has more.
MOST_IDS = 3


def patient_key(spelling: str) -> str:
    """Return what all spellings of an id have in common.

    Case, blanks, quotation marks, the Unicode form (full-width digits, composed letters), leading zeros of every
    number and an id's ".0" do not matter: 00007, 7 and 7.0 are one id, and so are "P007" and "p7 ".
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", spelling).casefold())
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")  # e.g. zero-width blanks
    text = " ".join(text.strip("'\"= \t").split())
    text = re.sub(r"(\d+)[.,]0{0,2}", r"\1", text) if re.fullmatch(r"\d+[.,]0{0,2}", text) else text
    return re.sub(r"(?<!\d)0+(?=\d)", "", text)


def one_name_per_patient(spellings: Sequence[str], tags: Sequence[str], files: Sequence[str], where: str) -> list[str]:
    """Return the patient of each image under one name, the first of its spellings in order.

    Ids with the same ``patient_key`` are one patient. So are up to ``MOST_IDS`` ids whose files have the same DICOM tag
    PatientID, unless it has no number or is the same in all files: those are anonymised, and the table is followed.
    Ids are joined rather than only warned of, because a patient in two parts spoils every score, while two patients
    taken for one only make the split a little coarser. How many were joined is said in the log.

    Args:
        spellings: Id of each image's patient in the table, the file's name or wherever the layout has it.
        tags: The DICOM tag PatientID of each image, "" where there is none.
        files: Name of each image, for the log: it hides names of files, but not ids as short as "7".
        where: The data set, for the log.
    """
    keys = [patient_key(spelling) for spelling in spellings]
    by_tag: dict[str, set[str]] = defaultdict(set)
    for key, tag in zip(keys, map(patient_key, tags), strict=True):
        if re.search("[1-9]", tag):
            by_tag[tag].add(key)
    joined = _joined(by_tag.values()) if len(by_tag) > 1 else {}
    patients = [joined.get(key, key) for key in keys]
    _say_rounded([file for file, spelling in zip(files, spellings, strict=True) if _is_rounded(spelling)], where)
    said: dict[str, dict[str, str]] = defaultdict(dict)  # of each patient the spellings, each with a file
    for patient, spelling, file in zip(patients, spellings, files, strict=True):
        said[patient].setdefault(spelling, file)
    _say_joined([list(by_spelling.values()) for by_spelling in said.values() if len(by_spelling) > 1], where)
    shared = {tag for tag, ids in by_tag.items() if len({joined.get(key, key) for key in ids}) > 1}
    _say_shared([file for file, tag in zip(files, tags, strict=True) if patient_key(tag) in shared], where)
    return [min(said[patient]) for patient in patients]


def _joined(alike: Iterable[set[str]]) -> dict[str, str]:
    """Return one id for all that are linked by being alike, where these are few enough."""
    linked: dict[str, set[str]] = {}
    for ids in alike:
        whole = ids.union(*(linked.get(one, ()) for one in ids))
        linked.update(dict.fromkeys(whole, whole))
    return {one: min(ids) for one, ids in linked.items() if len(ids) <= MOST_IDS}


def _is_rounded(spelling: str) -> bool:
    """Return whether a spreadsheet has written a long number as 1.23457E+11: its last digits are lost."""
    return re.fullmatch(r"\d([.,]\d+)?e\+\d{2,3}", spelling.strip("'\"= \t").casefold()) is not None


def _say_rounded(files: list[str], where: str) -> None:
    if files:
        log.warning(
            "%s: the patients of %d files are numbers that a spreadsheet has rounded (like 1.23457E+11), e.g. that of "
            "%s: different patients may have become one, and one may have two ids; export the column as text",
            where,
            len(files),
            files[0],
        )


def _say_joined(files_of_patients: list[list[str]], where: str) -> None:
    if files_of_patients:
        log.warning(
            "%s: %d patients are spelled in several ways (equal as numbers, or with the same DICOM tag PatientID) and "
            "each is taken as one, e.g. the patient of %s; correct the table if these are several people",
            where,
            len(files_of_patients),
            " and ".join(files_of_patients[0]),
        )


def _say_shared(files: list[str], where: str) -> None:
    if files:
        log.warning(
            "%s: %d files share their DICOM tag PatientID with files of other patients, e.g. %s; the tag is not "
            "followed (either it is anonymised, or the patients are wrong)",
            where,
            len(files),
            files[0],
        )
