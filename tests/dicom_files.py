"""Writes small but valid mammography files in DICOM, in every transfer syntax that the data sets use."""

from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

NATIVE = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big_endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}
SYNTAXES = (*NATIVE, "rle", "jpeg2000", "jpeg_lossless", "jpeg_ls")


def mammogram(
    stored: np.ndarray,
    syntax: str = "explicit",
    bits: int = 16,
    photometric: str = "MONOCHROME2",
    patient: str = "P1",
    **tags,
) -> Dataset:
    """Return a mammogram of stored values (H, W) ; tags (by keyword) are added, replaced or, if None, left out."""
    order = "big" if syntax == "big_endian" else "little"
    signed = stored.dtype.kind == "i"
    allocated = 8 * stored.dtype.itemsize
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = NATIVE.get(syntax, ExplicitVRLittleEndian)
    dataset.file_meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[patient, stored.tobytes().hex()[:99]])
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.PatientID, dataset.PatientName = "MG", patient, "Nobody"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OW" if allocated > 8 else "OB"
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    if syntax == "jpeg2000":  # 32 pixels or more. Not with GDCM, which writes beyond its buffer for some 8-bit images
        from openjpeg.utils import encode_array

        frame = encode_array(stored, photometric_interpretation=2, bits_stored=bits, use_mct=False)
        dataset.PixelData, dataset.file_meta.TransferSyntaxUID = encapsulate([frame]), JPEG2000Lossless
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    elif syntax == "rle":
        dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    return dataset


def write_mammogram(path: Path, stored: np.ndarray, syntax: str = "explicit", **arguments) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, mammogram(stored, syntax, **arguments), enforce_file_format=True)
    if syntax in ("jpeg_lossless", "jpeg_ls"):
        _compress_with_gdcm(path, syntax)
    return path


def lut(entries: list[int], first: int, bits: int) -> Sequence:
    """Return a modality or VOI LUT sequence with one LUT; ``first`` may be negative (written as if unsigned)."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 2**16, first % 2**16, bits])
    item.add_new("LUTData", "US", list(entries))
    item.ModalityLUTType = "US"
    return Sequence([item])


def code(value: str, meaning: str, **nested) -> Sequence:
    """Return a sequence with one code, as ViewCodeSequence and ViewModifierCodeSequence hold them."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SRT", meaning
    for keyword, sequence in nested.items():
        setattr(item, keyword, sequence)
    return Sequence([item])


def _compress_with_gdcm(path: Path, syntax: str) -> None:
    """Rewrite a file in a format that pydicom cannot write."""
    import gdcm

    formats = {
        "jpeg_lossless": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
        "jpeg_ls": gdcm.TransferSyntax.JPEGLSLossless,
    }
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(formats[syntax]))
    change.SetInput(reader.GetImage())
    assert change.Change(), f"GDCM cannot write {syntax}"
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()
