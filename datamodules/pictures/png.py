"""PNG: 1 to 16 bits; grey, colours, palette, alpha. Gamma, colour space, significant bits and text change no value."""

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL.PngImagePlugin import PngImageFile

from datamodules.pictures.header import At, PictureError, PictureHeader, bytes_in
from datamodules.pictures.tags import orientation_of

START = b"\x89PNG\r\n\x1a\n"
_COLOURS = {0: ("grey", 0), 2: ("RGB", 0), 3: ("palette", 0), 4: ("grey", 1), 6: ("RGB", 1)}
_MAX_EXIF, _MAX_TEXT, _MAX_RAW = 2**16, 2**12, 2**18  # bytes of one chunk
_RAW_EXIF = (b"Raw profile type exif\0", b"Raw profile type APP1\0")
_END = b"\0\0\0\0IEND\xaeB`\x82"
_MAX_CHUNKS = 200_000  # twice those of the largest picture that is read


def png_header(at: At) -> PictureHeader:
    """Read the header of a PNG.

    The orientation may follow the pixels (ExifTool writes it there), so all chunks are looked at, not their content.

    Raises:
        PictureError: If it is damaged.
    """
    length, name, width, height, bits, colour = struct.unpack(">I4sIIBB", at(8, 18))
    if (length, name) != (13, b"IHDR") or colour not in _COLOURS:
        raise PictureError("its header is damaged")
    word, further = _COLOURS[colour]
    chunks = list(_chunks(at))
    first = {name: (offset, length) for name, offset, length in reversed(chunks)}
    transparent, pages = None, _pictures(at, first)
    if b"tRNS" in first and colour in (0, 2):
        form = ">H" if colour == 0 else ">3H"
        transparent = struct.unpack(form, at(first[b"tRNS"][0], struct.calcsize(form)))
    return PictureHeader(
        "PNG",
        height,
        width,
        bits,
        word,
        further,
        transparent=transparent,
        pages=pages,
        orientation=_orientation(at, chunks),
        problem=f"is an animation of {pages} pictures" if pages > 1 else "",
    )


def png_pixels(file: BinaryIO, header: PictureHeader) -> np.ndarray:
    """Decode a PNG to (H, W) or (H, W, C) uint8 or uint16; fewer than 8 bits are brought to 0 .. 255.

    Pillow keeps 16 bits of grey alone. Colours and alpha of 16 bits are decoded by imagecodecs, which runs libpng, the
    reference decoder, and is kept up by tifffile's author (BSD). It is given the chunks of the pixels alone: a
    transparent colour would come as a further channel, and what libpng finds odd in the others is printed. Files that
    are cut off or fail its checks are errors.
    """
    if header.bits == 16 and (header.colour != "grey" or header.further):
        from imagecodecs import png_decode

        pixels: np.ndarray = png_decode(_of_pixels(file.read()))
        return pixels
    with PngImageFile(file) as image:
        image.load()
        if header.colour == "palette":
            if image.palette is None or np.asarray(image).max() >= len(image.palette.palette) // 3:
                raise PictureError("points to colours that its palette does not have")
            return np.asarray(image.convert("RGBA"))
        pixels = np.asarray(image)
        return pixels.astype(np.uint8) * np.uint8(255) if pixels.dtype == bool else pixels


def png_texts(at: At) -> dict[str, str]:
    """Return the uncompressed texts of a PNG by keyword (chunks tEXt)."""
    found = [at(offset, length) for name, offset, length in _chunks(at) if name == b"tEXt" and length <= _MAX_TEXT]
    pairs = (data.decode("latin-1").partition("\0") for data in found)
    return {keyword: text for keyword, _, text in pairs}


def _chunks(at: At) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, offset and length of every chunk up to the end of the image, or to where the file breaks off."""
    offset = 33
    for _ in range(_MAX_CHUNKS):
        try:
            length, name = struct.unpack(">I4s", at(offset, 8))
        except ValueError:  # the decoder will say whether pixels are missing
            return
        if name == b"IEND" or length >= 2**31:
            return
        yield name, offset + 8, length
        offset += 12 + length


def _pictures(at: At, first: dict[bytes, tuple[int, int]]) -> int:
    """Return how many pictures an animation holds; one that begins after the pixels does not count these."""
    if b"acTL" not in first:
        return 1
    (frames,) = struct.unpack(">I", at(first[b"acTL"][0], 4))
    nowhere = 0, 0
    return frames + (first.get(b"fcTL", nowhere) > first.get(b"IDAT", nowhere))


def _orientation(at: At, chunks: list[tuple[bytes, int, int]]) -> int:
    """Return what EXIF says: that of its own chunk, else that which ImageMagick and others keep in a text."""
    in_text = b""
    for name, offset, length in chunks:
        if name == b"eXIf" and length <= _MAX_EXIF:
            return orientation_of(at(offset, length))
        if name in (b"tEXt", b"zTXt") and length <= _MAX_RAW and at(offset, min(length, 22)) in _RAW_EXIF:
            in_text = in_text or _raw_exif(name == b"zTXt", at(offset, length)[22:])
    return orientation_of(in_text)


def _raw_exif(packed: bool, text: bytes) -> bytes:
    """Return EXIF from a text: its name, its length and its bytes as hexadecimal digits; nothing if it is damaged."""
    try:
        text = zlib.decompressobj().decompress(text[1:], _MAX_RAW) if packed else text
        return bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))
    except (zlib.error, ValueError):
        return b""


def _of_pixels(data: bytes) -> bytes:
    """Return a PNG with the header, the pixels and the end alone."""
    pixels = [
        data[offset - 8 : offset + length + 4] for name, offset, length in _chunks(bytes_in(data)) if name == b"IDAT"
    ]
    return data[:33] + b"".join(pixels) + _END
