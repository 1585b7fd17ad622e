"""Every form of picture that people have is read with the values that it stores, or refused by its name.

Expected are the arrays that were written. The files are written by hand or by another library than the one that reads
them here, and read once more by an independent reader (pypng for PNG, libtiff or libjpeg elsewhere) where it is right.
"""

import struct
import subprocess
import sys
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT
from picture_files import bmp_file, chunk, exif, interlaced_png, page, png_file, read_pypng, tiff_file
from PIL import Image, ImageOps

from datamodules.decoding.readers import MAX_PIXELS, full_value, image_size, is_deep, picture_header, read_grey
from datamodules.files.errors import DataError, UnreadableImageError
from datamodules.mammography import read_picture
from datamodules.records.versions import rule_of
from experiments.measuring.image_sets import FolderImages
from experiments.measuring.moments import moments, read_folder

RAMP = np.linspace(0, 4095, 21 * 13).round().astype(np.uint16).reshape(21, 13)  # 12-bit values
GREY = (np.arange(21 * 13).reshape(21, 13) * 7 % 256).astype(np.uint8)
FULL8, FULL16 = np.full_like(GREY, 255), np.full_like(RAMP, 65535)
RGB16 = np.stack([RAMP] * 3, -1)
REAL = RAMP.astype(np.float32) / 7 - 100
TURNED = {
    1: GREY,
    2: GREY[:, ::-1],
    3: GREY[::-1, ::-1],
    4: GREY[::-1],
    5: GREY.T,
    6: GREY[::-1].T,
    7: GREY[::-1, ::-1].T,
    8: GREY[:, ::-1].T,
}


def small(bits):
    """Return grey levels of fewer than 8 bits."""
    return (GREY.astype(int) % 2**bits).astype(np.uint8)


def stack(*channels):
    return np.stack(channels, -1)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])  # a negative size: so many bytes from the end


# PNG --------------------------------------------------------------------------------------------------------------

OTHER_CHUNKS = (
    chunk(b"gAMA", struct.pack(">I", 100_000))
    + chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
    + chunk(b"cICP", bytes([1, 16, 0, 1]))
    + chunk(b"pHYs", struct.pack(">IIB", 3937, 3937, 1))
    + chunk(b"tEXt", b"Comment\0values are values")
)
SRGB = chunk(b"sRGB", b"\0")


def palette(bits):
    """Return the chunk of 2 ** bits greys, and the greys."""
    greys = (np.arange(2**bits) * 37 + 11) % 256
    return chunk(b"PLTE", stack(greys, greys, greys).astype(np.uint8).tobytes()), greys


def animated(frames):
    return chunk(b"acTL", struct.pack(">II", frames, 0))


PNG = {}
for bits, scale in ((1, 255), (2, 85), (4, 17)):
    PNG[f"grey {bits}"] = (small(bits) * scale, lambda p, b=bits: png_file(p, small(b), b, 0))
    PNG[f"grey {bits} interlaced"] = (
        small(bits) * scale,
        lambda p, b=bits: interlaced_png(p, small(b), b, greyscale=True),
    )
    PNG[f"grey {bits} with a colour for transparent that no pixel has"] = (
        np.zeros_like(GREY),
        lambda p, b=bits: png_file(p, np.zeros_like(GREY), b, 0, chunk(b"tRNS", struct.pack(">H", 1))),
    )
for bits in (1, 2, 4, 8):
    PNG[f"palette {bits}"] = (
        palette(bits)[1][small(bits)],
        lambda p, b=bits: png_file(p, small(b), b, 3, OTHER_CHUNKS + palette(b)[0] + chunk(b"tRNS", b"\xff")),
    )
for bits, values, opaque in ((8, GREY, FULL8), (16, RAMP, FULL16)):
    for name, colour, samples in (
        ("grey", 0, values),
        ("RGB", 2, stack(values, values, values)),
        ("grey and alpha", 4, stack(values, opaque)),
        ("RGB and alpha", 6, stack(values, values, values, opaque)),
    ):
        PNG[f"{name} {bits}"] = (values, lambda p, s=samples, b=bits, c=colour: png_file(p, s, b, c))
        significant = chunk(b"sBIT", bytes([8] * (1 if samples.ndim == 2 else samples.shape[2])))
        PNG[f"{name} {bits}, gamma and more"] = (
            values,
            lambda p, s=samples, b=bits, c=colour, m=significant: png_file(p, s, b, c, m + OTHER_CHUNKS, SRGB),
        )
        settings = {"greyscale": colour in (0, 4), "alpha": colour in (4, 6)}
        PNG[f"{name} {bits} interlaced"] = (
            values,
            lambda p, s=samples, b=bits, k=settings: interlaced_png(p, s, b, **k),
        )
    PNG[f"RGB {bits} with a colour for transparent that no pixel has"] = (
        values,
        lambda p, v=values, b=bits: png_file(p, stack(v, v, v), b, 2, chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))),
    )
    PNG[f"animation of one picture {bits}"] = (values, lambda p, v=values, b=bits: png_file(p, v, b, 0, animated(1)))
