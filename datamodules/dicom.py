"""DICOM: one file -> the grey values that a viewer shows with the file's own settings.

Stored value -> modality LUT or rescale -> VOI LUT or window -> [0, 1] -> inverted for MONOCHROME1 -> padding is black
(DICOM PS3.3 C.7.6.3, C.11.1, C.11.2). A stored value has at most 16 bits, so the chain is computed once for each of the
65,536 values, in float64, and the pixels look it up. Enhanced objects keep rescale, window and laterality in functional
groups (C.7.6.16.2.8 to .10): these come before the top level.

A tag can carry a name, so messages put what a header says between marks (``quoted``): only the terminal shows it.
"""

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from datamodules.errors import UnreadableImageError
from datamodules.files import in_threads
from datamodules.pseudonyms import quoted
from datamodules.readers import DICOM, MAX_PIXELS

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
# The first that is installed decodes. Fed with damaged files, GDCM ends the process now and then (7 of 1,500 JPEG-LS,
# 1 of 1,500 JPEG 2000 files before the checks below), and pylibjpeg's RLE decoder panics; the others never did.
_DECODERS = ("pydicom", "pylibjpeg", "pillow", "gdcm")
_NEEDED = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
)
_GREY = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}  # and the PresentationLUTShape that says the same
# Functional groups whose values belong together, and what must be there, either this or that, lest they are as good as
# absent: a centre without a width is no window.
_VALUES, _WINDOW = "PixelValueTransformationSequence", "FrameVOILUTSequence"
_MACROS = {
    _VALUES: (("RescaleSlope", "RescaleIntercept"),),
    _WINDOW: (("WindowCenter", "WindowWidth"), ("VOILUTSequence",)),
}
_PYDICOM = r"pydicom\b|datamodules\.dicom$"
_STANDALONE = {0x01, *range(0xD0, 0xDA)}  # JPEG markers without a segment; none may stand before the scan
_SOF, _SOS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}, 0xDA  # JPEG markers: frame header, start of the scan


class _Refused(ValueError):
    """What is wrong with a file, in our own words."""


class Values(NamedTuple):
    """What the pixels of a file measure.

    Attributes:
        values: In the scanner's unit (H, W) float64.
        image: False where padding says that there is no image (H, W).
    """

    values: np.ndarray
    image: np.ndarray


