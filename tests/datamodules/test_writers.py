import os
import re
import shutil
import subprocess

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

from datamodules.decoding.readers import read_grey
from datamodules.records.records import Intensity
from datamodules.writing.writers import NOTICE, NOTICE_OF_TRANSLATION, write_dicom, write_png8, write_png16

HU = Intensity(-1000.0, 1000.0, 12, "HU", "Hounsfield units")
GREY = Intensity(0.0, 255.0, 8, "grey value", "display window; bright is dense")
DISPLAY = Intensity(0.0, 1.0, 16, "display grey", "white is dense")
INTENSITIES = [HU, GREY, DISPLAY, Intensity(-0.1, 0.7, 10, "1/cm", "attenuation"), Intensity(0, 3, 1, "a", "b")]


def ramp(levels: int) -> torch.Tensor:
    """Every level once, as near to square as it gets."""
    height = 2 ** (levels.bit_length() // 2)
    return (torch.arange(levels + 1.0) * (2 / levels) - 1).reshape(1, height, -1)


WRITERS = {
    "png8": write_png8,
    "png16": write_png16,
    "dicom": lambda image, path: write_dicom(image, path, HU, "test"),
}


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


# PNG ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("write_png", "levels", "dtype"), [(write_png8, 255, "uint8"), (write_png16, 65535, "uint16")])
def test_png_holds_every_level(tmp_path, write_png, levels, dtype):
    image = ramp(levels)
    write_png(image, tmp_path / "a.png")
    stored = read_grey(tmp_path / "a.png")
    assert np.array_equal(stored.ravel(), np.arange(levels + 1))
    with Image.open(tmp_path / "a.png") as file:
        assert np.asarray(file).dtype == dtype
    back = Intensity(0, 1, 8 * np.dtype(dtype).itemsize, "", "").to_images(stored)
    torch.testing.assert_close(back, image[0], rtol=0, atol=1e-6)


def test_nearest_level_is_written(tmp_path):
    write_png8(torch.tensor([[-1.0, -0.9961, -0.9960, 0.0, 0.9960, 0.9961, 1.0]]), tmp_path / "a.png")
    assert read_grey(tmp_path / "a.png").tolist() == [[0, 0, 1, 128, 254, 255, 255]]


def test_values_outside_are_clamped(tmp_path):
    write_png16(torch.tensor([[-7.0, -1.0001, 1.0001, 1e30]]), tmp_path / "a.png")
    assert read_grey(tmp_path / "a.png").tolist() == [[0, 0, 65535, 65535]]


def test_png8_colour(tmp_path):
    image = torch.rand(3, 4, 5) * 2 - 1
    write_png8(image, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as file:
        assert file.mode == "RGB"
        assert np.array_equal(np.asarray(file), ((image + 1) * 127.5).round().permute(1, 2, 0).numpy())


@pytest.mark.parametrize("write_png", [write_png8, write_png16])
def test_png_says_what_it_is(tmp_path, write_png):
    write_png(torch.zeros(4, 4), tmp_path / "a.png", Intensity(-0.1, 1000, 12, "µHU", "bright\nis dense, 密"))
    with Image.open(tmp_path / "a.png") as file:
        assert file.text == {
            "Synthetic": "yes",
            "Software": "Mirage",
            "Comment": NOTICE,
            "Intensity low": "-0.1",
            "Intensity high": "1000.0",
            "Intensity unit": "µHU",
            "Intensity meaning": "bright is dense, 密",
        }
    write_png(torch.zeros(4, 4), tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as file:
        assert set(file.text) == {"Synthetic", "Software", "Comment"}


# DICOM ----------------------------------------------------------------------------------------------------------------


def dicom(tmp_path, intensity=HU, image=None, description="WGAN-GP at 1000 images", index=3):
    path = tmp_path / "image.dcm"
    write_dicom(ramp(intensity.levels) if image is None else image, path, intensity, description, index)
    return pydicom.dcmread(path)


@pytest.mark.parametrize("intensity", INTENSITIES, ids=lambda intensity: f"{intensity.bits} bits")
def test_dicom_values_and_window(tmp_path, intensity):
    """Every level is there; the default window is black at the lowest, white at the highest, straight between."""
    ds = dicom(tmp_path, intensity)
    stored = ds.pixel_array
    assert np.array_equal(stored.ravel(), np.arange(intensity.levels + 1))
    assert (ds.BitsAllocated, ds.BitsStored, ds.HighBit) == (
        8 if intensity.bits <= 8 else 16,
        intensity.bits,
        intensity.bits - 1,
    )
    values = apply_modality_lut(stored, ds)
    expected = np.linspace(intensity.low, intensity.high, intensity.levels + 1).reshape(stored.shape)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-9 * (intensity.high - intensity.low))
    for window in (apply_windowing, apply_voi_lut):
        shown = window(values, ds)
        np.testing.assert_allclose(shown, expected, rtol=0, atol=1e-9 * (intensity.high - intensity.low))


@pytest.mark.parametrize("intensity", INTENSITIES, ids=lambda intensity: f"{intensity.bits} bits")
def test_window_by_the_formula_of_the_standard(tmp_path, intensity):
    """PS3.3 C.11.2.1.2.1, onto 0..1."""
    ds = dicom(tmp_path, intensity)
    centre, width = float(ds.WindowCenter), float(ds.WindowWidth)
    values = apply_modality_lut(ds.pixel_array, ds).ravel()
    shown = ((values - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1)
    np.testing.assert_allclose(shown, np.linspace(0, 1, len(values)), rtol=0, atol=1e-9)
    assert ds.VOILUTFunction == "LINEAR" and width >= 1


def test_hounsfield_units_are_named(tmp_path):
    ds = dicom(tmp_path, HU)
    assert (ds.RescaleIntercept, ds.RescaleType, ds.WindowCenter, ds.WindowWidth) == (-1000, "HU", 0.5, 2001)
    assert dicom(tmp_path, GREY).RescaleType == "US"
    assert dicom(tmp_path, GREY).RescaleSlope == 1


# Module -> attributes of type 1 and 2 that apply, from DICOM PS3.3; those of type 1 must not be empty.
TYPE_1 = {
    "General Study": ["StudyInstanceUID"],
    "General Series": ["Modality", "SeriesInstanceUID"],
    "SC Equipment": ["ConversionType"],
    "Image Pixel": [
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "PixelData",
    ],
    "Modality LUT": ["RescaleIntercept", "RescaleSlope", "RescaleType"],
    "VOI LUT": ["WindowCenter", "WindowWidth"],
    "SOP Common": ["SOPClassUID", "SOPInstanceUID", "SpecificCharacterSet"],
    "Patient": ["DeidentificationMethod"],  # 1C, as PatientIdentityRemoved is YES
}
TYPE_2 = {
    "Patient": ["PatientName", "PatientID", "PatientBirthDate", "PatientSex"],
    "General Study": ["StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"],
    "General Series": ["SeriesNumber", "Laterality"],
    "General Equipment": ["Manufacturer"],
    "General Image": ["InstanceNumber", "PatientOrientation"],
}


def test_dicom_has_all_attributes_of_a_secondary_capture(tmp_path):
    ds = dicom(tmp_path)
    for module, names in TYPE_1.items():
        for name in names:
            assert name in ds and not ds[name].is_empty, f"{module}: {name}"
    for module, names in TYPE_2.items():
        for name in names:
            assert name in ds, f"{module}: {name}"
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert (ds.Rows, ds.Columns) == ramp(HU.levels).shape[1:]
    assert not [element for element in ds if element.VR in ("DA", "TM", "DT") and not element.is_empty]


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy of Debian's dicom3tools is not installed")
@pytest.mark.parametrize("intensity", [HU, GREY])
def test_dciodvfy_says_what_is_known_and_nothing_else(tmp_path, intensity):
    """(0008,001C) SyntheticData came to the standard in 2023; dates, study ID and side are left empty on purpose."""
    dicom(tmp_path, intensity)
    done = subprocess.run(["dciodvfy", tmp_path / "image.dcm"], capture_output=True, text=True)
    known = [
        r"\(0x0008,0x001c\)  \?  - Warning - Unrecognized tag",
        r"Error - Attribute with an even group number is not a recognized standard attribute - \(0x0008,0x001c\)",
        r"Warning - Attribute is not present in standard DICOM IOD - \(0x0008,0x001c\)",
        r"Warning - Dicom dataset contains attributes not present in standard DICOM IOD",
        *(rf"Warning - Missing attribute or value .* DICOMDIR - Study {name}" for name in ("Date", "Time", "ID")),
        r"Warning - is only permitted to be empty when actually unknown; .* attribute <Laterality>",
    ]
    found = [line for line in done.stderr.splitlines() if re.search("Error|Warning", line)]
    assert [line for line in found if not any(re.match(one, line) for one in known)] == []
    assert len(found) == len(known)


def test_dicom_file_meta_is_complete(tmp_path):
    ds = dicom(tmp_path)
    assert (tmp_path / "image.dcm").read_bytes()[:132] == b"\0" * 128 + b"DICM"
    assert set(ds.file_meta.dir()) == {
        "FileMetaInformationGroupLength",
        "FileMetaInformationVersion",
        "MediaStorageSOPClassUID",
        "MediaStorageSOPInstanceUID",
        "TransferSyntaxUID",
        "ImplementationClassUID",
        "ImplementationVersionName",
    }
    assert ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert ds.file_meta.MediaStorageSOPClassUID == ds.SOPClassUID
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID


def test_dicom_says_that_it_is_synthetic(tmp_path):
    ds = dicom(tmp_path, description="WGAN-GP")
    assert ds.SyntheticData == "YES"
    assert ds.ConversionType == "SYN"
    assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "", "SYNTHETIC"]
    assert ds.PatientName == "SYNTHETIC^MIRAGE" and ds.PatientID == "SYNTHETIC-3"
    assert ds.PatientIdentityRemoved == "YES" and "no patient" in ds.DeidentificationMethod
    assert ds.BurnedInAnnotation == "NO" and ds.Manufacturer == "Mirage"
    assert ds.ImageComments == ds.DerivationDescription == ds.SeriesDescription == f"{NOTICE} WGAN-GP"


def test_file_made_of_another_image_does_not_say_that_there_is_no_patient(tmp_path):
    image, hidden = torch.zeros(1, 4, 6), ("DeidentificationMethod", "BurnedInAnnotation")
    write_dicom(image, tmp_path / "a.dcm", HU, "Pix2Pix", translated=True)
    ds = pydicom.dcmread(tmp_path / "a.dcm")
    assert ds.SyntheticData == "YES" and ds.PatientName == "SYNTHETIC^MIRAGE" and ds.PatientIdentityRemoved == "NO"
    assert ds.ImageComments == f"{NOTICE_OF_TRANSLATION} Pix2Pix" and not any(name in ds for name in hidden)
    for write_png in (write_png8, write_png16):
        write_png(image, tmp_path / "a.png", translated=True)
        with Image.open(tmp_path / "a.png") as file:
            assert file.text == {"Synthetic": "yes", "Software": "Mirage", "Comment": NOTICE_OF_TRANSLATION}


@pytest.mark.parametrize("description", ["", "x" * 20_000, "Lungenödem 肺 \\ 10 µm\n\tline\0 two\ud800", "a\\b" * 500])
def test_dicom_text_of_any_kind_keeps_to_its_lengths(tmp_path, description, monkeypatch):
    for mode in ("reading_validation_mode", "writing_validation_mode"):
        monkeypatch.setattr(pydicom.config.settings, mode, pydicom.config.RAISE)
    intensity = Intensity(-1 / 3, 1e-7 / 3, 12, "µSv", "sehr lang " * 20 + "\\ ö")
    ds = dicom(tmp_path, intensity, description=description)
    lengths = {"LO": 64, "ST": 1024, "LT": 10240, "SH": 16, "CS": 16, "DS": 16, "UI": 64}
    for element in [*ds, *ds.file_meta]:
        values = element.value if element.VM > 1 else [element.value]
        assert element.VR not in lengths or all(len(str(value)) <= lengths[element.VR] for value in values), element
        assert element.VM <= 1 or element.keyword == "ImageType", element
    assert ds.ImageComments.startswith(NOTICE)
    assert ds.SeriesDescription.startswith(NOTICE)


def test_dicom_keeps_other_alphabets(tmp_path):
    ds = dicom(tmp_path, description="Öl 肺")
    assert ds.SpecificCharacterSet == "ISO_IR 192" and ds.ImageComments == f"{NOTICE} Öl 肺"


def test_uids_are_a_function_of_the_content(tmp_path):
    def uids(**changes):
        ds = dicom(tmp_path, **{"image": torch.zeros(1, 4, 6), **changes})
        return ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.StudyInstanceUID

    first = uids()
    assert first == uids()
    changed = [
        uids(description="other"),
        uids(index=4),
        uids(image=torch.ones(1, 4, 6)),
        uids(image=torch.zeros(1, 6, 4)),
        uids(intensity=Intensity(-1000, 1001, 12, "HU", "")),
    ]
    every = [uid for three in [first, *changed] for uid in three]
    assert len(set(every)) == len(every)
    for uid in every:
        assert uid.is_valid and uid.startswith("2.25.") and int(uid[5:]) < 2**128


@pytest.mark.parametrize("intensity", [GREY, HU])
def test_odd_sizes_are_padded(tmp_path, intensity):
    image = torch.rand(5, 7) * 2 - 1
    ds = dicom(tmp_path, intensity, image)
    assert len(ds.PixelData) % 2 == 0
    expected = ((image.double() + 1) * (intensity.levels / 2)).round()
    assert np.array_equal(ds.pixel_array, expected)


@pytest.mark.parametrize(
    ("intensity", "index", "message"),
    [
        (Intensity(1, 1, 8, "", ""), 0, "is not a range"),
        (Intensity(0, float("inf"), 8, "", ""), 0, "is not a range"),
        (Intensity(0, 1, 17, "", ""), 0, "intensity.bits=17"),
        (Intensity(0, 1, 0, "", ""), 0, "intensity.bits=0"),
        (HU, -1, "index=-1"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path, intensity, index, message):
    with pytest.raises(ValueError, match=message):
        write_dicom(torch.zeros(4, 4), tmp_path / "a.dcm", intensity, "", index)
    assert not list(tmp_path.iterdir())


# All of them ----------------------------------------------------------------------------------------------------------


def test_writing_twice_gives_the_same_bytes(tmp_path, write):
    image = torch.rand(1, 9, 7, requires_grad=True)
    write(image, tmp_path / "a")
    write(image[0], tmp_path / "new folder" / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "new folder" / "b").read_bytes()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((4, 4), float("nan")), "not finite"),
        (torch.tensor([[0.0, float("inf")]]), "not finite"),
        (torch.zeros(4), r"shape \(4,\)"),
        (torch.zeros(1, 1, 4, 4), r"shape \(1, 1, 4, 4\)"),
        (torch.zeros(2, 4, 4), "channels"),
        (torch.zeros(1, 0, 4), r"shape \(1, 0, 4\)"),
        (torch.zeros(4, 4, dtype=torch.uint8), "uint8"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, write, image, message):
    with pytest.raises(ValueError, match=message):
        write(image, tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["png16", "dicom"])
def test_colour_is_refused_where_there_is_none(tmp_path, name):
    with pytest.raises(ValueError, match=r"expected 1 channels"):
        WRITERS[name](torch.zeros(3, 4, 4), tmp_path / "a")


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_failure_leaves_the_old_file_and_no_other(tmp_path, write, monkeypatch, broken):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="no space left"):
        write(torch.zeros(4, 4), tmp_path / "a")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OSError, match="no space left"):
        write(torch.zeros(4, 4), tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_low_precision_is_accepted(tmp_path, write):
    image = torch.tensor([[-1.0, 1.0, 0.5]])
    write(image, tmp_path / "a")
    write(image.bfloat16(), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