PNG["bytes after the end"] = (
    GREY,
    lambda p: png_file(p, GREY, 8, 0).write_bytes(png_file(p, GREY, 8, 0).read_bytes() + b"\n" * 9),
)


@pytest.mark.parametrize("form", PNG)
def test_png(tmp_path, form):
    expected, write = PNG[form]
    write(path := tmp_path / "a.png")
    np.testing.assert_array_equal(read_grey(path), expected.astype(np.float32))
    header = picture_header(path)
    if form != "bytes after the end":  # pypng reads on after it
        other = read_pypng(path) * (255 // (2**header.bits - 1) if header.bits < 8 and header.colour == "grey" else 1)
        np.testing.assert_array_equal(other, expected)
    deep = expected.dtype == np.uint16
    assert (is_deep(path), full_value(path), image_size(path)) == (deep, 65535 if deep else 255, expected.shape)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation):
    """By Pillow's own rule, in every format; in a PNG EXIF may follow the pixels, and lie in either byte order.

    Pillow 13 scrambles a TIFF of orientation 5 to 8 that is not packed, so it is asked about a packed one.
    """
    expected = TURNED[orientation].astype(np.float32)
    for order in "<>":
        said = chunk(b"eXIf", exif(orientation, order))
        png_file(tmp_path / f"before{order}.png", GREY, 8, 0, said)
        png_file(tmp_path / f"after{order}.png", stack(GREY, FULL8).astype(np.uint16) * 257, 16, 4, b"", said)
        turned = page(GREY, 8, order=order, t274=("H", [orientation]))
        tiff_file(tmp_path / f"{order}.tif", turned, order=order)
    Image.fromarray(GREY).save(tmp_path / "packed.tif", compression="tiff_lzw", tiffinfo={274: orientation})
    Image.fromarray(GREY).save(tmp_path / "a.jpg", quality=100, exif=b"Exif\0\0" + exif(orientation))
    for path in sorted(tmp_path.iterdir()):
        values = read_grey(path) / (257 if path.name.startswith("after") else 1)
        assert image_size(path) == values.shape == expected.shape, path.name
        if path.name in ("<.tif", ">.tif"):
            np.testing.assert_array_equal(values, expected)
        else:
            with Image.open(path) as image:
                other = np.asarray(ImageOps.exif_transpose(image).convert("L"))
            np.testing.assert_array_equal(values, other, err_msg=path.name)
            assert np.abs(values - expected).max() <= (2 if path.suffix == ".jpg" else 0), path.name
        assert rule_of(path)[1] == (1 if orientation == 1 and not path.name.startswith("after") else 2), path.name


def raw_exif(packed):
    """Return EXIF as ImageMagick keeps it in a text of a PNG."""
    data = b"Exif\0\0" + exif(6)
    text = b"\nexif\n%8d\n%s\n" % (len(data), data.hex().encode())
    return chunk(
        b"zTXt" if packed else b"tEXt", b"Raw profile type exif\0" + (b"\0" + zlib.compress(text) if packed else text)
    )


