"""TIFF: grey, equal colours or a grey palette of 1 to 64 bits, packed or not; one picture per file.

Tags of single programs (ImageJ, OME, GDAL) change no value. Numbers of 1, 2 and 4 bits are brought to 0 .. 255.
"""

import logging
import math
import os
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from datamodules.pictures.header import At, PictureError, PictureHeader, bytes_in
from datamodules.pictures.jpeg import END, jpeg_header
from datamodules.pictures.tags import ORIENTATION, Directory, read_directories, valid_orientation

if TYPE_CHECKING:
    from tifffile import TiffPage

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_KIND, _OLD_KIND, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
_DESCRIPTION, _CHANNELS, _PALETTE, _SAMPLE, _DEPTH = 270, 277, 320, 339, 32997
_HEADER_TAGS = frozenset(
    {_KIND, _OLD_KIND, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _DESCRIPTION, ORIENTATION}
    | {_CHANNELS, _SAMPLE, _DEPTH}
)
_THUMBNAIL, _MASK = 1, 4  # bits of NewSubfileType
_JPEG = 7
# What image files are packed with; others are seldom and would hand a file to decoders that nobody has tried here.
_COMPRESSIONS = {1: "none", 2: "CCITT", 3: "Group 3", 4: "Group 4", 5: "LZW", _JPEG: "JPEG", 8: "deflate"} | {
    32946: "deflate",
    32773: "PackBits",
    50000: "zstd",
}
_COLOURS = {0: ("grey", 1), 1: ("grey", 1), 2: ("RGB", 3), 3: ("palette", 1), 6: ("RGB", 3)}
_WHITE_IS_ZERO, _YCBCR = 0, 6
_UNREAD = {4: "a transparency mask", 5: "CMYK", 8: "CIELab", 9: "ICCLab", 32803: "raw data", 34892: "raw data"}
_SAMPLES = {1: "unsigned", 2: "signed", 3: "float", 4: "unsigned"}  # 4 is "not defined"
_SAMPLE_BITS = {"unsigned": {1, 2, 4, *range(8, 17), 32, 64}, "signed": {8, 16, 32, 64}, "float": {16, 32, 64}}
_MAX_FURTHER = 1  # alpha


def tiff_header(at: At) -> PictureHeader:
    """Read the header of a TIFF.

    Raises:
        PictureError: If it is damaged, or holds no picture but thumbnails.
    """
    directories = read_directories(at, _HEADER_TAGS)
    whole = [i for i, directory in enumerate(directories) if not _is_thumbnail(directory)]
    if not whole:
        raise PictureError("holds no picture, or thumbnails only")
    tags = directories[whole[0]]
    code = tags.one(_PHOTOMETRIC, -1)
    colour, colours = _COLOURS.get(code, (_UNREAD.get(code, f"photometric interpretation {code}"), 1))
    sample = _SAMPLES.get(tags.one(_SAMPLE, 1), "complex")
    bits, pages = tags.one(_BITS, 1), max(len(whole), _imagej_images(tags))
    further = tags.one(_CHANNELS, 1) - colours
    return PictureHeader(
        "TIFF",
        tags.one(_HEIGHT, 0),
        tags.one(_WIDTH, 0),
        bits,
        colour,
        further,
        sample,
        white_is_zero=code == _WHITE_IS_ZERO,
        pages=pages,
        page=whole[0],
        orientation=valid_orientation(tags.one(ORIENTATION, 1)),
        problem=_problem(tags, colour, further, sample, bits, pages),
    )


def tiff_pixels(file: BinaryIO, header: PictureHeader) -> np.ndarray:
    """Decode a TIFF with tifffile to (H, W) or (H, W, C); white is large, palettes are looked up.

    tifffile calls imagecodecs for what is packed. What it fills up without a word (strips that are absent or cut off)
    is refused before.
    """
    from tifffile import TiffFile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # what it complains of is checked here
    with TiffFile(file) as opened:
        page: Any = opened.pages[header.page]
        _compare(page, header)
        _check_segments(page, header, file)
        try:
            pixels = page.asarray(maxworkers=1)
        except (KeyError, ImportError) as error:  # its ways to say that a codec is absent
            raise PictureError(f"{page.compression.name} is not decoded here ({error})") from error
        if header.further + (header.colour == "RGB") and page.planarconfig == 2:
            pixels = np.moveaxis(pixels, 0, -1)
        palette = page.tags.get(_PALETTE)
    if header.colour == "palette":
        return _look_up(pixels, np.asarray(palette.value if palette else ()), header)
    return _scaled(pixels, header)


def _is_thumbnail(tags: Directory) -> bool:
    return bool(tags.one(_KIND, 0) & _THUMBNAIL) or tags.one(_OLD_KIND, 0) == 2


def _imagej_images(tags: Directory) -> int:
    """Return how many images ImageJ says that follow; of a long stack only the first has a directory."""
    text = bytes(value & 0xFF for value in tags.values.get(_DESCRIPTION, ())[:4096])
    if text.startswith(b"ImageJ="):
        for line in text.splitlines():
            if line.startswith(b"images=") and line[7:].isdigit():
                return int(line[7:])
    return 1


