"""DICOM files to display values: every depth, syntax and photometric interpretation, quirks 24 and 25 of real files."""

import logging
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SHARED
from dicom_files import SYNTAXES, lut, mammogram, write_mammogram
from pydicom import dcmread, dcmwrite
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from datamodules.decoding.dicom import MAX_PIXELS, read_dicom
from datamodules.decoding.dicom_headers import read_header
from datamodules.files.errors import UnreadableImageError

DEPTHS = [
    (8, np.uint8),
    (10, np.uint16),
    (12, np.uint16),
    (14, np.uint16),
    (16, np.uint16),
    (12, np.int16),
    (16, np.int16),
]


def limits(bits, dtype):
    return (0, 2**bits - 1) if np.dtype(dtype).kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def random_values(bits=12, dtype=np.uint16, shape=(36, 33)):
    low, high = limits(bits, dtype)
    stored = np.random.default_rng(bits).integers(low, high + 1, shape).astype(dtype)
    stored.flat[:2] = low, high
    return stored


def shown(tmp_path, stored, window=0, **arguments):
    return read_dicom(write_mammogram(tmp_path / "a.dcm", stored, **arguments), window)


def refused(path, match, **arguments):
    with pytest.raises(UnreadableImageError, match=match) as caught:
        read_dicom(path, **arguments)
    assert str(caught.value).startswith(f"{path.name}: ")


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("bits", "dtype"), DEPTHS)
def test_every_syntax_and_depth_gives_the_exact_values(tmp_path, syntax, bits, dtype):
    if (syntax, bits) == ("jpeg_lossless", 8):
        pytest.skip("GDCM cannot write it")
    stored = random_values(bits, dtype)
    low, high = limits(bits, dtype)
    values = shown(tmp_path, stored, syntax=syntax, bits=bits)
    assert values.dtype == np.float32 and values.dtype.isnative
    np.testing.assert_array_equal(values, ((stored.astype(np.float64) - low) / (high - low)).astype(np.float32))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_monochrome1_is_inverted_so_that_one_is_white(tmp_path, syntax):
    stored = random_values()
    values = shown(tmp_path, stored, syntax=syntax, bits=12, photometric="MONOCHROME1")
    np.testing.assert_array_equal(values, (1 - stored / 4095).astype(np.float32))


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("rescale", [None, (1, -1024), (-2.5, 100), (0.01, 3)])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_windows_agree_with_pydicom(tmp_path, function, photometric, rescale, dtype):
    tags = {"WindowCenter": [40, 900.5], "WindowWidth": [350, 1500]}
    if function:
        tags["VOILUTFunction"] = function
    if rescale:
        tags |= {"RescaleSlope": rescale[0], "RescaleIntercept": rescale[1]}
    stored = random_values(12, dtype)
    for window in (0, 1):
        values = shown(tmp_path, stored, window, bits=12, photometric=photometric, **tags)
        dataset = dcmread(tmp_path / "a.dcm")
        theirs = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset, window)
        ends = np.array(limits(12, dtype)) * (rescale[0] if rescale else 1) + (rescale[1] if rescale else 0)
        theirs = (theirs - ends[0]) / (ends[1] - ends[0])  # their output range is that of the stored bits
        theirs = 1 - theirs if photometric == "MONOCHROME1" else theirs
        np.testing.assert_allclose(values, theirs, atol=1e-6)


def test_window_by_hand(tmp_path):
    stored = np.array([[0, 1000, 1500, 2000, 2001, 4095]], np.uint16)
    values = shown(tmp_path, stored, bits=12, WindowCenter=1500.5, WindowWidth=1001)
    np.testing.assert_allclose(values, [[0, 0, 0.5, 1, 1, 1]], atol=1e-7)
    values = shown(tmp_path, stored, bits=12, WindowCenter=1500, WindowWidth=1)  # a threshold
    np.testing.assert_array_equal(values, [[0, 0, 1, 1, 1, 1]])


def test_without_window_the_declared_bits_are_the_range_not_the_depth(tmp_path):
    stored = np.array([[0, 1023]], np.uint16)
    np.testing.assert_array_equal(shown(tmp_path, stored, bits=10), [[0, 1]])
    assert shown(tmp_path, stored, bits=12).max() == pytest.approx(1023 / 4095)
    values = shown(tmp_path, stored, bits=10, RescaleSlope=-2, RescaleIntercept=7)  # black is the lowest result
    np.testing.assert_array_equal(values, [[1, 0]])