def read_dicom(path: Path, window: int = 0, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Read a grey, single-frame image as it is meant to be shown.

    Args:
        path: The file; it must begin with a DICOM preamble.
        window: Which of the file's VOI LUTs (or windows, if it has no VOI LUT) is used. A file without any is shown
            over the whole range that its BitsStored and PixelRepresentation declare.
        value_range: Values that are black and white, in the unit that rescaling leads to (CT: HU), in place of all
            windows and VOI LUTs of the file; what lies outside is black or white. MONOCHROME1 inverts it, too.

    Returns:
        Array (H, W) float32 in [0, 1]; 1 is white whatever the photometric interpretation, padding is 0.

    Raises:
        UnreadableImageError: With the file's name and what is wrong with it.
    """
    with _named_errors(path):
        dataset = _open(path)
        values = _stored_values(dataset)
        bits = 8 * values.itemsize
        every = np.arange(2**bits, dtype=f"u{values.itemsize}")
        shown = _display(every.view(values.dtype), dataset, window, value_range)
        return shown.astype(np.float32)[np.ascontiguousarray(values).view(every.dtype)]


def read_values(path: Path) -> Values:
    """Read what the pixels of a grey, single-frame image measure, whatever its windows.

    Raises:
        UnreadableImageError: With the file's name and what is wrong with it.
    """
    with _named_errors(path):
        dataset = _open(path)
        stored = _stored_values(dataset)
        values, _, _ = _modality(stored.ravel().astype(np.float64), dataset)
        image = ~_is_padding(stored.ravel(), dataset)
        return Values(values.reshape(stored.shape), image.reshape(stored.shape))


def read_header(path: Path) -> "Dataset":
    """Read only the tags that data sets sort images by (``HEADER``); far quicker than the whole file.

    Raises:
        UnreadableImageError: With the file's name, if it is no DICOM file or one of the tags is damaged.
    """
    with _named_errors(path):
        dataset = _open(path, stop_before_pixels=True, specific_tags=list(HEADER))
        for keyword in HEADER:
            dataset.get(keyword)  # values are decoded at first use: damage must show here
            attribute(dataset, keyword)
        _integer(dataset, "NumberOfFrames")
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
    expected = _GREY.get(str(header.get("PhotometricInterpretation")))
    shape = str(header.get("PresentationLUTShape") or "").strip().upper()
    return expected is not None and shape in _GREY.values() and shape != expected


CONTRADICTION = (
    "PresentationLUTShape contradicts PhotometricInterpretation, which is followed, as viewers do (MONOCHROME1: low "
    "values are white)"
)


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
        grouped = any(_holder(header, macro) is not header for macro in (_VALUES, _WINDOW))
        bits = stored < allocated and (stored <= 8 or signed)
        return grouped or (compressed and bits)
    except Exception:  # such a file was refused and is refused
        return False


def _holder(dataset: "Dataset", macro: str) -> "Dataset":
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
def _named_errors(path: Path) -> Iterator[None]:
    """Turn whatever pydicom and its decoders raise (on damaged files: nearly anything) into one error with a name."""
    try:
        yield
    except _Refused as error:
        raise UnreadableImageError(f"{path.name}: {error}") from error
    except OSError as error:
        said = error.strerror or quoted(str(error).replace(str(path), path.name))
        raise UnreadableImageError(f"{path.name}: cannot be read ({said})") from error
    except Exception as error:
        said = quoted(str(error).replace(str(path), path.name))
        raise UnreadableImageError(f"{path.name}: is damaged ({type(error).__name__} {said})") from error


def _open(path: Path, **arguments: Any) -> "Dataset":
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
        raise _Refused("is not a DICOM file (it has no DICM preamble)") from error


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
                raise _Refused(f"unpacks to more than {MAX_DEFLATED // 2**20} MiB")
        return data


# Pixels -----------------------------------------------------------------------------------------------------------


def _stored_values(dataset: "Dataset") -> np.ndarray:
    """Return the stored integers (H, W), 8 or 16 bits, signed or not, in native byte order."""
    from pydicom.pixels import get_decoder

    _refuse_unsupported(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        name = syntax.name if syntax.name != syntax else quoted(syntax)  # of a list, or whatever the file says
        raise _Refused(f"its transfer syntax {name} is not supported") from error
    if not decoder.is_available:
        raise _Refused(f"no decoder for {syntax.name} is installed: {'; '.join(decoder.missing_dependencies)}")
    precision = _checked_precision(dataset) if syntax.is_encapsulated else None
    plugin = next((name for name in _DECODERS if name in decoder.available_plugins), "")
    options: dict[str, Any] = {"decoding_plugin": plugin} if syntax.is_encapsulated else {}
    if precision is not None and dataset.BitsStored < 8:
        # GDCM ends the process if a JPEG image of 8 bits is said to use 7; pydicom refuses such a JPEG-LS image.
        options["bits_stored"] = precision if "JPEG-LS" in syntax.name else 8
    try:
        values, _ = decoder.as_array(dataset, **options)
    except RuntimeError as error:  # what each decoder said; the name of the format helps to find another one
        raise _Refused(f"{syntax.name}: cannot be decoded ({quoted(error)})") from error
    if values.ndim != 2 or values.dtype.kind not in "iu" or values.itemsize > 2:
        raise _Refused(f"its pixels are {values.dtype} {values.shape}, expected are integers of up to 16 bits")
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return _signed(values, int(dataset.BitsStored)) if syntax.is_encapsulated else values


def _signed(values: np.ndarray, bits: int) -> np.ndarray:
    """Return signed values whose sign a codestream of more bits has left in the highest of theirs."""
    half = 2 ** (bits - 1)
    if values.dtype.kind == "i" and bits < 8 * values.itemsize and 0 <= values.min() and half <= values.max():
        return ((values & (2 * half - 1)) ^ half) - values.dtype.type(half)
    return values


def _refuse_unsupported(dataset: "Dataset") -> None:
    if "PixelData" not in dataset:
        raise _Refused("holds no image (no integer pixel data)")
    missing = [keyword for keyword in _NEEDED if dataset.get(keyword) in (None, "")]
    if missing:
        raise _Refused(f"its header has no {' and no '.join(missing)}, without which its pixels have no meaning")
    photometric = str(dataset.PhotometricInterpretation)
    if _integer(dataset, "SamplesPerPixel") != 1 or photometric not in _GREY:
        raise _Refused(f"is not a grey image (its photometric interpretation is {quoted(photometric)})")
    frames = _integer(dataset, "NumberOfFrames") or 1  # some writers put 0 where there is no further frame
    if frames != 1:
        raise _Refused(f"is a multi-frame image ({frames} frames); one file must hold one image")
    rows, columns = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    if not 0 < rows * columns <= MAX_PIXELS:
        raise _Refused(f"its header says {rows}x{columns} pixels; at most {MAX_PIXELS} are read")
    allocated, stored = _integer(dataset, "BitsAllocated"), _integer(dataset, "BitsStored")
    if allocated not in (8, 16):
        raise _Refused(f"has {allocated} bits per pixel; 8 and 16 are supported")
    if not 0 < stored <= allocated:
        raise _Refused(f"its header says {stored} of {allocated} bits are used")
    highest = _integer(dataset, "HighBit", stored - 1)
    if highest != stored - 1:
        raise _Refused(f"its highest bit is {highest}, for {stored} bits it must be {stored - 1}")


def _checked_precision(dataset: "Dataset") -> int | None:
    """Return the bits that JPEG pixels of any kind are said to have by their own header, None for other kinds.

    Refused are those that are cut off or whose header disagrees with the file's.

    Decoders fill up what is missing without a word and allocate whatever size a damaged codestream claims, and GDCM
    ends the whole process when the two headers disagree.
    """
    from pydicom.encaps import get_frame

    syntax = dataset.file_meta.TransferSyntaxUID
    if "JPEG" not in syntax.name:
        return None
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if b"\xff\xd9" not in frame[-16:]:  # end of image, perhaps with padding after it
        raise _Refused("its compressed pixel data is cut off")
    rows, columns, channels, precision = _jpeg2000_header(frame) if "2000" in syntax.name else _jpeg_header(frame)
    if (rows, columns, channels) != (dataset.Rows, dataset.Columns, 1):
        raise _Refused(
            f"its compressed image has {rows}x{columns} pixels of {channels} channels, "
            f"its header says {dataset.Rows}x{dataset.Columns} of 1"
        )
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    # Encoders write BitsStored or BitsAllocated; some fewer than are stored, where the values need no more.
    if not min(stored, allocated - 7) <= precision <= allocated:
        raise _Refused(
            f"its compressed image has {precision} bits, its header says that {stored} of {allocated} are used"
        )
    return precision


def _jpeg2000_header(frame: bytes) -> tuple[int, int, int, int]:
    """Return rows, columns, channels and bits of a JPEG 2000 codestream."""
    start = frame.find(b"\xff\x4f\xff\x51")  # not at 0 if the codestream is wrapped in a JP2 file
    if start < 0:
        raise _Refused("its compressed pixel data is not JPEG 2000")
    right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
    channels, precision = struct.unpack_from(">HB", frame, start + 40)
    return bottom - top, right - left, channels, (precision & 0x7F) + 1


def _jpeg_header(frame: bytes) -> tuple[int, int, int, int]:
    """Return rows, columns, channels and bits of a JPEG or JPEG-LS image whose markers are whole up to the scan."""
    found, position = [], 2
    while frame[:2] == b"\xff\xd8" and frame[position] == 0xFF and frame[position + 1] != _SOS:
        marker, length = struct.unpack_from(">xBH", frame, position)
        if marker in _STANDALONE:
            break
        if marker in _SOF:
            precision, rows, columns, channels = struct.unpack_from(">BHHB", frame, position + 4)
            found.append((rows, columns, channels, precision))
        position += 2 + length
    if frame[position : position + 2] != bytes((0xFF, _SOS)) or len(found) != 1:
        raise _Refused("its compressed pixel data is not a whole JPEG image")
    return found[0]


# Grey values ------------------------------------------------------------------------------------------------------


def _display(
    stored: np.ndarray, dataset: "Dataset", window: int, value_range: tuple[float, float] | None
) -> np.ndarray:
    """Map stored values (N,) to display values (N,) float64 in [0, 1]."""
    values, low, high = _modality(stored.astype(np.float64), dataset)
    if value_range is not None:
        shown = np.clip((values - value_range[0]) / (value_range[1] - value_range[0]), 0.0, 1.0)
    else:
        shown = _voi(values, low, high, dataset, window)
    if not np.isfinite(shown).all():
        raise _Refused("its window gives values that are not finite")
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 1.0 - shown
    shown[_is_padding(stored, dataset)] = 0.0
    return shown


def _modality(values: np.ndarray, dataset: "Dataset") -> tuple[np.ndarray, float, float]:
    """Return the values in the scanner's unit, with the range that the file declares for them."""
    if dataset.get("ModalityLUTSequence"):
        mapped, bits = _look_up(values, dataset.ModalityLUTSequence[0], dataset)
        return mapped, 0.0, 2.0**bits - 1
    bits = int(dataset.BitsStored)
    signed = int(dataset.PixelRepresentation) == 1
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    holder = _holder(dataset, _VALUES)
    slopes, intercepts = _numbers(holder, "RescaleSlope"), _numbers(holder, "RescaleIntercept")
    if not slopes or not intercepts:
        return values, low, high
    slope, intercept = slopes[0], intercepts[0]
    if slope == 0:
        raise _Refused("its rescale slope is 0")
    ends = sorted((low * slope + intercept, high * slope + intercept))  # a negative slope turns them round
    with np.errstate(over="ignore", invalid="ignore"):
        values = values * slope + intercept
    if not np.isfinite(values).all():
        raise _Refused("its rescale slope and intercept give values that are not finite")
    return values, ends[0], ends[1]


def _voi(values: np.ndarray, low: float, high: float, dataset: "Dataset", window: int) -> np.ndarray:
    """Map values to [0, 1] by the chosen VOI LUT, else the chosen window, else over the declared range."""
    holder = _holder(dataset, _WINDOW)
    luts = holder.get("VOILUTSequence") or []
    centers, widths = _numbers(holder, "WindowCenter"), _numbers(holder, "WindowWidth")
    available = len(luts) or min(len(centers), len(widths))
    if not 0 <= window < max(available, 1):
        raise _Refused(f"has {available} windows or VOI LUTs, data.window={window} asks for another (0 is the first)")
    if luts:
        mapped, bits = _look_up(values, luts[window], dataset)
        return mapped / (2.0**bits - 1)
    if not available:
        return np.clip((values - low) / (high - low), 0.0, 1.0)
    function = str(holder.get("VOILUTFunction") or "LINEAR").strip().upper()
    return _window(values, centers[window], widths[window], function)


def _window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """PS3.3 C.11.2.1.2 (LINEAR) and C.11.2.1.3 (SIGMOID, LINEAR_EXACT)."""
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise _Refused(f"its VOI LUT function {quoted(function)} is none of LINEAR, LINEAR_EXACT and SIGMOID")
    if not width >= (1 if function == "LINEAR" else np.finfo(np.float32).tiny):
        raise _Refused(f"its window width {quoted(f'{width:g}')} is too small for a {function} window")
    with np.errstate(over="ignore", invalid="ignore"):
        if function == "SIGMOID":
            return 1.0 / (1.0 + np.exp(-4.0 * (values - center) / width))
        if function == "LINEAR":
            center, width = center - 0.5, width - 1.0
        if width == 0:  # a LINEAR window of width 1 is a threshold
            return (values > center).astype(np.float64)
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)