ODD_EXIF = {
    "in a text.png": chunk(b"tEXt", b"Comment\0no") + raw_exif(packed=False),
    "in a packed text.png": raw_exif(packed=True),
    "with the mark of a JPEG.png": chunk(b"eXIf", b"Exif\0\0" + exif(6)),
    "without its end.jpg": exif(6)[:-4],
    "with fewer tags than it says.jpg": exif(6)[:-4].replace(b"\1\0", b"\2\0", 1),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("form", ODD_EXIF)
def test_orientation_in_odd_places_is_followed_as_pillow_does(tmp_path, form):
    path = tmp_path / form
    if form.endswith("png"):
        png_file(path, GREY, 8, 0, ODD_EXIF[form])
    else:
        Image.fromarray(GREY).save(path, "JPEG", exif=b"Exif\0\0" + ODD_EXIF[form])
    with Image.open(path) as image:
        other = np.asarray(ImageOps.exif_transpose(image))
    assert other.shape == TURNED[6].shape == image_size(path)
    np.testing.assert_array_equal(read_grey(path), other)
    assert rule_of(path)[1] == 2


# TIFF -------------------------------------------------------------------------------------------------------------

FLOAT, SIGNED = {"t339": ("H", [3])}, {"t339": ("H", [2])}
OPAQUE = {"t338": ("H", [2])}


def grey_map(bits, factor):
    greys = (np.arange(2**bits) * 37 + 11) % 256
    return {"t320": ("H", [*(greys * factor).tolist()] * 3)}, greys


def thumbnail():
    return page(small(4), 8, t254=("I", [1]))


def described(text):
    return {"t270": ("A", text.encode() + b"\0")}


def low_bit_first(path):
    """Write bits in the other order within each byte (FillOrder 2)."""
    segments, tags = page(small(1), 1, t266=("H", [2]))
    bits = np.unpackbits(np.frombuffer(segments[0], np.uint8)).reshape(-1, 8)
    turned = [np.packbits(bits[:, ::-1]).tobytes()]
    tiff_file(path, (turned, tags))


TIFF = {}
for bits in (1, 2, 4, 8, 10, 12, 14, 16):
    stored = small(bits) if bits <= 8 else (RAMP.astype(int) % 2**bits).astype(np.uint16)
    values = stored * (255 // (2**bits - 1)) if bits < 8 else stored
    for order in "<>":
        TIFF[f"{bits} bits {order}"] = (
            values,
            lambda p, s=stored, b=bits, o=order: tiff_file(p, page(s, b, 1, order=o), order=o),
        )
        TIFF[f"{bits} bits {order}, white is zero, strips"] = (
            values,
            lambda p, s=stored, b=bits, o=order: tiff_file(
                p, page((2**b - 1 - s.astype(int)).astype(s.dtype), b, 0, rows=5, order=o), order=o
            ),
        )
    TIFF[f"{bits} bits, tiles, BigTIFF"] = (
        values,
        lambda p, s=stored, b=bits: tiff_file(p, page(s, b, 1, tile=16), big=True),
    )
TIFF |= {
    "16 bits, BigTIFF >": (RAMP, lambda p: tiff_file(p, page(RAMP, 16, order=">"), order=">", big=True)),
    "32 bits": (RAMP * 16, lambda p: tiff_file(p, page((RAMP * 16).astype(np.uint32), 32))),
    "signed 8": (GREY.view(np.int8), lambda p: tiff_file(p, page(GREY.view(np.int8), 8, **SIGNED))),
    "signed 16": (RAMP - 1024.0, lambda p: tiff_file(p, page((RAMP - 1024.0).astype(np.int16), 16, **SIGNED))),
    "signed 32": (RAMP - 1024.0, lambda p: tiff_file(p, page((RAMP - 1024.0).astype(np.int32), 32, **SIGNED))),
    "float 16": (REAL.astype(np.float16), lambda p: tiff_file(p, page(REAL.astype(np.float16), 16, **FLOAT))),
    "float 32": (REAL, lambda p: tiff_file(p, page(REAL, 32, **FLOAT))),
    "float 32 >": (REAL, lambda p: tiff_file(p, page(REAL, 32, order=">", rows=4, **FLOAT), order=">")),
    "float 64": (REAL, lambda p: tiff_file(p, page(REAL.astype(np.float64), 64, **FLOAT))),
    "RGB 8": (GREY, lambda p: tiff_file(p, page(stack(GREY, GREY, GREY), 8, 2))),
    "RGB 16": (RAMP, lambda p: tiff_file(p, page(stack(RAMP, RAMP, RAMP), 16, 2, rows=4))),
    "RGB 8 in planes": (GREY, lambda p: tiff_file(p, page(stack(GREY, GREY, GREY), 8, 2, planar=True, rows=5))),
    "RGB 16, tiles in planes": (RAMP, lambda p: tiff_file(p, page(RGB16, 16, 2, planar=True, tile=16))),
    "RGB and alpha 8": (GREY, lambda p: tiff_file(p, page(stack(GREY, GREY, GREY, FULL8), 8, 2, **OPAQUE))),
    "grey and alpha 8": (GREY, lambda p: tiff_file(p, page(stack(GREY, FULL8), 8, **OPAQUE))),
    "grey and alpha 16, white is zero": (
        RAMP,
        lambda p: tiff_file(p, page(stack(65535 - RAMP, FULL16), 16, 0, **OPAQUE)),
    ),
    "grey and alpha 16 in planes": (RAMP, lambda p: tiff_file(p, page(stack(RAMP, FULL16), 16, planar=True, **OPAQUE))),
    "low bit first": (small(1) * 255, low_bit_first),
    "thumbnail after it": (GREY, lambda p: tiff_file(p, page(GREY, 8), thumbnail())),
    "thumbnail before it": (RAMP, lambda p: tiff_file(p, thumbnail(), page(RAMP, 16))),
    "ImageJ": (RAMP, lambda p: tiff_file(p, page(RAMP, 16, **described("ImageJ=1.54f\nmin=100\nmax=900\n")))),
    "OME": (RAMP, lambda p: tifffile.imwrite(p, RAMP, ome=True)),
    "tifffile's shape": (RAMP, lambda p: tifffile.imwrite(p, RAMP[None, :, :, None])),
    "no data value": (RAMP, lambda p: tiff_file(p, page(RAMP, 16, t42113=("A", b"0\0")))),
}
for bits in (1, 4, 8):
    for factor in (1, 256, 257):
        TIFF[f"palette {bits} times {factor}"] = (
            grey_map(bits, factor)[1][small(bits)],
            lambda p, b=bits, f=factor: tiff_file(p, page(small(b), b, 3, **grey_map(b, f)[0])),
        )
for packing in ("lzw", "zlib", "adobe_deflate", "packbits", "zstd"):
    for predictor in (1,) if packing == "packbits" else (1, 2):
        TIFF[f"16 bits, {packing}, predictor {predictor}"] = (
            RAMP,
            lambda p, c=packing, k=predictor: tifffile.imwrite(
                p, RAMP, byteorder=">", compression=c, predictor=k, rowsperstrip=8, metadata=None
            ),
        )
TIFF["float, predictor 3"] = (REAL, lambda p: tifffile.imwrite(p, REAL, compression="zlib", predictor=3, tile=(16, 16)))
for packing in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "group3", "group4", "tiff_ccitt"):
    for polarity in (0, 1):
        one = packing in ("group3", "group4", "tiff_ccitt")
        TIFF[f"by libtiff, {packing}, photometric {polarity}"] = (
            small(1) * 255 if one else GREY,
            lambda p, c=packing, k=polarity, o=one: Image.fromarray(small(1) > 0 if o else GREY).save(
                p, "TIFF", compression=c, tiffinfo={262: k}
            ),
        )


def read_libtiff(path, form):
    """Return what libtiff decodes, or None for the forms in which it keeps to the packed or inverted values."""
    header = picture_header(path)
    if header.bits not in (8, 16, 32, 64) or header.sample != "unsigned" or header.colour == "palette" or header.page:
        return None
    pixels = imagecodecs.tiff_decode(path.read_bytes(), asrgb=False)
    if "planes" in form:
        return pixels[0]
    pixels = pixels[..., 0] if header.further or header.colour == "RGB" else pixels
    return 2**header.bits - 1 - pixels if header.white_is_zero else pixels


@pytest.mark.parametrize("form", TIFF)
def test_tiff(tmp_path, form):
    expected, write = TIFF[form]
    write(path := tmp_path / "a.tif")
    np.testing.assert_array_equal(read_grey(path), expected.astype(np.float32))
    header = picture_header(path)
    assert (is_deep(path), image_size(path)) == (header.bits > 8, expected.shape)
    whole = header.sample == "unsigned" and header.bits <= 16
    assert full_value(path) == (2 ** max(header.bits, 8) - 1 if whole else None)
    other = read_libtiff(path, form)
    if other is not None:
        np.testing.assert_array_equal(other, expected)
    pillow = rule_of(path) == ("tiff", 1) and form != "16 bits, BigTIFF >"  # Pillow read it before, not the last
    assert pillow <= (header.bits in (8, 16))
    if pillow:
        with Image.open(path) as image:
            other = image.getchannel(0) if image.mode == "RGB" else image
            np.testing.assert_array_equal(np.asarray(other), expected)


@pytest.mark.parametrize("form", ["grey, by tifffile", "tiles", "colour, by libtiff", "12 bits"])
def test_jpeg_inside_a_tiff(tmp_path, form):
    path, smooth = tmp_path / "a.tif", (np.hypot(*np.mgrid[:40, :24]) * 5).astype(np.uint8)
    if form == "colour, by libtiff":
        Image.fromarray(stack(smooth, smooth, smooth)).save(path, compression="jpeg")
    elif form == "12 bits":
        tifffile.imwrite(path, smooth * np.uint16(16), compression="jpeg", bitspersample=12)
    else:
        tifffile.imwrite(path, smooth, compression="jpeg", tile=(16, 16) if form == "tiles" else None, rowsperstrip=16)
    values = read_grey(path)
    if form == "12 bits":
        assert full_value(path) == 4095 and np.abs(values - smooth * 16.0).max() < 30
        return
    with Image.open(path) as image:
        other = np.asarray(image).astype(np.float32)
    np.testing.assert_allclose(values, other if other.ndim == 2 else other.mean(-1), atol=1)
    assert np.abs(values - smooth).max() < 9


# JPEG and BMP -----------------------------------------------------------------------------------------------------


def jpeg12(path, **settings):
    path.write_bytes(imagecodecs.jpeg8_encode(RAMP, bitspersample=12, **settings))


JPEG = {
    "12 bits": (RAMP, lambda p: jpeg12(p, level=100)),
    "12 bits, lossless": (RAMP, lambda p: jpeg12(p, lossless=True)),
    "16 bits, lossless": (
        RAMP * 16,
        lambda p: p.write_bytes(imagecodecs.jpeg8_encode(RAMP * 16, lossless=True, bitspersample=16)),
    ),
    "8 bits, lossless": (GREY, lambda p: p.write_bytes(imagecodecs.jpeg8_encode(GREY, lossless=True))),
}


@pytest.mark.parametrize("form", JPEG)
def test_jpeg_of_many_bits(tmp_path, form):
    expected, write = JPEG[form]
    write(path := tmp_path / "a.jpg")
    np.testing.assert_allclose(read_grey(path), expected, rtol=0, atol=0 if "lossless" in form else 1)
    bits = int(form.split()[0])
    assert (is_deep(path), full_value(path), rule_of(path)) == (bits > 8, 2**bits - 1, ("jpeg", 1 + (bits > 8)))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])  # what a file is called does not matter