@pytest.mark.parametrize("window", [1, 2, -1])
def test_window_that_is_not_there_is_refused(tmp_path, window):
    path = write_mammogram(tmp_path / "a.dcm", random_values(), bits=12, WindowCenter=[9], WindowWidth=[9])
    refused(path, "has 1 windows", window=window)


@pytest.mark.parametrize(
    ("function", "width"), [("LINEAR", 0.5), ("LINEAR", 0), ("LINEAR", -5), ("LINEAR_EXACT", 0), ("SIGMOID", -1)]
)
def test_window_too_narrow_is_refused(tmp_path, function, width):
    tags = {"WindowCenter": 100, "WindowWidth": width, "VOILUTFunction": function}
    refused(write_mammogram(tmp_path / "a.dcm", random_values(), bits=12, **tags), "window width .* too small")


@pytest.mark.parametrize(
    "tags",
    [{"RescaleSlope": 0, "RescaleIntercept": 0}, {"WindowCenter": 1, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}],
)
def test_senseless_tags_are_refused(tmp_path, tags):
    refused(write_mammogram(tmp_path / "a.dcm", random_values(), bits=12, **tags), "rescale slope is 0|CUBIC")


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big_endian", "jpeg2000"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_voi_lut_goes_before_the_window_and_is_scaled_by_its_bits(tmp_path, syntax, bits):
    table = np.linspace(0, 2**bits - 1, 1000).astype(int) ** 2 // (2**bits)
    tags = {"VOILUTSequence": lut(table.tolist(), 50, bits), "WindowCenter": 1, "WindowWidth": 2}
    stored = random_values()
    values = shown(tmp_path, stored, syntax=syntax, bits=12, **tags)
    expected = table[np.clip(stored.astype(int) - 50, 0, 999)] / (2**bits - 1)
    np.testing.assert_allclose(values, expected, atol=1e-7)


def test_voi_lut_agrees_with_pydicom(tmp_path):
    table = (4095 - np.arange(4096)).tolist()
    values = shown(tmp_path, random_values(), bits=12, VOILUTSequence=lut(table, 0, 12))
    dataset = dcmread(tmp_path / "a.dcm")
    np.testing.assert_allclose(values, apply_voi_lut(dataset.pixel_array, dataset) / 4095, atol=1e-7)


def test_second_voi_lut_is_chosen_by_the_window(tmp_path):
    luts = lut([0, 255], 0, 8)
    luts.append(lut([255, 0], 0, 8)[0])
    stored = np.array([[0, 1]], np.uint16)
    np.testing.assert_array_equal(shown(tmp_path, stored, 0, VOILUTSequence=luts), [[0, 1]])
    np.testing.assert_array_equal(shown(tmp_path, stored, 1, VOILUTSequence=luts), [[1, 0]])


def test_modality_lut_with_negative_first_value(tmp_path):
    stored = np.array([[-2048, -2047, 0, 2047]], np.int16)
    table = np.arange(4096)[::-1].tolist()
    values = shown(tmp_path, stored, bits=12, ModalityLUTSequence=lut(table, -2048, 12))
    np.testing.assert_allclose(values, [[1, 4094 / 4095, 2047 / 4095, 0]], atol=1e-7)


def test_damaged_lut_is_refused(tmp_path):
    sequence = lut([1, 2, 3], 0, 8)
    sequence[0].LUTDescriptor = [4, 0, 8]
    refused(write_mammogram(tmp_path / "a.dcm", random_values(), bits=12, VOILUTSequence=sequence), "damaged LUT")
    refused(write_mammogram(tmp_path / "b.dcm", random_values(), VOILUTSequence=lut([256], 0, 8)), "damaged LUT")
    refused(write_mammogram(tmp_path / "c.dcm", random_values(), VOILUTSequence=lut([1], 0, 7)), "LUT of 7 bits")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("syntax", ["explicit", "big_endian", "rle"])
def test_padding_is_black_after_everything(tmp_path, photometric, syntax):
    stored = np.array([[-2000, -1500, -1000, 0, 2000]], np.int16)
    tags = {"WindowCenter": 0, "WindowWidth": 10, "RescaleSlope": -1, "RescaleIntercept": 0, "PixelPaddingValue": -2000}
    values = shown(tmp_path, stored, syntax=syntax, photometric=photometric, **tags)
    assert values[0, 0] == 0 and values[0, 1] == (photometric == "MONOCHROME2")
    values = shown(tmp_path, stored, syntax=syntax, photometric=photometric, **tags, PixelPaddingRangeLimit=-1200)
    assert values[0, :2].tolist() == [0, 0] and values[0, 2] == (photometric == "MONOCHROME2")


