"""JPEG: grey or colours of 8 bits, and grey of 9 to 16 bits (extended or lossless)."""

import struct
from typing import BinaryIO

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

from datamodules.pictures.header import At, PictureError, PictureHeader, bytes_in
from datamodules.pictures.tags import EXIF, orientation_of, read_directories

START = b"\xff\xd8\xff"
END = b"\xff\xd9"
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD8)))
_SOS, _APP1, _APP2 = 0xDA, 0xE1, 0xE2
_MAX_MARKERS = 100_000
_MP_COUNT = 0xB001  # how many pictures a multi-picture file (CIPA DC-007) holds


def jpeg_header(at: At) -> PictureHeader:
    """Read the header of a JPEG, up to its first scan.

    Raises:
        PictureError: If it is damaged.
    """
    frame, orientation, pages, offset = None, 1, 1, 2
    for _ in range(_MAX_MARKERS):
        prefix, marker = at(offset, 2)
        if prefix != 0xFF or marker == 0xFF or marker in _STANDALONE:  # fill bytes, or what decoders skip
            offset += 2 if marker in _STANDALONE and prefix == 0xFF else 1
            continue
        (length,) = struct.unpack(">H", at(offset + 2, 2))
        if marker in _SOF and frame is None:
            frame = struct.unpack(">BHHB", at(offset + 4, 6))
        elif marker == _APP1 and length >= 16 and at(offset + 4, 6) == EXIF and orientation == 1:
            orientation = orientation_of(at(offset + 10, length - 8))
        elif marker == _APP2 and length >= 14 and at(offset + 4, 4) == b"MPF\0":
            pages = _pictures(at(offset + 8, length - 6))
        elif marker == _SOS:
            break
        offset += 2 + length
    if frame is None:
        raise PictureError("its header is damaged (it declares no frame)")
    bits, height, width, channels = frame
    colour = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    problem = _problem(height, channels, pages)
    return PictureHeader("JPEG", height, width, bits, colour, pages=pages, orientation=orientation, problem=problem)


def jpeg_pixels(file: BinaryIO, header: PictureHeader) -> np.ndarray:
    """Decode a JPEG to (H, W) or (H, W, 3), uint8 or, if it has more than 8 bits, uint16.

    Pillow decodes 8 bits only. More are decoded by imagecodecs with libjpeg-turbo, the library that Pillow has inside.
    It fills up what is missing without a word, so a file without its end is refused before.
    """
    if header.bits > 8:
        from imagecodecs import jpeg8_decode

        data = file.read()
        if END not in data[-16:]:
            raise PictureError("is cut off (its end is missing)")
        pixels: np.ndarray = jpeg8_decode(data)
        return pixels
    with JpegImageFile(file) as image:
        image.load()
        return np.asarray(image)


def _problem(height: int, channels: int, pages: int) -> str:
    if channels == 4:
        return "has the four colours of printing (CMYK), whose grey depends on the printer; save it as grey"
    if channels not in (1, 3):
        return f"has {channels} channels"
    if pages > 1:
        return f"holds {pages} pictures; one file must hold one"
    return "" if height else "its header does not say how many rows it has"


def _pictures(index: bytes) -> int:
    """Return how many pictures the index of a multi-picture file lists; a damaged one counts as none."""
    try:
        directories = read_directories(bytes_in(index), frozenset((_MP_COUNT,)), 1)
    except ValueError:
        return 1
    return directories[0].one(_MP_COUNT, 1) if directories else 1