@pytest.mark.parametrize("form", ["grey", "grey progressive", "colour", "colour 4:4:4", "colour progressive", "RGB"])
def test_jpeg(tmp_path, form, name):
    smooth = (np.hypot(*np.mgrid[:21, :13]) * 9).astype(np.uint8)
    image = Image.fromarray(smooth if form.startswith("grey") else stack(smooth, smooth, smooth))
    more = {"subsampling": 0} if "4:4:4" in form else {"keep_rgb": True} if form == "RGB" else {}
    image.save(path := tmp_path / name, "JPEG", quality=90, progressive="progressive" in form, **more)
    other = imagecodecs.jpeg8_decode(path.read_bytes())
    values = read_grey(path)
    np.testing.assert_allclose(values, other if other.ndim == 2 else other.mean(-1), rtol=1e-6)
    assert np.abs(values - smooth).max() < 9
    assert not is_deep(path) and rule_of(path)[1] == 1


def bmp_palette(greys):
    return stack(greys, greys, greys, 0 * greys).astype(np.uint8).tobytes()


BMP = {
    f"palette {bits}{', top row first' if top else ''}": (
        palette(bits)[1][small(bits)],
        lambda p, b=bits, t=top: bmp_file(p, small(b), b, bmp_palette(palette(b)[1]), t),
    )
    for bits in (1, 4, 8)
    for top in (False, True)
} | {
    "24": (GREY, lambda p: bmp_file(p, stack(GREY, GREY, GREY), 24)),
    "32": (GREY, lambda p: bmp_file(p, stack(GREY, GREY, GREY, 0 * GREY), 32)),
    "by Pillow": (GREY, lambda p: Image.fromarray(GREY).save(p)),
}


