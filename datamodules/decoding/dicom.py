"""DICOM: one file -> the grey values that a viewer shows with the file's own settings.

Stored value -> modality LUT or rescale -> VOI LUT or window -> [0, 1] -> inverted for MONOCHROME1 -> padding is black
(DICOM PS3.3 C.7.6.3, C.11.1, C.11.2). A stored value has at most 16 bits, so the chain is computed once for each of the
65,536 values, in float64, and the pixels look it up. Enhanced objects keep rescale, window and laterality in functional
groups (C.7.6.16.2.8 to .10): these come before the top level.

A tag can carry a name, so messages put what a header says between marks (``quoted``): only the terminal shows it.
"""

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from datamodules.decoding.dicom_headers import (
    GREY,
    VALUES,
    WINDOW,
    Refused,
    holder_of,
    integer,
    named_errors,
    numbers,
    open_dicom,
)
from datamodules.decoding.readers import MAX_PIXELS
from datamodules.files.pseudonyms import quoted

if TYPE_CHECKING:
    from pydicom import Dataset  # imported when the first file is read: it costs 0.3 s

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
_STANDALONE = {0x01, *range(0xD0, 0xDA)}  # JPEG markers without a segment; none may stand before the scan
_SOF, _SOS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}, 0xDA  # JPEG markers: frame header, start of the scan


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
    with named_errors(path):
        dataset = open_dicom(path)
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
    with named_errors(path):
        dataset = open_dicom(path)
        stored = _stored_values(dataset)
        values, _, _ = _modality(stored.ravel().astype(np.float64), dataset)
        image = ~_is_padding(stored.ravel(), dataset)
        return Values(values.reshape(stored.shape), image.reshape(stored.shape))


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
        raise Refused(f"its transfer syntax {name} is not supported") from error
    if not decoder.is_available:
        raise Refused(f"no decoder for {syntax.name} is installed: {'; '.join(decoder.missing_dependencies)}")
    precision = _checked_precision(dataset) if syntax.is_encapsulated else None
    plugin = next((name for name in _DECODERS if name in decoder.available_plugins), "")
    options: dict[str, Any] = {"decoding_plugin": plugin} if syntax.is_encapsulated else {}
    if precision is not None and dataset.BitsStored < 8:
        # GDCM ends the process if a JPEG image of 8 bits is said to use 7; pydicom refuses such a JPEG-LS image.
        options["bits_stored"] = precision if "JPEG-LS" in syntax.name else 8
    try:
        values, _ = decoder.as_array(dataset, **options)
    except RuntimeError as error:  # what each decoder said; the name of the format helps to find another one
        raise Refused(f"{syntax.name}: cannot be decoded ({quoted(error)})") from error
    if values.ndim != 2 or values.dtype.kind not in "iu" or values.itemsize > 2:
        raise Refused(f"its pixels are {values.dtype} {values.shape}, expected are integers of up to 16 bits")
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
        raise Refused("holds no image (no integer pixel data)")
    missing = [keyword for keyword in _NEEDED if dataset.get(keyword) in (None, "")]
    if missing:
        raise Refused(f"its header has no {' and no '.join(missing)}, without which its pixels have no meaning")
    photometric = str(dataset.PhotometricInterpretation)
    if integer(dataset, "SamplesPerPixel") != 1 or photometric not in GREY:
        raise Refused(f"is not a grey image (its photometric interpretation is {quoted(photometric)})")
    frames = integer(dataset, "NumberOfFrames") or 1  # some writers put 0 where there is no further frame
    if frames != 1:
        raise Refused(f"is a multi-frame image ({frames} frames); one file must hold one image")
    rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
    if not 0 < rows * columns <= MAX_PIXELS:
        raise Refused(f"its header says {rows}x{columns} pixels; at most {MAX_PIXELS} are read")
    allocated, stored = integer(dataset, "BitsAllocated"), integer(dataset, "BitsStored")
    if allocated not in (8, 16):
        raise Refused(f"has {allocated} bits per pixel; 8 and 16 are supported")
    if not 0 < stored <= allocated:
        raise Refused(f"its header says {stored} of {allocated} bits are used")
    highest = integer(dataset, "HighBit", stored - 1)
    if highest != stored - 1:
        raise Refused(f"its highest bit is {highest}, for {stored} bits it must be {stored - 1}")


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
        raise Refused("its compressed pixel data is cut off")
    rows, columns, channels, precision = _jpeg2000_header(frame) if "2000" in syntax.name else _jpeg_header(frame)
    if (rows, columns, channels) != (dataset.Rows, dataset.Columns, 1):
        raise Refused(
            f"its compressed image has {rows}x{columns} pixels of {channels} channels, "
            f"its header says {dataset.Rows}x{dataset.Columns} of 1"
        )
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    # Encoders write BitsStored or BitsAllocated; some fewer than are stored, where the values need no more.
    if not min(stored, allocated - 7) <= precision <= allocated:
        raise Refused(
            f"its compressed image has {precision} bits, its header says that {stored} of {allocated} are used"
        )
    return precision


def _jpeg2000_header(frame: bytes) -> tuple[int, int, int, int]:
    """Return rows, columns, channels and bits of a JPEG 2000 codestream."""
    start = frame.find(b"\xff\x4f\xff\x51")  # not at 0 if the codestream is wrapped in a JP2 file
    if start < 0:
        raise Refused("its compressed pixel data is not JPEG 2000")
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
        raise Refused("its compressed pixel data is not a whole JPEG image")
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
        raise Refused("its window gives values that are not finite")
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
    holder = holder_of(dataset, VALUES)
    slopes, intercepts = numbers(holder, "RescaleSlope"), numbers(holder, "RescaleIntercept")
    if not slopes or not intercepts:
        return values, low, high
    slope, intercept = slopes[0], intercepts[0]
    if slope == 0:
        raise Refused("its rescale slope is 0")
    ends = sorted((low * slope + intercept, high * slope + intercept))  # a negative slope turns them round
    with np.errstate(over="ignore", invalid="ignore"):
        values = values * slope + intercept
    if not np.isfinite(values).all():
        raise Refused("its rescale slope and intercept give values that are not finite")
    return values, ends[0], ends[1]


def _voi(values: np.ndarray, low: float, high: float, dataset: "Dataset", window: int) -> np.ndarray:
    """Map values to [0, 1] by the chosen VOI LUT, else the chosen window, else over the declared range."""
    holder = holder_of(dataset, WINDOW)
    luts = holder.get("VOILUTSequence") or []
    centers, widths = numbers(holder, "WindowCenter"), numbers(holder, "WindowWidth")
    available = len(luts) or min(len(centers), len(widths))
    if not 0 <= window < max(available, 1):
        raise Refused(f"has {available} windows or VOI LUTs, data.window={window} asks for another (0 is the first)")
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
        raise Refused(f"its VOI LUT function {quoted(function)} is none of LINEAR, LINEAR_EXACT and SIGMOID")
    if not width >= (1 if function == "LINEAR" else np.finfo(np.float32).tiny):
        raise Refused(f"its window width {quoted(f'{width:g}')} is too small for a {function} window")
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
        raise Refused(f"has a LUT of {bits} bits; 8 to 16 are allowed")
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
        raise Refused(f"has a damaged LUT ({len(table)} entries up to {table.max()}, {entries} of {bits} bits)")
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
