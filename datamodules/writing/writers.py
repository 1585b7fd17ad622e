"""Writers: one synthetic image -> one file; the inverse of the readers.

Every file says by itself that it is synthetic and shows no patient, or that it was made of an image that may show one.
It is written whole or not at all, and is a function of its arguments: no clock and no random number goes into it, so
writing twice gives the same bytes.
"""

import hashlib
import math
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from datamodules.decoding.value_range import MARK
from datamodules.files.files import write_atomically
from datamodules.records.records import Intensity

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

NOTICE = "Synthetic image made by a GAN (Mirage); not a patient."
NOTICE_OF_TRANSLATION = "Synthetic image made by a GAN (Mirage) from another image; may show that one's patient."
# Of the DICOM files' bytes: raise it when the same image comes out otherwise, so that no folder mixes two.
# 2: an empty Laterality.
DICOM_VERSION = 2
# Root of Mirage's own UIDs: a UUID needs no registration (DICOM PS3.5 B.2).
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "mirage-gan")
_LONG_STRING, _SHORT_TEXT, _LONG_TEXT = 64, 1024, 10240  # characters in DICOM's LO, ST and LT


def write_png8(image: Tensor, path: Path, intensity: Intensity | None = None, translated: bool = False) -> None:
    """Write an 8-bit PNG; -1 becomes 0 and 1 becomes 255.

    Args:
        image: Image (H, W), (1, H, W) grey or (3, H, W) RGB, float in [-1, 1]; values outside are clamped.
        path: The file.
        intensity: What the values mean; noted in the file, which then can be turned back into values.
        translated: Whether it was made of another image, which may show a patient.

    Raises:
        ValueError: If the image is not one, or not finite.
    """
    values = _quantise(image, 255, channels=(1, 3)).astype(np.uint8)
    _write_png(values, path, intensity, translated)


def write_png16(image: Tensor, path: Path, intensity: Intensity | None = None, translated: bool = False) -> None:
    """Write a grey 16-bit PNG; -1 becomes 0 and 1 becomes 65535.

    Args:
        image: Image (H, W) or (1, H, W), float in [-1, 1]; values outside are clamped.
        path: The file.
        intensity: What the values mean; noted in the file, which then can be turned back into values.
        translated: Whether it was made of another image, which may show a patient.

    Raises:
        ValueError: If the image is not grey, or not finite.
    """
    _write_png(_quantise(image, 65535, channels=(1,)).astype(np.uint16), path, intensity, translated)


def write_dicom(
    image: Tensor, path: Path, intensity: Intensity, description: str, index: int = 0, translated: bool = False
) -> None:
    """Write a DICOM Secondary Capture image whose values are those of the data set, e.g. Hounsfield units.

    Its default window shows the whole range of ``intensity``: ``low`` is black and ``high`` is white.

    Args:
        image: Image (H, W) or (1, H, W), float in [-1, 1]; values outside are clamped.
        path: The file.
        intensity: What the values mean, and how many bits are kept.
        description: What made the image; shortened where DICOM allows less.
        index: Number of the image, part of the patient's ID: every image is a patient of its own.
        translated: Whether it was made of another image, which may show a patient.

    Raises:
        ValueError: If the image is not grey, not finite or too large, or the intensity is no range.
    """
    if not (math.isfinite(intensity.low) and math.isfinite(intensity.high) and intensity.low < intensity.high):
        raise ValueError(f"intensity {intensity.low} .. {intensity.high}: is not a range")
    if not 1 <= intensity.bits <= 16:
        raise ValueError(f"intensity.bits={intensity.bits}: must be 1 to 16")
    if index < 0:
        raise ValueError(f"index={index}: must not be negative")
    stored = _quantise(image, intensity.levels, channels=(1,)).astype("<u1" if intensity.bits <= 8 else "<u2")
    if max(stored.shape) > 65535:
        raise ValueError(f"image of shape {tuple(stored.shape)}: DICOM allows 65535 rows and columns")
    dataset = _dataset(stored, intensity, _one_line(description), index, translated)

    def write(file: BinaryIO) -> None:
        from pydicom import dcmwrite

        dcmwrite(file, dataset, enforce_file_format=True, implicit_vr=False, little_endian=True)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)


def _quantise(image: Tensor, levels: int, channels: tuple[int, ...]) -> np.ndarray:
    """Map an image in [-1, 1] to whole numbers 0 .. levels, as float64 (H, W) or (H, W, 3)."""
    shape = tuple(image.shape)
    if not image.is_floating_point():
        raise ValueError(f"image of {image.dtype}: expected float values in -1..1")
    if image.ndim == 2:
        image = image.unsqueeze(0)
    if image.ndim != 3 or not image.numel():
        raise ValueError(f"image of shape {shape}: expected (H, W) or (C, H, W)")
    if image.shape[0] not in channels:
        raise ValueError(f"image of shape {shape}: expected {' or '.join(map(str, channels))} channels")
    values = image.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(values).all():
        raise ValueError("image holds values that are not finite")
    scaled = np.rint((values.clip(-1.0, 1.0) + 1.0) * (levels / 2.0))
    return scaled[0] if len(scaled) == 1 else np.moveaxis(scaled, 0, -1)