@pytest.mark.parametrize("form", BMP)
def test_bmp(tmp_path, form):
    expected, write = BMP[form]
    write(path := tmp_path / "a.bmp")
    np.testing.assert_array_equal(read_grey(path), expected)
    assert (is_deep(path), full_value(path), image_size(path)) == (False, 255, GREY.shape)
    assert rule_of(path) == ("bmp", 1)


# Refused ----------------------------------------------------------------------------------------------------------

LARGE_JPEG = imagecodecs.jpeg8_encode(np.tile(GREY, (3, 3)))
HALF = np.where(RAMP > 2000, 65535, 700).astype(np.uint16)
ALPHA = (HALF >> 8).astype(np.uint8)
COLOURS = stack(GREY, GREY[::-1], GREY)


def two_in_one(path):
    Image.fromarray(GREY).save(path, "MPO", save_all=True, append_images=[Image.fromarray(FULL8)])


def edited(path, write, old, new):
    write(path)
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new, 1))


def ihdr(height, width):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))


def circle(path):
    """Write a page that names itself as the next one."""
    tiff_file(path, page(GREY, 8))
    data = path.read_bytes()
    path.write_bytes(data[:-4] + data[4:8])


REFUSED = {
    "PNG, colours of 8 bits": ("is a colour image", lambda p: png_file(p, COLOURS, 8, 2)),
    "PNG, colours of 16 bits": (
        "is a colour image .* up to 1 of 65535",
        lambda p: png_file(p, stack(RAMP, RAMP + 1, RAMP), 16, 2),
    ),
    "PNG, colours in a palette": (
        "is a colour image",
        lambda p: png_file(p, small(1), 8, 3, chunk(b"PLTE", bytes([0, 0, 0, 255, 0, 0]))),
    ),
    "PNG, alpha 8": ("is partly transparent", lambda p: png_file(p, stack(GREY, ALPHA), 8, 4)),
    "PNG, alpha 16": ("is partly transparent", lambda p: png_file(p, stack(RAMP, HALF), 16, 4)),
    "PNG, alpha 16 whose high byte is full": (
        "is partly transparent",
        lambda p: png_file(p, stack(RAMP, FULL16 - np.uint16(1)), 16, 4),
    ),
    "PNG, colours and alpha 16": ("is partly transparent", lambda p: png_file(p, stack(RAMP, RAMP, RAMP, HALF), 16, 6)),
    "PNG, transparent in a palette": (
        "is partly transparent",
        lambda p: png_file(p, small(2), 2, 3, palette(2)[0] + chunk(b"tRNS", b"\xff\0")),
    ),
    "PNG, animation": ("is an animation of 2 pictures", lambda p: png_file(p, GREY, 8, 0, animated(2))),
    "PNG, animation beside the picture": (
        "is an animation of 2 pictures",
        lambda p: png_file(p, GREY, 8, 0, animated(1), chunk(b"fcTL", bytes(26))),
    ),
    "PNG, palette too short": ("palette does not have", lambda p: png_file(p, GREY, 8, 3, palette(4)[0])),
    "PNG, no palette": ("palette does not have", lambda p: png_file(p, GREY, 8, 3)),
    "PNG, cut off": ("too small", lambda p: (png_file(p, RGB16, 16, 2), cut(p, 400))),
    "PNG, too few rows": (
        "Not enough image data",
        lambda p: edited(p, lambda q: png_file(q, RGB16, 16, 2), *HEIGHTS),
    ),
    "PNG, too many pixels": (
        f"at most {MAX_PIXELS} are read",
        lambda p: edited(p, lambda q: png_file(q, RGB16, 16, 2), *MANY),
    ),
    "JPEG, CMYK": ("CMYK", lambda p: Image.fromarray(COLOURS).convert("CMYK").save(p, "JPEG")),
    "JPEG, colours": ("is a colour image", lambda p: Image.fromarray(COLOURS).save(p, "JPEG")),
    "JPEG, two pictures": ("holds 2 pictures", two_in_one),
    "JPEG, 12 bits cut off": ("its end is missing", lambda p: (jpeg12(p, level=90), cut(p, -60))),
    "JPEG, 8 bits cut off": ("truncated", lambda p: (Image.fromarray(GREY).save(p, "JPEG"), cut(p, -60))),
    "BMP, 16 bits per pixel": ("5 or 6 bits per colour", lambda p: bmp_file(p, stack(GREY, GREY), 16)),
    "BMP, colours": ("is a colour image", lambda p: bmp_file(p, COLOURS, 24)),
    "TIFF, two pages": ("holds 2 pages", lambda p: tiff_file(p, page(GREY, 8), page(GREY, 8))),
    "TIFF, two pages of unlike size": ("holds 2 pages", lambda p: tiff_file(p, page(GREY, 8), page(GREY[:9], 8))),
    "TIFF, ImageJ's stack behind one directory": (
        "holds 7 pages",
        lambda p: tiff_file(p, page(GREY, 8, **described("ImageJ=1.54f\nimages=7\n"))),
    ),
    "TIFF, circle": ("round in a circle", circle),
    "TIFF, thumbnail alone": ("thumbnails only", lambda p: tiff_file(p, thumbnail())),
    "TIFF, picture and mask": (
        "holds 2 pages",
        lambda p: tiff_file(p, page(GREY, 8), page(small(1), 1, 4, t254=("I", [4]))),
    ),
    "TIFF, mask": ("is a transparency mask", lambda p: tiff_file(p, page(small(1), 1, 4, t254=("I", [4])))),
    "TIFF, colours 8": ("is a colour image", lambda p: tiff_file(p, page(COLOURS, 8, 2))),
    "TIFF, colours 16": ("is a colour image", lambda p: tiff_file(p, page(stack(RAMP, RAMP, RAMP + 1), 16, 2))),
    "TIFF, colours in a palette": (
        "is a colour image",
        lambda p: tiff_file(p, page(small(1), 1, 3, t320=("H", [0, 65535, 0, 0, 0, 0]))),
    ),
    "TIFF, palette of 16 bits": (
        "palette of more than 8 bits",
        lambda p: tiff_file(p, page(small(1), 1, 3, t320=("H", [1000, 60000] * 3))),
    ),
    "TIFF, CMYK": ("it is CMYK", lambda p: tiff_file(p, page(stack(GREY, GREY, GREY, GREY), 8, 5))),
    "TIFF, Lab": ("it is CIELab", lambda p: tiff_file(p, page(COLOURS, 8, 8))),
    "TIFF, YCbCr without JPEG": ("is YCbCr without JPEG", lambda p: tiff_file(p, page(COLOURS, 8, 6))),
    "TIFF, alpha": ("is partly transparent", lambda p: tiff_file(p, page(stack(GREY, ALPHA), 8, **OPAQUE))),
    "TIFF, another channel": ("is partly transparent", lambda p: tiff_file(p, page(stack(GREY, GREY), 8))),
    "TIFF, complex": (
        "complex numbers",
        lambda p: tiff_file(p, page(REAL.astype(np.complex64).view(np.float64), 64, t339=("H", [6]))),
    ),
    "TIFF, real numbers whose white is zero": (
        "white is zero, which has no meaning for float",
        lambda p: tiff_file(p, page(REAL, 32, 0, **FLOAT)),
    ),
    "TIFF, negative numbers whose white is zero": (
        "white is zero, which has no meaning for signed",
        lambda p: tiff_file(p, page(RAMP.view(np.int16), 16, 0, **SIGNED)),
    ),
    "TIFF, large numbers": (
        "more than 24 bits",
        lambda p: tiff_file(p, page(RAMP.astype(np.uint32) + 2**24, 32)),
    ),
    "TIFF, not a number": ("not finite", lambda p: tiff_file(p, page(np.where(RAMP > 9, REAL, np.nan), 32, **FLOAT))),
    "TIFF, beyond float32": ("not finite", lambda p: tiff_file(p, page(REAL.astype(np.float64) * 1e40, 64, **FLOAT))),
    "TIFF, no photometric": (
        "whether zero is black or white",
        lambda p: tiff_file(p, page(GREY, 8, None)),
    ),
    "TIFF, volume": ("volume of 3 slices", lambda p: tiff_file(p, page(GREY, 8, t32997=("I", [3])))),
    "TIFF, JPEG 2000": ("packed with compression 34712", lambda p: tiff_file(p, page(GREY, 8, t259=("H", [34712])))),
    "TIFF, 24 bits": ("24 bits, which are not read", lambda p: tiff_file(p, page(GREY, 8, t258=("H", [24])))),
    "TIFF, strip absent": (
        "a strip or tile is absent",
        lambda p: tiff_file(p, page(GREY, 8, t273=("I", [0]))),
    ),
    "TIFF, strips too few": (
        "3 are needed",
        lambda p: tiff_file(p, page(GREY, 8, rows=7, t273=("I", [8]), t279=("I", [91]))),
    ),
    "TIFF, cut off": (
        "a strip or tile is absent",
        lambda p: tiff_file(p, page(GREY, 8, t279=("I", [5000]))),
    ),
    "TIFF, strip too short": (
        "corrupted strip",
        lambda p: tiff_file(p, page(GREY, 8, rows=7, t279=("I", [91, 60, 91]))),
    ),
    "TIFF, tags cut off": ("is cut off", lambda p: (tiff_file(p, page(GREY, 8)), cut(p, 300))),
    "TIFF, too many pixels": (
        f"at most {MAX_PIXELS} are read",
        lambda p: tiff_file(p, page(GREY, 8, t256=("I", [2**20]), t257=("I", [2**20]))),
    ),
    "TIFF, huge tiles": (
        "tiles of 1048576x1048576 pixels",
        lambda p: tiff_file(p, page(GREY, 8, tile=32, t322=("I", [2**20]), t323=("I", [2**20]))),
    ),
    "TIFF, JPEG strip of another size": (
        "another size or depth than its tags say",
        lambda p: tiff_file(p, ([LARGE_JPEG], page(GREY, 8)[1] | {259: ("H", [7])})),
    ),
    "GIF": ("is none of PNG, JPEG, TIFF and BMP", lambda p: Image.fromarray(GREY).save(p, "GIF")),
    "WebP": ("is none of PNG, JPEG, TIFF and BMP", lambda p: p.write_bytes(b"RIFF\x1a\0\0\0WEBPVP8L" + bytes(20))),
    "nothing": ("is empty", lambda p: p.write_bytes(b"")),
    "folder": ("Is a directory", lambda p: p.mkdir()),
}
MANY = ihdr(21, 13), ihdr(20_000, 20_000)
HEIGHTS = ihdr(21, 13), ihdr(210, 13)
for bits in (1, 2, 4, 8, 16):
    samples = RAMP if bits == 16 else small(bits)
    REFUSED[f"PNG, transparent colour, grey {bits}"] = (
        "is partly transparent .by the colour that its tRNS chunk names",
        lambda p, s=samples, b=bits: png_file(p, s, b, 0, chunk(b"tRNS", struct.pack(">H", s[3, 4]))),
    )
