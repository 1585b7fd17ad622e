"""What a mammogram's DICOM header says: view, side, chest wall, and why to leave it out."""

import re
from typing import TYPE_CHECKING

import numpy as np

from datamodules.decoding.dicom_headers import attribute

if TYPE_CHECKING:
    from pydicom import Dataset

SIDES = {"L": "LEFT", "R": "RIGHT", "LEFT": "LEFT", "RIGHT": "RIGHT"}
MAGNIFIED_FROM = 1.2  # a contact view has about 1.07: the breast lies some centimetres above the detector
VIEW_CODES = {"R-10242": "CC", "399162004": "CC", "R-10226": "MLO", "399368009": "MLO"}
MAGNIFICATION_CODES = {"R-102D6", "399163009"}
_AGE, _PER_YEAR = re.compile(r"([0-9]{1,3})([YMWD])"), {"Y": 1, "M": 12, "W": 52, "D": 365}
_CLIPS = re.compile(r"(?<!no )(?<!without )\bclips?\b", re.IGNORECASE)
REASONS = ("implant", "magnification", "clips", "for_processing", "multi_frame")


def tag_view(header: "Dataset") -> str | None:
    """Return "CC", "MLO", another view's name or None. CBIS-DDSM keeps it in PatientOrientation."""
    position = str(attribute(header, "ViewPosition") or "").strip().upper()
    if position:
        return position
    orientation = header.get("PatientOrientation")
    if orientation in ("CC", "MLO"):
        return str(orientation)
    codes = [str(item.get("CodeValue", "")) for item in attribute(header, "ViewCodeSequence") or []]
    return next((VIEW_CODES[value] for value in codes if value in VIEW_CODES), None)


def tag_side(header: "Dataset") -> str | None:
    """Return "LEFT", "RIGHT" or None."""
    for keyword in ("FrameLaterality", "ImageLaterality", "Laterality"):
        side = SIDES.get(str(attribute(header, keyword) or "").strip().upper())
        if side:
            return side
    return None


def tag_about(header: "Dataset") -> dict[str, str]:
    """Return sex and age in whole years, as far as the header tells them."""
    found = {}
    sex = str(header.get("PatientSex") or "").strip().upper()
    if sex in ("F", "M"):
        found["sex"] = sex
    if age := _AGE.fullmatch(str(header.get("PatientAge") or "").strip().upper()):
        found["age"] = str(int(age[1]) // _PER_YEAR[age[2]])
    return found


def tag_chest_wall(header: "Dataset") -> str | None:
    """Return the border at which the chest wall lies, "left", "right" or None.

    PatientOrientation says first whereto the rows run (DICOM PS3.3 C.7.6.1.1.1): away from the chest wall if that is
    anterior ("A"), towards it if it is posterior ("P").
    """
    orientation = attribute(header, "PatientOrientation")
    if orientation is None or isinstance(orientation, str) or len(orientation) != 2:  # CBIS-DDSM has the view there
        return None
    rows = str(orientation[0]).strip().upper()
    if ("A" in rows) == ("P" in rows):
        return None
    return "left" if "A" in rows else "right"


def tag_reasons(header: "Dataset") -> tuple[str, ...]:
    """Return the reasons for which the tags suggest to leave an image out."""
    views = list(attribute(header, "ViewCodeSequence") or [])
    factor = attribute(header, "EstimatedRadiographicMagnificationFactor")
    modifiers = [item for holder in (header, *views) for item in holder.get("ViewModifierCodeSequence") or []]
    magnified = (
        any(str(item.get("CodeValue", "")) in MAGNIFICATION_CODES for item in modifiers)
        or any("magnification" in str(item.get("CodeMeaning", "")).lower() for item in modifiers)
        or str(attribute(header, "PartialView") or "").strip().upper() == "YES"
        or np.max(np.asarray(factor or 1.0, dtype=float)) > MAGNIFIED_FROM
    )
    comments = f"{header.get('ImageComments') or ''} {header.get('SeriesDescription') or ''}"
    reasons = {
        "implant": str(attribute(header, "BreastImplantPresent") or "").strip().upper() == "YES",
        "magnification": magnified,
        "clips": bool(_CLIPS.search(comments)),
        "for_processing": str(header.get("PresentationIntentType") or "").strip().upper() == "FOR PROCESSING",
        "multi_frame": int(header.get("NumberOfFrames") or 1) > 1,
    }
    return tuple(reason for reason in REASONS if reasons[reason])


def oblique(view: str | None) -> str | None:
    """Return a view as the data sets know it: ML counts as MLO."""
    return "MLO" if view == "ML" else view


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,|;]+", text.lower()) if word]
