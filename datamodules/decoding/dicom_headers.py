"""DICOM headers: what a file says of itself besides its pixels, wherever the standard lets it say so.

Enhanced objects keep rescale, window and laterality in functional groups (DICOM PS3.3 C.7.6.16.2.8 to .10): these come
before the top level. A tag can carry a name, so messages put what a header says between marks (``quoted``): only the
terminal shows it.
"""

import io
import logging
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.decoding.readers import DICOM
from datamodules.files.errors import UnreadableImageError
from datamodules.files.files import in_threads
from datamodules.files.pseudonyms import quoted

if TYPE_CHECKING:
    from pydicom import Dataset  # imported when the first file is read: it costs 0.3 s

MAX_DEFLATED = 2**28  # bytes that a file may unpack to as it is opened: the pixels at 2 bytes each, and a header
HEADER = (
    "Modality",
    "PresentationIntentType",
    "SeriesDescription",
    "PatientID",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "PresentationLUTShape",
    "SeriesInstanceUID",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ViewPosition",
    "ImageLaterality",
    "Laterality",
    "PatientOrientation",
    "ViewCodeSequence",
    "ViewModifierCodeSequence",
    "PartialView",
    "EstimatedRadiographicMagnificationFactor",
    "BreastImplantPresent",
    "ImageComments",
)
GREY = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}  # and the PresentationLUTShape that says the same
# Functional groups whose values belong together, and what must be there, either this or that, lest they are as good as
# absent: a centre without a width is no window.
VALUES, WINDOW = "PixelValueTransformationSequence", "FrameVOILUTSequence"
_MACROS = {
    VALUES: (("RescaleSlope", "RescaleIntercept"),),
    WINDOW: (("WindowCenter", "WindowWidth"), ("VOILUTSequence",)),
}
CONTRADICTION = (
    "PresentationLUTShape contradicts PhotometricInterpretation, which is followed, as viewers do (MONOCHROME1: low "
    "values are white)"
)
_PYDICOM = r"pydicom\b|datamodules\.dicom(_headers)?$"


class Refused(ValueError):
    """What is wrong with a file, in our own words."""


def read_header(path: Path) -> "Dataset":
    """Read only the tags that data sets sort images by (``HEADER``); far quicker than the whole file.

    Raises:
        UnreadableImageError: With the file's name, if it is no DICOM file or one of the tags is damaged.
    """
    with named_errors(path):
        dataset = open_dicom(path, stop_before_pixels=True, specific_tags=list(HEADER))
        for keyword in HEADER:
            dataset.get(keyword)  # values are decoded at first use: damage must show here
            attribute(dataset, keyword)
        integer(dataset, "NumberOfFrames")
        return dataset


def header_or_none(path: Path) -> "Dataset | None":
    """Return the header of a DICOM file, None if there is none: reading the image will say what is wrong with it."""
    if path.suffix.lower() not in DICOM:
        return None
    try:
        return read_header(path)
    except UnreadableImageError:
        return None


def attribute(dataset: "Dataset", keyword: str) -> Any:
    """Return a value from the functional groups of the first frame, else from the top level; None if it is nowhere."""
    for group in _groups(dataset):
        macros = (element.value[:1] for element in group if element.VR == "SQ")
        for item in (group, *(item for items in macros for item in items)):
            if _is_there(item, keyword):
                return item.get(keyword)
    return dataset.get(keyword)


def contradicts_itself(header: "Dataset") -> bool:
    """Return whether PresentationLUTShape and PhotometricInterpretation disagree on which end is white.

    MONOCHROME1 goes with INVERSE, MONOCHROME2 with IDENTITY (PS3.3 C.11.6, C.8.11.3). Viewers follow the latter, and so
    do we: files are known whose shape is wrong.
    """
    expected = GREY.get(str(header.get("PhotometricInterpretation")))
    shape = str(header.get("PresentationLUTShape") or "").strip().upper()
    return expected is not None and shape in GREY.values() and shape != expected


def contradicting(paths: Sequence[Path]) -> list[Path]:
    """Return the files of which ``contradicts_itself`` is true."""
    headers = in_threads(header_or_none, paths)
    return [path for path, header in zip(paths, headers, strict=True) if header and contradicts_itself(header)]