for bits, samples in ((8, GREY), (16, RAMP)):
    REFUSED[f"PNG, transparent colour, RGB {bits}"] = (
        "is partly transparent",
        lambda p, s=samples, b=bits: png_file(
            p, stack(s, s, s), b, 2, chunk(b"tRNS", struct.pack(">3H", *[s[3, 4]] * 3))
        ),
    )


@pytest.mark.parametrize("form", REFUSED)
def test_refused(tmp_path, form):
    words, write = REFUSED[form]
    write(path := tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=rf"^a\.png: .*{words}"):
        read_grey(path)
    assert rule_of(path)[0] == "png"  # a header that is damaged raises nothing there


# What the version before read otherwise, by the header alone; that all others have kept their pixels is said above.
CONCERNED = {
    **{f"PNG, {form}": write for form, (_, write) in PNG.items() if form.startswith("RGB") and "16" in form},
    **{f"PNG, {form}": write for form, (_, write) in PNG.items() if "alpha 16" in form or "transparent" in form},
    **{form: write for form, (_, write) in REFUSED.items() if "transparent colour" in form or "animation" in form},
    **{form: write for form, (_, write) in REFUSED.items() if "two" in form or "16 bits per pixel" in form},
}


@pytest.mark.parametrize("form", CONCERNED)
def test_a_picture_that_was_read_otherwise_has_a_new_version(tmp_path, form):
    CONCERNED[form](tmp_path / "a.jpg")
    assert rule_of(tmp_path / "a.jpg") == ("jpeg", 2)


