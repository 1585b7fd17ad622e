"""Readers: one file -> one array of the values that it stores. What they mean is for the data set to say."""

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from datamodules.files.errors import DataError, UnreadableImageError
from datamodules.files.pseudonyms import quoted
from datamodules.pictures.bmp import START as BMP
from datamodules.pictures.bmp import bmp_header, bmp_pixels
from datamodules.pictures.header import At, PictureError, PictureHeader, bytes_of
from datamodules.pictures.jpeg import START as JPEG
from datamodules.pictures.jpeg import jpeg_header, jpeg_pixels
from datamodules.pictures.png import START as PNG
from datamodules.pictures.png import png_header, png_pixels, png_texts
from datamodules.pictures.tiff import STARTS as TIFF
from datamodules.pictures.tiff import tiff_header, tiff_pixels

DICOM, PICTURES = {".dcm", ".dicom"}, {".png", ".jpg", ".jpeg"}
MAX_PIXELS = 100_000_000  # four times the largest mammogram; more is a damaged or a hostile header
MAX_TEXT = 2**28  # bytes of a table, unpacked; the largest of our data sets has 8 MB
# Values that JPEG's colour conversion may put between the channels of a grey image (measured: up to 8).
MAX_CHROMA = 16
# Other formats stay closed: Pillow, if it may guess, hands EPS to Ghostscript, a program that runs what the file says.
_HEADERS: dict[bytes, Callable[[At], PictureHeader]] = {
    PNG: png_header,
    JPEG: jpeg_header,
    BMP: bmp_header,
    **dict.fromkeys(TIFF, tiff_header),
}
_PIXELS: dict[str, Callable[[BinaryIO, PictureHeader], np.ndarray]] = {
    "PNG": png_pixels,
    "JPEG": jpeg_pixels,
    "BMP": bmp_pixels,
    "TIFF": tiff_pixels,
}
# What turns a stored picture into the one that is shown, by the orientation of EXIF and TIFF.
_SHOWN: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda stored: stored[::-1, ::-1],
    4: np.flipud,
    5: np.transpose,
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].T,
    8: np.rot90,
}


def read_grey(path: Path) -> np.ndarray:
    """Read a grey PNG, JPEG, TIFF or BMP of up to 16 bits, or a TIFF of whole or real numbers of 32 or 64.

    The file's own header decides how, not its name. Colour files count as grey if their channels agree (those of 8 bits
    and of JPEG nearly); an alpha channel is dropped if it is opaque everywhere. The picture is turned as its
    orientation says. Several pages, transparency and colours are refused, and so is what a decoder would reduce.

    Returns:
        Array (H, W) float32 of the stored values; ``full_value`` is the largest that there can be. Those of 1, 2 and 4
        bits are brought to 0 .. 255. Where a TIFF says that zero is white, values are subtracted from the full value.

    Raises:
        UnreadableImageError: With the file's name, if it is damaged, not grey or not of these forms.
    """
    with _named_errors(path), path.open("rb") as file:
        header = _header_of(file)
        if header.problem:
            raise PictureError(header.problem)
        pixels = _PIXELS[header.kind](file, header)
        if pixels.shape[:2] != (header.height, header.width):
            raise PictureError(f"has {pixels.shape[:2]} pixels, its header says {(header.height, header.width)}")
        values = _grey_values(pixels, header)
        return values if header.orientation == 1 else np.ascontiguousarray(_SHOWN[header.orientation](values))


