"""Bits of compressed frames: as an independent codec (imagecodecs) writes and reads them, and what is refused."""

import imagecodecs
import numpy as np
import pytest
from dicom_files import mammogram
from pydicom import dcmwrite
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless

from datamodules.decoding.dicom import read_dicom, read_values
from datamodules.decoding.dicom_headers import can_show_otherwise
from datamodules.files.errors import UnreadableImageError

CODECS = ("jpeg2000", "jpeg_ls", "jpeg_lossless")
# Stored bits, allocated bits, bits of the codestream.
BITS = [(8, 16, 8), (8, 16, 16), (10, 16, 10), (10, 16, 16), (12, 16, 12), (12, 16, 16), (16, 16, 16), (8, 8, 8)]
NARROW = [(7, 8, 8), (6, 8, 8), (7, 16, 8), (10, 16, 12)]


def encoded(values, codec, precision):
    """Return a codestream of so many bits, and the values that imagecodecs decodes from it."""
    unsigned = (values.astype(np.int64) & (2**precision - 1)).astype(np.uint8 if precision <= 8 else np.uint16)
    if codec == "jpeg2000":
        given = values.astype(f"{values.dtype.kind}{1 if precision <= 8 else 2}")
        frame = imagecodecs.jpeg2k_encode(given, level=0, codecformat="j2k", bitspersample=precision, reversible=True)
        return frame, imagecodecs.jpeg2k_decode(frame)
    if codec == "jpeg_ls":
        frame = imagecodecs.jpegls_encode(unsigned)
        return frame, imagecodecs.jpegls_decode(frame)
    frame = imagecodecs.ljpeg_encode(unsigned, bitspersample=precision)
    return frame, imagecodecs.ljpeg_decode(frame)


def write(path, stored, frame, codec, bits):
    dataset = mammogram(stored, bits=bits)
    uids = {"jpeg2000": JPEG2000Lossless, "jpeg_ls": JPEGLSLossless, "jpeg_lossless": JPEGLosslessSV1}
    dataset.PixelData, dataset.file_meta.TransferSyntaxUID = encapsulate([frame]), uids[codec]
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dcmwrite(path, dataset, enforce_file_format=True)
    return path


@pytest.mark.parametrize("kind", ["u", "i"])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("bits", "allocated", "precision"), BITS + NARROW)
def test_every_valid_number_of_bits_gives_the_exact_values(tmp_path, codec, bits, allocated, precision, kind):
    low, high = (0, 2**bits) if kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    stored = np.random.default_rng(bits).integers(low, high, (40, 33)).astype(f"{kind}{allocated // 8}")
    stored.flat[:2] = low, high - 1
    frame, decoded = encoded(stored, codec, precision)
    decoded = decoded.astype(np.int64) & (2**bits - 1)  # two's complement of the stored bits, as DICOM defines it
    np.testing.assert_array_equal(decoded, stored.astype(np.int64) & (2**bits - 1))
    path = write(tmp_path / "a.dcm", stored, frame, codec, bits)
    np.testing.assert_array_equal(read_values(path).values, stored)
    shown = (stored.astype(np.float64) - low) / (high - 1 - low)
    np.testing.assert_array_equal(read_dicom(path), shown.astype(np.float32))
    assert can_show_otherwise(path) == (bits < allocated and (bits <= 8 or kind == "i"))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("bits", "precision", "dtype"), [(12, 8, np.uint16), (16, 8, np.uint16), (8, 16, np.uint8)])
def test_fewer_bits_than_are_stored_and_more_than_are_allocated_are_refused(tmp_path, codec, bits, precision, dtype):
    stored = np.random.default_rng(0).integers(0, 256, (40, 33)).astype(dtype)
    frame, _ = encoded(stored, codec, precision)
    with pytest.raises(UnreadableImageError, match=f"^a.dcm: its compressed image has {precision} bits, .* {bits} of"):
        read_dicom(write(tmp_path / "a.dcm", stored, frame, codec, bits))