@pytest.mark.parametrize("form", [form for form in PNG if f"PNG, {form}" not in CONCERNED])
def test_a_picture_that_was_read_rightly_keeps_its_version(tmp_path, form):
    """And the values that Pillow gives, which read it before."""
    expected, write = PNG[form]
    write(path := tmp_path / "a.png")
    assert rule_of(path) == ("png", 1)
    with Image.open(path) as image:
        other = image if image.mode == "I;16" else image.convert("RGBA").getchannel(0)
        np.testing.assert_array_equal(np.asarray(other), expected)


def test_rules_of_files_that_are_no_pictures(tmp_path):
    for name, rule in (("a.nii", "nii"), ("b", "no suffix"), ("c.tif", "tiff")):
        assert rule_of(tmp_path / name) == (rule, 1)


# Every place that reads a picture ---------------------------------------------------------------------------------

SAME = {
    "grey.png": lambda p: png_file(p, RAMP, 16, 0),
    "rgb.png": lambda p: png_file(p, RGB16, 16, 2),
    "la.png": lambda p: png_file(p, stack(RAMP, FULL16), 16, 4),
    "turned.png": lambda p: png_file(p, RAMP[::-1, ::-1], 16, 0, b"", chunk(b"eXIf", exif(3))),
}


def test_the_same_pixels_are_the_same_in_every_reader(tmp_path):
    """16-bit colours came with their high byte: 16 levels of 12 bits, white at 0.06, and no depth to be asked for."""
    for name, write in SAME.items():
        folder = tmp_path / name
        folder.mkdir()
        write(path := folder / name)
        with pytest.raises(DataError, match="value_range"):
            read_picture(path, None)
        np.testing.assert_allclose(read_picture(path, (0, 4095)), RAMP / 4095, atol=1e-6)
        images = FolderImages(folder, 0, value_range=(0, 4095))
        assert images.size == RAMP.shape
        np.testing.assert_allclose(images.read(0, 1)[0, 0].numpy(), RAMP / 2047.5 - 1, atol=1e-6)
        shown = torch.from_numpy(RAMP / 2047.5 - 1)[None, None]
        found = read_folder(folder, (0, 4095))
        torch.testing.assert_close(found.moments, moments(shown))
        assert found.said == "1 PNG of 16 bits, values 0 to 4095"


def test_decoders_are_imported_when_they_are_needed():
    code = (
        "import sys; import datamodules.records.versions; "
        "assert 'PIL' in sys.modules and not {'tifffile', 'imagecodecs'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
