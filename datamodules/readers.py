"""Readers: one file -> one array of the values that it stores. What they mean is for the data set to say."""

from pathlib import Path

import numpy as np
from PIL import Image

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
        with Image.open(path) as image:
            image.load()
            return _grey_values(image)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = str(error) or type(error).__name__
        raise UnreadableImageError(f"{path.name}: {reason}") from error


def image_size(path: Path) -> tuple[int, int] | None:
    """Return (height, width) from an image file's header, or None if it has none that can be read."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception:  # as in read_grey; reading the file will say what is wrong with it
        return None


def _grey_values(image: Image.Image) -> np.ndarray:
    if image.mode in _INTEGER_MODES or image.mode == "F":
        values = np.asarray(image)
    elif image.mode in ("RGB", "RGBA", "P", "LA", "1"):
        values = _merge_channels(np.asarray(image.convert("RGBA")))
    else:
        raise ValueError(f"colour mode {image.mode} is not grey")
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("holds values that are not finite")
    return values


def _merge_channels(rgba: np.ndarray) -> np.ndarray:
    colour, alpha = rgba[..., :3].astype(np.int16), rgba[..., 3]
    if (alpha != 255).any():
        raise ValueError("is partly transparent")
    chroma = int((colour.max(axis=-1) - colour.min(axis=-1)).max())
    if chroma > MAX_CHROMA:
        raise ValueError(f"is a colour image (its channels differ by up to {chroma} of 255)")
    return colour.mean(axis=-1)
