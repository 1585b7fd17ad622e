"""Damaged images: a file is read as others read it, or refused by its name; nothing crashes, hangs or raises otherwise.

Run as a script, this file is the child process that reads the damaged files: a decoder's crash must not take the tests
with it. To see one case again: python tests/datamodules/test_fuzz_images.py FOLDER SEED 1
"""

import os
import random
import resource
import struct
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from picture_files import bmp_file, chunk, exif, page, png_file, read_pypng, tiff_file  # noqa: E402

from datamodules.decoding.dicom import _stored_values, read_dicom  # noqa: E402
from datamodules.decoding.readers import is_deep, picture_header, read_grey  # noqa: E402
from datamodules.files.errors import UnreadableImageError  # noqa: E402
from datamodules.records.versions import rule_of  # noqa: E402

SECONDS = 120
MEMORY = 6 * 2**30  # address space; a decoder that believes a damaged size must fail, not fill the machine
ABSURD = (0, 1, 2, 7, 255, 256, 4095, 32767, 65535)
TAGS = (0x0002, 0x0004, 0x0008, 0x0010, 0x0011, 0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x1050, 0x1051, 0x3002)


def damaged(data: bytes, chance: random.Random, dicom: bool) -> bytes:
    """Return a copy with one to three damages of different kinds."""
    data = bytearray(data)
    head = min(len(data) - 1, 1100 if dicom else 60)
    start = 128 if dicom else 0
    for _ in range(chance.randint(1, 3)):
        kind = chance.choice(("head", "head", "body", "body", "cut", "length", "tag", "insert", "delete"))
        if kind == "head":
            data[chance.randrange(min(start, len(data) - 1), max(min(head, len(data)), start + 1)) % len(data)] ^= (
                1 << chance.randrange(8)
            )
        elif kind == "body":
            for _ in range(chance.randint(1, 12)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        elif kind == "cut":
            del data[chance.randrange(1, len(data)) :]
        elif kind == "length":
            a, b = (chance.randrange(max(len(data) - 4, 1)) for _ in range(2))
            data[a : a + 4], data[b : b + 4] = data[b : b + 4], data[a : a + 4]
        elif kind == "tag" and dicom:
            at = bytes(data).find(struct.pack("<HH", 0x0028, chance.choice(TAGS)))
            if at >= 0:
                data[at + 8 : at + 10] = struct.pack("<H", chance.choice(ABSURD))
        elif kind == "insert":
            at = chance.randrange(len(data))
            data[at:at] = chance.randbytes(chance.randint(1, 9))
        elif kind == "delete":
            at = chance.randrange(len(data))
            del data[at : at + chance.randint(1, 9)]
        if len(data) < 2:
            break
    return bytes(data)


def read_both(path: Path) -> str:
    """Read a file; return "read" (as others do), "not compared" or "refused"; else raise AssertionError."""
    dicom = path.suffix == ".dcm"
    rule_of(path)
    try:
        values = read_dicom(path) if dicom else read_grey(path)
    except UnreadableImageError as error:
        assert str(error).startswith(f"{path.name}: ") and len(str(error)) > len(path.name) + 5, str(error)
        return "refused"
    assert values.dtype == np.float32 and values.ndim == 2
    if not dicom:
        return "read" if compare(path, values) else "not compared"
    from pydicom import dcmread

    assert 0 <= values.min() <= values.max() <= 1
    stored, other = _stored_values(dcmread(path)), dcmread(path).pixel_array
    assert values.shape == stored.shape == other.shape
    np.testing.assert_array_equal(stored, other)
    return "read"


def compare(path: Path, values: np.ndarray) -> bool:
    """Compare a picture with what another reader makes of it: Pillow, or where that is not right one that is.

    Returns:
        Whether there is one.
    """
    header, other = picture_header(path), None
    assert np.isfinite(values).all() and values.shape == header.shown_size
    if header.orientation != 1 or header.colour == "palette":
        return False
    if header.kind == "PNG" and is_deep(path):
        other = read_pypng(path)
    elif header.kind == "TIFF" and header.bits in (8, 16) and header.page == 0:
        try:
            stored = imagecodecs.tiff_decode(path.read_bytes(), index=0, asrgb=False)
        except (IndexError, ValueError, imagecodecs.TiffError):  # libtiff asks more of tags that are not needed
            return False
        other = stored[..., 0] if header.further else stored
        other = 2**header.bits - 1 - other if header.white_is_zero else other
    elif header.kind != "TIFF" and not is_deep(path):
        with Image.open(path) as image:
            other = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    if other is None:
        return False
    np.testing.assert_allclose(values, other if other.ndim == 2 else other.mean(axis=-1), rtol=1e-6)
    return True


def child(folder: Path, first_seed: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    bases = sorted(path for path in folder.iterdir() if path.name.startswith("base"))
    results = {"read": 0, "not compared": 0, "refused": 0}
    for seed in range(first_seed, first_seed + count):
        base = bases[seed % len(bases)]
        path = folder / f"damaged{base.suffix}"
        path.write_bytes(damaged(base.read_bytes(), random.Random(seed), base.suffix == ".dcm"))
        (folder / "seed").write_text(f"{seed} ({base.name})")
        results[read_both(path)] += 1
    print(results["read"], results["refused"])


def run_child(folder: Path, count: int) -> tuple[int, int]:
    command = [sys.executable, __file__, str(folder), "0", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"hangs at seed {(folder / 'seed').read_text()}") from error
    assert done.returncode == 0, f"seed {(folder / 'seed').read_text()}: {done.returncode}\n{done.stderr[-3000:]}"
    read, refused = done.stdout.split()[-2:]
    return int(read), int(refused)


def test_damaged_png_files_are_read_as_others_read_them_or_refused(tmp_path):
    random_values = np.random.default_rng(0)
    grey = random_values.integers(0, 256, (12, 9), dtype=np.uint8)
    deep = random_values.integers(0, 65536, (12, 9), dtype=np.uint16)
    full = np.full_like(deep, 65535)
    for name, array, mode in (("0", grey, None), ("1", deep, None), ("2", grey, "RGB"), ("3", grey, "P")):
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(tmp_path / f"base{name}.png")
    for name, channels, colour in (("4", [deep] * 3, 2), ("5", [deep, full], 4), ("6", [deep, deep, deep, full], 6)):
        png_file(tmp_path / f"base{name}.png", np.stack(channels, -1), 16, colour, chunk(b"gAMA", bytes(4)))
    png_file(tmp_path / "base7.png", grey, 8, 0, chunk(b"tRNS", bytes(2)), chunk(b"eXIf", exif(3)))
    read, refused = run_child(tmp_path, 1000)
    assert read > 20 and refused > 300


def test_damaged_tiff_files_are_read_as_libtiff_reads_them_or_refused(tmp_path):
    import tifffile

    deep = np.random.default_rng(0).integers(0, 4096, (12, 9), dtype=np.uint16)
    grey = (deep >> 4).astype(np.uint8)
    for number, arguments in enumerate(
        ({"photometric": 0, "rows": 5}, {"tile": 16}, {"t338": ("H", [2])}, {"order": ">"}, {"t274": ("H", [6])})
    ):
        order, alpha = arguments.get("order", "<"), np.stack([deep, np.full_like(deep, 65535)], -1)
        samples = alpha if "t338" in arguments else deep
        tiff_file(tmp_path / f"base{number}.tif", page(samples, 16, **arguments), order=order, big=number == 1)
    tiff_file(tmp_path / "base5.tif", page(deep, 12, 0))
    tiff_file(tmp_path / "base6.tif", page(grey & 1, 1, 3, t320=("H", [0, 65535] * 3)))
    packings = ("jpeg", "lzw", "zlib", "packbits", "zstd")
    for number, packing in enumerate(packings, 7):
        array = grey if packing == "jpeg" else deep
        tifffile.imwrite(tmp_path / f"base{number:02}.tif", array, compression=packing, metadata=None)
    read, refused = run_child(tmp_path, 1200)
    assert read > 100 and refused > 300


def test_damaged_jpeg_and_bmp_files_are_read_as_pillow_reads_them_or_refused(tmp_path):
    deep = np.random.default_rng(0).integers(0, 4096, (12, 9), dtype=np.uint16)
    grey = (deep >> 4).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "base0.jpg", exif=b"Exif\0\0" + exif(1))
    Image.fromarray(np.stack([grey // 16 + 100] * 3, -1)).save(tmp_path / "base1.jpg")
    for number, settings in enumerate(({"level": 95}, {"lossless": True}), 2):
        data = imagecodecs.jpeg8_encode(deep, bitspersample=12, **settings)
        (tmp_path / f"base{number}.jpg").write_bytes(data)
    bmp_file(tmp_path / "base4.bmp", grey & 15, 4, bytes(range(64)))
    bmp_file(tmp_path / "base5.bmp", np.stack([grey] * 3, -1), 24)
    Image.fromarray(grey).save(tmp_path / "base6.bmp")
    read, refused = run_child(tmp_path, 1000)
    assert read > 100 and refused > 300


@pytest.mark.parametrize("count", [600, pytest.param(3000, marks=pytest.mark.slow)])
def test_damaged_dicom_files_are_read_as_pydicom_reads_them_or_refused(tmp_path, count):
    from dicom_files import SYNTAXES, lut, write_mammogram

    stored = np.random.default_rng(0).integers(0, 4096, (36, 33), dtype=np.uint16)
    extra = {"WindowCenter": [2000, 1000], "WindowWidth": [4000, 500], "PixelPaddingValue": 7}
    for number, syntax in enumerate((*SYNTAXES, "jpeg2000", "rle", "jpeg_lossless", "jpeg_ls")):
        tags = extra if number < len(SYNTAXES) else {"VOILUTSequence": lut(list(range(256)), 5, 8)}
        write_mammogram(tmp_path / f"base{number:02d}_{syntax}.dcm", stored, syntax, bits=12, **tags)
    read, refused = run_child(tmp_path, count)
    assert read > count / 15 and refused > count / 3


if __name__ == "__main__":
    child(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
