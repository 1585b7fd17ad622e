"""Pictures written by hand, so that no library decides what is in them."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import png

TYPES = {"B": 1, "A": 2, "H": 3, "I": 4, "Q": 16}


def packed(samples: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Return rows of samples, each row from a byte of its own; bits below 8 and from 9 to 15 follow each other."""
    rows = samples.reshape(len(samples), -1)
    if bits in (8, 16, 32, 64):
        return rows.astype(rows.dtype.newbyteorder(order)).tobytes()
    single = rows[..., None].astype(np.int64) >> np.arange(bits)[::-1] & 1
    return np.packbits(single.astype(bool).reshape(len(rows), -1), axis=-1).tobytes()


# PNG --------------------------------------------------------------------------------------------------------------


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_file(path: Path, samples: np.ndarray, bits: int, colour: int, before: bytes = b"", after: bytes = b"") -> Path:
    """Write samples (H, W) or (H, W, C) with more chunks before and after the pixels; colour as in PNG's header."""
    height, width = samples.shape[:2]
    rows = packed(samples, bits)
    size = len(rows) // height
    raw = b"".join(b"\0" + rows[i * size : (i + 1) * size] for i in range(height))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = zlib.compress(raw)
    half = len(pixels) // 2
    data = chunk(b"IDAT", pixels[:half]) + chunk(b"IDAT", pixels[half:])
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + before + data + after + chunk(b"IEND", b""))
    return path


def interlaced_png(path: Path, samples: np.ndarray, bits: int, **settings) -> Path:
    height, width = samples.shape[:2]
    with path.open("wb") as file:
        writer = png.Writer(width, height, bitdepth=bits, interlace=True, **settings)
        writer.write(file, samples.reshape(height, -1).tolist())
    return path


def read_pypng(path: Path) -> np.ndarray:
    """Return (H, W) of the first channel as pypng reads it, palettes looked up; small values are not enlarged."""
    width, height, rows, info = png.Reader(filename=str(path)).read(lenient=True)
    samples = np.array([list(row) for row in rows]).reshape(height, width, info["planes"])[..., 0]
    return np.array(info["palette"])[samples][..., 0] if "palette" in info else samples


def exif(orientation: int, order: str = "<") -> bytes:
    """Return EXIF that holds an orientation alone."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}HHIHH", 274, 3, 1, orientation, 0)
    return mark + struct.pack(f"{order}IH", 8, 1) + entry + struct.pack(f"{order}I", 0)


# TIFF -------------------------------------------------------------------------------------------------------------


def page(
    samples: np.ndarray,
    bits: int,
    photometric: int | None = 1,
    rows: int | None = None,
    tile: int | None = None,
    planar: bool = False,
    order: str = "<",
    **tags,
) -> tuple[list[bytes], dict[int, tuple[str, Sequence[int]]]]:
    """Return the segments and tags of a page of samples (H, W) or (H, W, C); more tags as t339=("H", [3])."""
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    planes = [samples[..., i] for i in range(channels)] if planar else [samples]
    if tile:
        by_tile = [
            np.pad(part, [(0, tile - len(part)), (0, tile - part.shape[1])])
            for plane in planes
            for y in range(0, height, tile)
            for x in range(0, width, tile)
            for part in [plane[y : y + tile, x : x + tile]]
        ]
        segments = [packed(part, bits, order) for part in by_tile]
    else:
        step = rows or height
        segments = [packed(plane[y : y + step], bits, order) for plane in planes for y in range(0, height, step)]
    written = {256: ("I", [width]), 257: ("I", [height]), 258: ("H", [bits] * channels), 259: ("H", [1])}
    written |= {277: ("H", [channels]), 284: ("H", [2 if planar else 1])}
    written |= {} if photometric is None else {262: ("H", [photometric])}
    written |= {322: ("I", [tile]), 323: ("I", [tile])} if tile else {278: ("I", [rows or height])}
    return segments, written | {int(name[1:]): tag for name, tag in tags.items()}


def tiff_file(path: Path, *pages, order: str = "<", big: bool = False) -> Path:
    """Write pages, as ``page`` returns them, as a TIFF or BigTIFF."""
    number = "Q" if big else "I"
    mark = {"<": b"II", ">": b"MM"}[order]
    data = bytearray(mark + struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, 0) if big else (42, 0))))
    link = 8 if big else 4
    for segments, tags in pages:
        places = []
        for segment in segments:
            places.append(len(data))
            data += segment + bytes(-len(segment) % 2)
        offsets, counts = (324, 325) if 322 in tags else (273, 279)
        tags = {offsets: ("I", places), counts: ("I", [len(segment) for segment in segments])} | tags
        entries = bytearray()
        for tag, (letter, values) in sorted(tags.items()):
            raw = bytes(values) if letter == "A" else struct.pack(f"{order}{len(values)}{letter}", *values)
            room = 8 if big else 4
            if len(raw) > room:
                raw, at = struct.pack(order + number, len(data)), raw
                data += at + bytes(-len(at) % 2)
            entries += struct.pack(f"{order}HH{number}", tag, TYPES[letter], len(values)) + raw.ljust(room, b"\0")
        struct.pack_into(order + number, data, link, len(data))
        data += struct.pack(order + ("Q" if big else "H"), len(tags)) + entries
        link = len(data)
        data += struct.pack(order + number, 0)
    path.write_bytes(bytes(data))
    return path


# BMP --------------------------------------------------------------------------------------------------------------


def bmp_file(path: Path, pixels: np.ndarray, bits: int, palette: bytes = b"", top_down: bool = False) -> Path:
    """Write indices (H, W) of 1 to 8 bits, or pixels (H, W, C) of bytes as they lie in the file."""
    height, width = pixels.shape[:2]
    rows = packed(pixels if top_down else pixels[::-1], min(bits, 8))
    size = len(rows) // height
    data = b"".join(rows[i * size : (i + 1) * size] + bytes(-size % 4) for i in range(height))
    start = 14 + 40 + len(palette)
    header = struct.pack("<iiiHHIIiiII", 40, width, -height if top_down else height, 1, bits, 0, 0, 0, 0, 0, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + palette + data)
    return path