def _write_png(values: np.ndarray, path: Path, intensity: Intensity | None, translated: bool) -> None:
    text = {**MARK, "Comment": NOTICE_OF_TRANSLATION if translated else NOTICE}
    if intensity is not None:  # the smallest grey is low, the largest is high
        text["Intensity low"], text["Intensity high"] = repr(float(intensity.low)), repr(float(intensity.high))
        text["Intensity unit"], text["Intensity meaning"] = intensity.unit, intensity.meaning
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, _one_line(value))
    picture = Image.fromarray(np.ascontiguousarray(values))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: picture.save(file, "PNG", pnginfo=info))


def _dataset(stored: np.ndarray, intensity: Intensity, description: str, index: int, translated: bool) -> "Dataset":
    """Return all modules of the Secondary Capture Image IOD (DICOM PS3.3 A.8.1); type 2 attributes may be empty."""
    from pydicom.dataset import Dataset
    from pydicom.uid import SecondaryCaptureImageStorage
    from pydicom.valuerep import format_number_as_ds

    low, high = float(intensity.low), float(intensity.high)
    said = f"{NOTICE_OF_TRANSLATION if translated else NOTICE} {description}".strip()
    content = hashlib.sha256(stored.tobytes()).hexdigest()
    identity = f"{description}\n{index}\n{stored.shape} {low} {high} {intensity.bits} {intensity.unit}\n{content}"

    ds = Dataset()
    # SOP Common
    ds.SpecificCharacterSet = "ISO_IR 192"  # UTF-8
    ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.SOPInstanceUID = _uid(f"instance\n{identity}")
    ds.SyntheticData = "YES"
    # Patient: there is none, or none is named, and every image is another
    ds.PatientName = "SYNTHETIC^MIRAGE"
    ds.PatientID = f"SYNTHETIC-{index}"
    ds.PatientBirthDate = ds.PatientSex = ""
    ds.PatientIdentityRemoved = "NO" if translated else "YES"  # pixels may show what tells who it is
    if not translated:
        ds.DeidentificationMethod = "Synthetic image: there is no patient"
    # General Study
    ds.StudyInstanceUID = _uid(f"study\n{identity}")
    ds.StudyDate = ds.StudyTime = ds.ReferringPhysicianName = ds.StudyID = ds.AccessionNumber = ""
    # General Series
    ds.Modality = "OT"
    ds.SeriesInstanceUID = _uid(f"series\n{identity}")
    ds.SeriesNumber = 1
    ds.Laterality = ""  # type 2C: wanted where the part may be a paired one, and nobody has said of an image which side
    ds.SeriesDescription = _shortened(said.replace("\\", "/"), _LONG_STRING)  # a backslash would part two values
    # General Equipment, SC Equipment
    ds.Manufacturer = "Mirage"
    ds.ConversionType = "SYN"
    # General Image. The third value of ImageType is kept for terms of the IOD; those of a program follow it.
    ds.InstanceNumber = 1
    ds.PatientOrientation = ""
    ds.ImageType = ["DERIVED", "SECONDARY", "", "SYNTHETIC"]
    ds.ImageComments = _shortened(said, _LONG_TEXT)
    ds.DerivationDescription = _shortened(said, _SHORT_TEXT)
    if not translated:  # a network may keep what is burnt in
        ds.BurnedInAnnotation = "NO"
    # Image Pixel
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = stored.shape
    ds.BitsAllocated = 8 * stored.itemsize
    ds.BitsStored, ds.HighBit = intensity.bits, intensity.bits - 1
    ds.PixelRepresentation = 0
    ds.add_new("PixelData", "OB" if stored.itemsize == 1 else "OW", stored.tobytes())  # pydicom pads to even length
    # Modality LUT: stored value -> unit of the data set
    ds.RescaleIntercept = format_number_as_ds(low)
    ds.RescaleSlope = format_number_as_ds((high - low) / intensity.levels)
    ds.RescaleType = "HU" if intensity.unit == "HU" else "US"
    # VOI LUT. LINEAR (PS3.3 C.11.2.1.2.1) is black up to centre - 0.5 - (width - 1) / 2 and white from
    # centre - 0.5 + (width - 1) / 2 on; solved for low and high. The 0.5 and 1 do not scale with the slope.
    ds.WindowCenter = format_number_as_ds((low + high) / 2.0 + 0.5)
    ds.WindowWidth = format_number_as_ds(high - low + 1.0)
    ds.WindowCenterWidthExplanation = _shortened(_one_line(f"Full range: {intensity.meaning}", "/"), _LONG_STRING)
    ds.VOILUTFunction = "LINEAR"
    ds.file_meta = _file_meta(ds)
    return ds


def _file_meta(dataset: "Dataset") -> "FileMetaDataset":
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("implementation")
    meta.ImplementationVersionName = "MIRAGE"
    return meta


def _uid(name: str) -> "UID":
    """Return the UID of a name, always the same."""
    from pydicom.uid import UID

    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, name).int}")


def _one_line(text: str, backslash: str = "\\") -> str:
    """Replace what cannot be printed, and line breaks, by single spaces."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split()).replace("\\", backslash)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3].rstrip() + "..."