def read_table_bytes(path: Path) -> bytes:
    """Return the content of a table, unpacked if gzip has packed it, whatever its name.

    Raises:
        DataError: If it cannot be read or is larger than any table: a packed file of a megabyte can hold a gigabyte.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.open(file) if packed else file as unpacked:
                raw = unpacked.read(MAX_TEXT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if len(raw) > MAX_TEXT:
        raise DataError(f"{path}: holds more than {MAX_TEXT // 2**20} MiB, more than any table that is read here")
    return raw


def picture_header(path: Path) -> PictureHeader:
    """Return what a picture's header says; nothing is decoded.

    Raises:
        UnreadableImageError: With the file's name, if it has none that can be read.
    """
    with _named_errors(path), path.open("rb", buffering=0) as file:
        return _header_of(file)


def is_deep(path: Path) -> bool:
    """Return whether an image file declares more than 8 bits per value.

    Raises:
        UnreadableImageError: As ``picture_header``.
    """
    return picture_header(path).bits > 8


def full_value(path: Path) -> int | None:
    """Return the largest value that the declared bits of an image file hold: 255, 4095 of 12 bits, 65535 ...

    Returns:
        None if they do not say it: real numbers, negative ones, and those of more than 16 bits.

    Raises:
        UnreadableImageError: As ``picture_header``.
    """
    header = picture_header(path)
    return 2 ** max(header.bits, 8) - 1 if header.sample == "unsigned" and header.bits <= 16 else None


def texts_of(path: Path) -> dict[str, str]:
    """Return what a PNG says in its text chunks, by keyword; nothing for other pictures.

    Raises:
        UnreadableImageError: If it cannot be opened.
    """
    with _named_errors(path), path.open("rb", buffering=0) as file:
        at = bytes_of(file.fileno())
        return png_texts(at) if at(0, len(PNG)) == PNG else {}


def image_size(path: Path) -> tuple[int, int] | None:
    """Return (height, width) of an image as shown, from its header, or None if it has none that can be read."""
    try:
        return picture_header(path).shown_size
    except UnreadableImageError:  # reading the file will say what is wrong with it
        return None


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn whatever is raised (decoders raise nearly anything on damaged files) into one error with a name.

    Decoders may quote the file, whose texts can carry a patient's name: only the terminal shows their words.
    """
    try:
        yield
    except Exception as error:
        reason = str(error).replace(str(path), path.name) or type(error).__name__
        reason = reason if isinstance(error, PictureError | OSError) else quoted(reason)
        raise UnreadableImageError(f"{path.name}: {reason}") from error


def _header_of(file: BinaryIO) -> PictureHeader:
    if not os.fstat(file.fileno()).st_size:
        raise PictureError("is empty")
    at = bytes_of(file.fileno())
    read = next((read for start, read in _HEADERS.items() if at(0, len(start)) == start), None)
    if read is None:
        raise PictureError("is none of PNG, JPEG, TIFF and BMP (or its beginning is damaged)")
    header = read(at)
    if not 0 < header.height * header.width <= MAX_PIXELS:
        raise PictureError(f"its header says {header.height}x{header.width} pixels; at most {MAX_PIXELS} are read")
    return header


def _grey_values(pixels: np.ndarray, header: PictureHeader) -> np.ndarray:
    """Return the grey values (H, W) float32 of pixels (H, W) or (H, W, C)."""
    if header.transparent is not None:
        _refuse_transparent_colour(pixels, header.transparent, header.bits)
    if pixels.ndim == 3:
        pixels = _merge_channels(pixels, header)
    if pixels.dtype.kind == "f":
        return _finite(pixels)
    if pixels.dtype.kind in "iu" and pixels.itemsize > 2 and (pixels.min() < -(2**24) or pixels.max() > 2**24):
        raise PictureError("holds whole numbers of more than 24 bits, which would be rounded")
    return pixels.astype(np.float32)


def _finite(pixels: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = pixels.astype(np.float32)
    if not np.isfinite(values).all():
        raise PictureError("holds values that are not finite")
    return values


def _refuse_transparent_colour(pixels: np.ndarray, colour: tuple[int, ...], bits: int) -> None:
    largest = 2**bits - 1
    key = np.array(colour) & largest
    key = key * (255 // largest) if bits < 8 else key
    same = pixels == key if pixels.ndim == 2 else (pixels[..., :3] == key).all(axis=-1)
    if same.any():
        raise PictureError("is partly transparent (by the colour that its tRNS chunk names)")


def _merge_channels(pixels: np.ndarray, header: PictureHeader) -> np.ndarray:
    """Return the grey values (H, W) of colours and further channels (H, W, C)."""
    colours, full = 1 if header.colour == "grey" else 3, 2 ** max(header.bits, 8) - 1
    if (pixels[..., colours:] != full).any():
        raise PictureError("is partly transparent (the channel beside its colours is not full everywhere)")
    if colours == 1:
        return pixels[..., 0]
    red, green, blue = (pixels[..., channel] for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red
    near = pixels.dtype == np.uint8 or header.kind == "JPEG"  # of other files none can have been a JPEG
    colour = pixels[..., :3].astype(np.int16 if pixels.dtype == np.uint8 else np.float64)
    chroma = (colour.max(axis=-1) - colour.min(axis=-1)).max()
    if not chroma <= (MAX_CHROMA if near else 0):
        raise PictureError(f"is a colour image (its channels differ by up to {chroma:g} of {full})")
    return colour.mean(axis=-1, dtype=np.float32)