def _look_up(values: np.ndarray, item: "Dataset", dataset: "Dataset") -> tuple[np.ndarray, int]:
    """Map values by a LUT; return the result and the bits of its range.

    Not pydicom's function: that one wraps values of more than 8 bits around if the LUT's output has 8.
    """
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 2**16  # 65,536 does not fit into the tag
    if not 8 <= bits <= 16:
        raise _Refused(f"has a LUT of {bits} bits; 8 to 16 are allowed")
    if first >= 2**15 and values.min() < 0:
        first -= 2**16  # written as if unsigned
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        packed = bits == 8 and len(data) < 2 * entries  # one byte each
        table = np.frombuffer(data, np.uint8 if packed else f"{order}u2")
    else:
        table = np.atleast_1d(np.asarray(data))
    if len(table) < entries or table.max() > 2**bits - 1:
        raise _Refused(f"has a damaged LUT ({len(table)} entries up to {table.max()}, {entries} of {bits} bits)")
    index = np.clip(np.floor(values - first), 0, entries - 1).astype(np.int64)
    return table[index].astype(np.float64), bits


def _is_padding(stored: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """Return where PixelPaddingValue (to PixelPaddingRangeLimit) says that there is no image."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(len(stored), dtype=bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = np.array([int(value), int(value if limit is None else limit)], dtype=np.int64)
    bits = 8 * stored.itemsize
    if ends.min() < -(2 ** (bits - 1)) or ends.max() >= 2**bits:
        return np.zeros(len(stored), dtype=bool)  # no pixel can have it
    first, last = np.sort(ends.astype(stored.dtype))  # the tag may have been written with the wrong sign: bits count
    return (stored >= first) & (stored <= last)


def _numbers(dataset: "Dataset", keyword: str) -> list[float]:
    """Return the numbers of a tag that may be absent, empty, single or multi-valued."""
    try:
        value = dataset.get(keyword)
        numbers = np.atleast_1d(np.asarray([] if value in (None, "") else value, dtype=np.float64))
    except (ValueError, TypeError, OverflowError) as error:
        raise _no_number(keyword, "number", error) from error
    if not np.isfinite(numbers).all():
        raise _no_number(keyword, "finite number", numbers)
    return numbers.tolist()


def _integer(dataset: "Dataset", keyword: str, otherwise: int = 0) -> int:
    """Return the whole number of a tag, or another one if the tag is absent or empty."""
    try:
        value = dataset.get(keyword)
        return otherwise if value in (None, "") else int(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise _no_number(keyword, "whole number", error) from error


def _no_number(keyword: str, kind: str, said: object) -> _Refused:
    comma = "; it has a comma, DICOM writes decimals with a point" if "," in str(said) else ""
    return _Refused(f"its {keyword} is no {kind} ({quoted(said)}){comma}")