def can_show_otherwise(path: Path) -> bool:
    """Return whether version 2 can show a file otherwise than version 1, or show it at all (``versions.CHANGES``)."""
    try:
        header = read_header(path)
        compressed = header.file_meta.TransferSyntaxUID.is_compressed
        allocated, stored = int(header.BitsAllocated), int(header.BitsStored)
        signed = int(header.PixelRepresentation) == 1
        grouped = any(holder_of(header, macro) is not header for macro in (VALUES, WINDOW))
        bits = stored < allocated and (stored <= 8 or signed)
        return grouped or (compressed and bits)
    except Exception:  # such a file was refused and is refused
        return False


def holder_of(dataset: "Dataset", macro: str) -> "Dataset":
    """Return what holds the values of a functional group: the frame's, that of all frames, or the top level."""
    for group in _groups(dataset):
        for item in (group.get(macro) or [])[:1]:
            if any(all(_is_there(item, keyword) for keyword in needed) for needed in _MACROS[macro]):
                return item
    return dataset


def _groups(dataset: "Dataset") -> list["Dataset"]:
    """Return the functional groups of the first frame and those of all frames, as far as there are any."""
    names = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
    return [group for name in names for group in (dataset.get(name) or [])[:1]]


def _is_there(dataset: "Dataset", keyword: str) -> bool:
    element = dataset.get_item(keyword)
    value = None if element is None else element.value
    return value is not None and (not hasattr(value, "__len__") or len(value) > 0)


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn whatever pydicom and its decoders raise (on damaged files: nearly anything) into one error with a name."""
    try:
        yield
    except Refused as error:
        raise UnreadableImageError(f"{path.name}: {error}") from error
    except OSError as error:
        said = error.strerror or quoted(str(error).replace(str(path), path.name))
        raise UnreadableImageError(f"{path.name}: cannot be read ({said})") from error
    except Exception as error:
        said = quoted(str(error).replace(str(path), path.name))
        raise UnreadableImageError(f"{path.name}: is damaged ({type(error).__name__} {said})") from error


def open_dicom(path: Path, **arguments: Any) -> "Dataset":
    """Open a file with pydicom's ``dcmread``, whose arguments these are, quietly and within bounds.

    Raises:
        Refused: If it is no DICOM file, or would unpack to more than ``MAX_DEFLATED``.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    # What pydicom warns of is either harmless or refused here. The filter is set for good, not around each call:
    # files are read by threads, and catch_warnings is not safe with them.
    if not any(getattr(entry[3], "pattern", None) == _PYDICOM for entry in warnings.filters):
        warnings.filterwarnings("ignore", module=_PYDICOM)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    try:
        with _Bounded(path) as file:
            return dcmread(file, **arguments)
    except InvalidDicomError as error:
        raise Refused("is not a DICOM file (it has no DICM preamble)") from error


class _Bounded(io.BufferedReader):
    """A file of which nobody can be given a deflated rest that would fill the memory.

    pydicom reads a whole rest only to unpack it at once, and a deflated file may grow a thousandfold.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1) -> bytes:
        """Return so many bytes, or the rest; raise ValueError if the rest unpacks to more than ``MAX_DEFLATED``."""
        data = super().read(size)
        if size is None or size < 0:
            unpacker, packed, unpacked = zlib.decompressobj(-zlib.MAX_WBITS), data, 0
            with suppress(zlib.error):  # not deflated, or damaged: pydicom will say so
                while packed and unpacked <= MAX_DEFLATED:
                    unpacked += len(unpacker.decompress(packed, 2**24))
                    packed = unpacker.unconsumed_tail
            if unpacked > MAX_DEFLATED:
                raise Refused(f"unpacks to more than {MAX_DEFLATED // 2**20} MiB")
        return data


def numbers(dataset: "Dataset", keyword: str) -> list[float]:
    """Return the numbers of a tag that may be absent, empty, single or multi-valued."""
    try:
        value = dataset.get(keyword)
        numbers = np.atleast_1d(np.asarray([] if value in (None, "") else value, dtype=np.float64))
    except (ValueError, TypeError, OverflowError) as error:
        raise _no_number(keyword, "number", error) from error
    if not np.isfinite(numbers).all():
        raise _no_number(keyword, "finite number", numbers)
    return numbers.tolist()


def integer(dataset: "Dataset", keyword: str, otherwise: int = 0) -> int:
    """Return the whole number of a tag, or another one if the tag is absent or empty."""
    try:
        value = dataset.get(keyword)
        return otherwise if value in (None, "") else int(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise _no_number(keyword, "whole number", error) from error


def _no_number(keyword: str, kind: str, said: object) -> Refused:
    comma = "; it has a comma, DICOM writes decimals with a point" if "," in str(said) else ""
    return Refused(f"its {keyword} is no {kind} ({quoted(said)}){comma}")
