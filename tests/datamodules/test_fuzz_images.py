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

import numpy as np
import pytest
from PIL import Image

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from datamodules.dicom import _stored_values, read_dicom  # noqa: E402
from datamodules.readers import UnreadableImageError, read_grey  # noqa: E402

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
    """Read a file; return "read" or "refused", or raise AssertionError if it is neither."""
    dicom = path.suffix == ".dcm"
    try:
        values = read_dicom(path) if dicom else read_grey(path)
    except UnreadableImageError as error:
        assert str(error).startswith(f"{path.name}: ") and len(str(error)) > len(path.name) + 5, str(error)
        return "refused"
    assert values.dtype == np.float32 and values.ndim == 2
    if not dicom:
        with Image.open(path) as image:
            other = np.asarray(image if image.mode in ("L", "I;16", "I") else image.convert("RGB"))
        np.testing.assert_allclose(values, other if other.ndim == 2 else other.mean(axis=-1), rtol=1e-6)
        return "read"
    from pydicom import dcmread

    assert 0 <= values.min() <= values.max() <= 1
    stored, other = _stored_values(dcmread(path)), dcmread(path).pixel_array
    assert values.shape == stored.shape == other.shape
    np.testing.assert_array_equal(stored, other)
    return "read"


def child(folder: Path, first_seed: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    bases = sorted(path for path in folder.iterdir() if path.name.startswith("base"))
    results = {"read": 0, "refused": 0}
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


def test_damaged_png_files_are_read_as_pillow_reads_them_or_refused(tmp_path):
    random_values = np.random.default_rng(0)
    grey = random_values.integers(0, 256, (12, 9), dtype=np.uint8)
    deep = random_values.integers(0, 65536, (12, 9), dtype=np.uint16)
    for name, array, mode in (("0", grey, None), ("1", deep, None), ("2", grey, "RGB"), ("3", grey, "P")):
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(tmp_path / f"base{name}.png")
    read, refused = run_child(tmp_path, 800)
    assert read > 20 and refused > 300


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
