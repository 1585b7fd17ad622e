"""BMP of 1, 4, 8, 24 and 32 bits per pixel."""

import struct
from typing import BinaryIO

import numpy as np
from PIL.BmpImagePlugin import BmpImageFile

from datamodules.pictures.header import At, PictureHeader

START = b"BM"


def bmp_header(at: At) -> PictureHeader:
    """Read the header of a BMP.

    Raises:
        PictureError: If it is damaged.
    """
    (size,) = struct.unpack("<I", at(14, 4))
    form, where = ("<HHHH", 18) if size == 12 else ("<iiHH", 18)
    width, height, _, bits = struct.unpack(form, at(where, struct.calcsize(form)))
    problem = "has 5 or 6 bits per colour, which a reader would enlarge; save it with 8" if bits == 16 else ""
    colour = "RGB" if bits > 8 else "palette"
    return PictureHeader("BMP", abs(height), width, 8, colour, problem=problem)  # a negative height: top row first


def bmp_pixels(file: BinaryIO, header: PictureHeader) -> np.ndarray:
    """Decode a BMP with Pillow to (H, W) or (H, W, C) uint8."""
    with BmpImageFile(file) as image:
        image.load()
        return np.asarray(image.convert("RGBA") if image.mode in ("P", "1") else image)