def test_empty_tags_count_as_absent(tmp_path):
    tags = dict.fromkeys(("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "VOILUTFunction"), "")
    np.testing.assert_array_equal(shown(tmp_path, np.array([[0, 65535]], np.uint16), **tags), [[0, 1]])


def test_overlay_in_unused_bits_is_not_part_of_the_image(tmp_path):
    stored = random_values()
    values = shown(tmp_path, stored | 0x8000, bits=12)
    np.testing.assert_array_equal(values, (stored / 4095).astype(np.float32))


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"NumberOfFrames": 3}, "multi-frame image \\(3 frames\\)"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "not a grey image .*PALETTE COLOR"),
        (
            {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 0},
            "not a grey image .*RGB",
        ),
        ({"Rows": 60000, "Columns": 60000}, f"60000x60000 pixels; at most {MAX_PIXELS}"),
        ({"Rows": 0}, "0x33 pixels"),
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "32 bits per pixel"),
        ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "1 bits per pixel"),
        ({"BitsStored": 17}, "17 of 16 bits"),
        ({"BitsStored": 0}, "0 of 16 bits"),
        ({"HighBit": 14}, "highest bit is 14"),
        ({"Rows": 37}, "number of bytes of pixel data is less than expected"),
        ({"PixelData": None}, "holds no image"),
        ({"Columns": None}, "Columns"),
    ],
)
def test_unsuitable_file_is_refused_by_name(tmp_path, tags, reason):
    path = tmp_path / "x.dcm"
    dcmwrite(path, mammogram(random_values(), **tags), enforce_file_format=True)
    refused(path, reason)


def test_unknown_syntax_and_missing_decoder_are_named(tmp_path, monkeypatch):
    from pydicom.pixels.decoders.base import Decoder

    dataset = mammogram(random_values(), "rle", bits=12)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    dcmwrite(tmp_path / "x.dcm", dataset, enforce_file_format=True)
    refused(tmp_path / "x.dcm", "transfer syntax MPEG2 .* is not supported")
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
    dcmwrite(tmp_path / "x.dcm", dataset, enforce_file_format=True)
    monkeypatch.setattr(Decoder, "is_available", False)
    monkeypatch.setattr(Decoder, "missing_dependencies", ["pylibjpeg needs pylibjpeg-openjpeg"])
    refused(tmp_path / "x.dcm", "no decoder for High-Throughput JPEG 2000 .*pylibjpeg")


@pytest.mark.parametrize("syntax", ["jpeg2000", "jpeg_lossless", "jpeg_ls", "rle", "explicit", "deflated"])
def test_cut_off_file_is_refused(tmp_path, syntax):
    path = write_mammogram(tmp_path / "x.dcm", random_values(shape=(60, 50)), syntax, bits=12)
    whole = path.read_bytes()
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(path, ".")


@pytest.mark.parametrize("syntax", ["jpeg2000", "jpeg_lossless", "jpeg_ls"])
def test_codestream_that_contradicts_the_header_is_refused(tmp_path, syntax):
    path = write_mammogram(tmp_path / "x.dcm", random_values(), syntax, bits=12)
    dataset = dcmread(path)
    dataset.Rows, dataset.Columns = dataset.Columns, dataset.Rows  # as many pixels, another picture
    dcmwrite(path, dataset)
    refused(path, "compressed image has 36x33 pixels of 1 channels, its header says 33x36")