def _problem(tags: Directory, colour: str, further: int, sample: str, bits: int, pages: int) -> str:
    """Say why a form is not read; nothing if it is."""
    photometric, packing = tags.one(_PHOTOMETRIC, -1), tags.one(_COMPRESSION, 1)
    if pages > 1:
        return f"holds {pages} pages; one file must hold one picture"
    if tags.one(_KIND, 0) & _MASK or photometric == 4:
        return "is a transparency mask"
    if photometric == -1:
        return "does not say whether zero is black or white (it has no PhotometricInterpretation)"
    if photometric not in _COLOURS:
        return f"is no grey image (it is {colour})"
    if sample == "complex":
        return "holds complex numbers or values of an unknown kind"
    if any(len(set(tags.values.get(tag, (0,)))) > 1 for tag in (_BITS, _SAMPLE)):
        return f"its channels have different bits or kinds ({tags.values.get(_BITS)})"
    if bits not in _SAMPLE_BITS[sample]:
        return f"has {sample} values of {bits} bits, which are not read"
    if photometric == _WHITE_IS_ZERO and (sample != "unsigned" or bits > 16):
        return f"says that white is zero, which has no meaning for {sample} values of {bits} bits"
    if not 0 <= further <= _MAX_FURTHER or (further and sample != "unsigned"):
        return f"has {tags.one(_CHANNELS, 1)} channels of {sample} values"
    if tags.one(_DEPTH, 1) != 1:
        return f"is a volume of {tags.one(_DEPTH, 1)} slices"
    if packing not in _COMPRESSIONS:
        return f"is packed with compression {packing}; read are {', '.join(sorted(set(_COMPRESSIONS.values())))}"
    if photometric == _YCBCR and packing != _JPEG:
        return "is YCbCr without JPEG"
    if colour == "palette" and (bits > 8 or sample != "unsigned" or further):
        return f"has a palette for {sample} values of {bits} bits in {1 + further} channels"
    return ""


def _compare(page: "TiffPage", header: PictureHeader) -> None:
    """Refuse a page that tifffile takes for something else than its tags say (it knows tags of many programs)."""
    samples = header.further + (3 if header.colour == "RGB" else 1)
    found = page.imagelength, page.imagewidth, page.bitspersample, page.samplesperpixel
    if found != (header.height, header.width, header.bits, samples):
        raise PictureError(f"its tags contradict each other ({found})")


def _check_segments(page: "TiffPage", header: PictureHeader, file: BinaryIO) -> None:
    """Refuse strips or tiles that are absent, lie outside the file, or are JPEGs of another form than the tags say."""
    offsets, counts = page.dataoffsets, page.databytecounts
    if page.is_tiled:
        height, width = page.tilelength, page.tilewidth
    else:
        height, width = min(page.rowsperstrip, page.imagelength), page.imagewidth
    if height <= 0 or width <= 0 or height * width > 4 * header.height * header.width + 2**22:
        raise PictureError(f"has strips or tiles of {height}x{width} pixels")
    expected = math.ceil(header.height / height) * math.ceil(header.width / width)
    expected *= page.samplesperpixel if page.planarconfig == 2 else 1
    if len(offsets) != expected or len(counts) != expected:
        raise PictureError(f"has {min(len(offsets), len(counts))} strips or tiles, {expected} are needed")
    size = os.fstat(file.fileno()).st_size
    if any(offset <= 0 or count <= 0 or offset + count > size for offset, count in zip(offsets, counts, strict=True)):
        raise PictureError("is cut off (a strip or tile is absent)")
    if page.compression == _JPEG:
        strips = math.ceil(header.height / height)
        for i, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
            last = not page.is_tiled and i % strips == strips - 1
            rows = header.height - height * (strips - 1) if last else height
            _check_jpeg(os.pread(file.fileno(), count, offset), {rows, height}, width, header.bits)


def _check_jpeg(data: bytes, heights: set[int], width: int, bits: int) -> None:
    """Refuse a JPEG that is cut off or not of this size: tifffile would have the rest filled up."""
    cut_off = "one of its JPEG strips or tiles is cut off"
    found = jpeg_header(bytes_in(data, cut_off))
    if END not in data[-16:]:
        raise PictureError(cut_off)
    if found.height not in heights or (found.width, found.bits) != (width, bits):
        raise PictureError("one of its JPEG strips or tiles has another size or depth than its tags say")


def _look_up(indices: np.ndarray, palette: np.ndarray, header: PictureHeader) -> np.ndarray:
    """Return colours (H, W, 3) uint8 of a palette, whose entries have 16 bits: v * 256 or v * 257 for v in 0 .. 255."""
    if palette.size != 3 * 2**header.bits:
        raise PictureError("has a damaged palette")
    palette = palette.reshape(3, -1)
    if palette.max() > 255:  # else they were written as v, by mistake; libtiff supposes that too
        low, high = palette & 0xFF, palette >> 8
        if low.any() and not np.array_equal(low, high):
            raise PictureError("has a palette of more than 8 bits")
        palette = high
    return palette.astype(np.uint8).T[indices.astype(np.intp)]


def _scaled(pixels: np.ndarray, header: PictureHeader) -> np.ndarray:
    """Return values of which the largest is white, those of fewer than 8 bits brought to 0 .. 255."""
    largest = 2**header.bits - 1
    if header.white_is_zero:
        grey = pixels[..., 0] if header.further else pixels
        grey[...] = ~grey if grey.dtype == bool else largest - grey
    return pixels if header.bits >= 8 else pixels.astype(np.uint8) * np.uint8(255 // largest)
