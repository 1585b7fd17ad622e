"""Readers: one file -> one array of the values that it stores. What they mean is for the data set to say."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

DICOM, PICTURES = {".dcm", ".dicom"}, {".png", ".jpg", ".jpeg"}
MAX_PIXELS = 100_000_000  # four times the largest mammogram; more is a damaged or a hostile header
MAX_TEXT = 2**28  # bytes of a table, unpacked; the largest of our data sets has 8 MB
# Of Pillow's formats only these: EPS, for one, would be handed to Ghostscript, a program that runs what the file says.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
# Values that JPEG's colour conversion may put between the channels of a grey image (measured: up to 8).
MAX_CHROMA = 16
_INTEGER_MODES = {"I;16": np.uint16, "I;16B": np.uint16, "I": np.int32, "L": np.uint8}


class DataError(Exception):
    """Something is wrong with the data that the user named; the message says what, where and what to do."""


class UnreadableImageError(DataError):
    """A file that cannot be used; the message says which and why."""


def read_grey(path: Path) -> np.ndarray:
    """Read a grey PNG, JPEG, TIFF or BMP of 8 or 16 bits.

    Colour files count as grey if their channels agree; an alpha channel is dropped if it is opaque everywhere.
    Pillow's own ``convert("L")`` is not used: it clips 16-bit values.

    Returns:
        Array (H, W) float32 of the stored values.

    Raises:
        UnreadableImageError: With the file's name, if it is damaged or not grey.
    """
    try:
        with open_picture(path) as image:
            image.load()
            return _grey_values(image)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = str(error).replace(str(path), path.name) or type(error).__name__
        raise UnreadableImageError(f"{path.name}: {reason}") from error


def open_picture(path: Path) -> Image.Image:
    """Open a PNG, JPEG, TIFF or BMP of at most ``MAX_PIXELS`` pixels; they are decoded later.

    Raises:
        ValueError: If there are more.
        Exception: What Pillow raises.
    """
    image = Image.open(path, formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ValueError(f"its header says {image.height}x{image.width} pixels; at most {MAX_PIXELS} are read")
    return image


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


def is_deep(path: Path) -> bool:
    """Return whether an image file declares more than 8 bits per value."""
    with open_picture(path) as image:
        return image.mode in ("I", "F") or image.mode.startswith("I;16")


def image_size(path: Path) -> tuple[int, int] | None:
    """Return (height, width) from an image file's header, or None if it has none that can be read."""
    try:
        with open_picture(path) as image:
            return image.height, image.width
    except Exception:  # as in read_grey; reading the file will say what is wrong with it
        return None


def _grey_values(image: Image.Image) -> np.ndarray:
    if image.mode in _INTEGER_MODES:
        return np.asarray(image).astype(np.float32)
    if image.mode == "F":
        values = np.asarray(image).astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError("holds values that are not finite")
        return values
    if image.mode in ("RGB", "RGBA"):
        return _merge_channels(np.asarray(image))
    if image.mode in ("P", "LA", "1"):
        return _merge_channels(np.asarray(image.convert("RGBA")))
    raise ValueError(f"colour mode {image.mode} is not grey")


def _merge_channels(pixels: np.ndarray) -> np.ndarray:
    """Return the grey values of (H, W, 3 or 4) bytes."""
    red, green, blue = (pixels[..., channel] for channel in range(3))
    if pixels.shape[-1] == 4 and (pixels[..., 3] != 255).any():
        raise ValueError("is partly transparent")
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red.astype(np.float32)
    colour = pixels[..., :3].astype(np.int16)
    chroma = int((colour.max(axis=-1) - colour.min(axis=-1)).max())
    if chroma > MAX_CHROMA:
        raise ValueError(f"is a colour image (its channels differ by up to {chroma} of 255)")
    return colour.mean(axis=-1, dtype=np.float32)