@pytest.mark.parametrize("content", [b"", b"no image", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM\x02\0"])
def test_no_dicom_file_is_refused(tmp_path, content):
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    refused(path, ".")
    refused(tmp_path / "absent.dcm", "No such file")


def test_nothing_of_pydicom_leaks(tmp_path, caplog, recwarn):
    dataset = mammogram(random_values(), bits=12, WindowCenter=1, WindowWidth=100)
    dataset["PatientID"]._value = "bad\\id" * 30
    dataset.PixelData += b"\0\0"  # pydicom warns of a length that is not the expected one
    dcmwrite(tmp_path / "x.dcm", dataset, enforce_file_format=True)
    caplog.set_level(logging.DEBUG)
    read_dicom(tmp_path / "x.dcm")
    read_header(tmp_path / "x.dcm")
    assert not recwarn.list and not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_warnings_as_errors_change_nothing(tmp_path):
    dataset = mammogram(random_values(), bits=12)
    dataset.PixelData += b"\0\0"
    dcmwrite(tmp_path / "x.dcm", dataset, enforce_file_format=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_dicom(tmp_path / "x.dcm")


def test_header_is_read_without_pixels(tmp_path):
    path = write_mammogram(tmp_path / "x.dcm", random_values(), bits=12, ViewPosition="MLO", ImageLaterality="R")
    header = read_header(path)
    assert (header.PatientID, header.ViewPosition, header.ImageLaterality) == ("P1", "MLO", "R")
    assert "PixelData" not in header and "PatientName" not in header
    path.write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"^x.dcm: is not a DICOM file"):
        read_header(path)


def test_import_is_lazy():
    code = "import sys, datamodules.decoding.dicom; assert not {'pydicom', 'gdcm'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# Real files -------------------------------------------------------------------------------------------------------

needs_samples = pytest.mark.skipif(not SHARED.is_dir(), reason="the real samples (../shared/data) are not here")
FILES = SHARED / "dicom" / "pydicom_test_files"
UNREADABLE = {
    "JPEG-lossy.dcm": "JPEG Extended .*12-bit",
    "MR_truncated.dcm": "less than expected",
    "SC_rgb.dcm": "not a grey image",
    "color-pl.dcm": "not a grey image",
    "badVR.dcm": "invalid literal",
    "empty_charset_LEI.dcm": "holds no image",
    "no_meta_group_length.dcm": "holds no image",
    "no_meta.dcm": "is not a DICOM file",
    "emri_small.dcm": "multi-frame image \\(10 frames",
    "emri_small_RLE.dcm": "multi-frame image",
    "liver.dcm": "multi-frame|1 bits",
    "rtdose_1frame.dcm": "32 bits",
}


def same_as_pydicom(path: Path) -> None:
    dataset = dcmread(path)
    stored = dataset.pixel_array
    theirs = apply_voi_lut(apply_modality_lut(stored.astype(stored.dtype.newbyteorder("=")), dataset), dataset)
    bits, slope, intercept = dataset.BitsStored, dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    low, high = limits(bits, np.uint8 if dataset.PixelRepresentation == 0 else np.int8)
    if "ModalityLUTSequence" in dataset:
        low, high = 0, 2 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    if slope is not None:
        low, high = low * slope + intercept, high * slope + intercept
    if "VOILUTSequence" in dataset:
        low, high = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    theirs = np.clip((theirs.astype(np.float64) - float(low)) / float(high - low), 0, 1)
    theirs = 1 - theirs if dataset.PhotometricInterpretation == "MONOCHROME1" else theirs
    np.testing.assert_allclose(read_dicom(path), theirs, atol=1e-6)


@needs_samples
@pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, called by the test itself
@pytest.mark.parametrize("path", sorted(SHARED.glob("**/*.dcm")), ids=lambda path: path.name)
def test_quirks_24_and_25_real_files_agree_with_pydicom_or_are_refused_by_name(path):
    if path.name in UNREADABLE:
        refused(path, UNREADABLE[path.name])
    elif path.name == "CT_small.dcm":  # has padding
        assert not (dcmread(path).pixel_array == -2000).any()
        same_as_pydicom(path)
    else:
        same_as_pydicom(path)


@needs_samples
def test_quirk_24_big_endian_and_compressed_copies_show_the_same(tmp_path):
    plain = read_dicom(FILES / "MR_small.dcm")
    for name in ("MR_small_bigendian", "MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"):
        np.testing.assert_array_equal(read_dicom(FILES / f"{name}.dcm"), plain)


@needs_samples
def test_quirk_24_monochrome1_films_show_bone_white():
    values = read_dicom(FILES / "RG1_J2KI.dcm")
    stored = dcmread(FILES / "RG1_J2KI.dcm").pixel_array
    assert np.corrcoef(values.ravel()[::97], stored.ravel()[::97])[0, 1] < -0.99


@needs_samples
def test_quirk_24_second_of_several_windows():
    first, second = (read_dicom(FILES / "examples_overlay.dcm", window) for window in (0, 1))
    assert second.mean() > first.mean()
    refused(FILES / "examples_overlay.dcm", "data.window=2", window=2)
