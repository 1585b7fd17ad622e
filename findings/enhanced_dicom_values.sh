#!/usr/bin/env bash
# Hounsfield units of an enhanced CT object (one frame), by reader. pydicom 3.0.2, SimpleITK 2.5.7, highdicom 0.28.2.
#
# Expected: pydicom's apply_modality_lut and apply_voi_lut give the values that the file declares, as for a classic CT.
# Seen: they look at the top level of the data set only. Enhanced objects keep rescale and window in functional groups
# (DICOM PS3.3 C.7.6.16.2.9 and .10), so both return the stored values 0 .. 1500 unchanged, without a word.
# SimpleITK and highdicom find the rescale there and give -1024 .. 476.
# So: in one data set classic files come out in HU and enhanced ones 1024 higher and without their window.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pydicom==3.0.2 simpleitk==2.5.7 highdicom==0.28.2
cat >"$folder/look.py" <<'PY'
import sys

import highdicom
import numpy as np
import SimpleITK
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid


def group(**values):
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


path = sys.argv[1]
image = group(
    SOPClassUID=EnhancedCTImageStorage, SOPInstanceUID=generate_uid(), Modality="CT", PatientID="1", NumberOfFrames=1,
    StudyInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid(), SamplesPerPixel=1, Rows=4, Columns=4,
    PhotometricInterpretation="MONOCHROME2", BitsAllocated=16, BitsStored=12, HighBit=11, PixelRepresentation=0,
)
image.PixelData = (np.arange(16, dtype=np.uint16) * 100).tobytes()
image["PixelData"].VR = "OW"
image.SharedFunctionalGroupsSequence = [
    group(
        PixelValueTransformationSequence=[group(RescaleIntercept=-1024, RescaleSlope=1, RescaleType="HU")],
        FrameVOILUTSequence=[group(WindowCenter=40, WindowWidth=400)],
        PixelMeasuresSequence=[group(PixelSpacing=[0.5, 0.5], SliceThickness=3)],
        PlaneOrientationSequence=[group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
    )
]
position = group(ImagePositionPatient=[0, 0, 0])
image.PerFrameFunctionalGroupsSequence = [group(PlanePositionSequence=[position])]
image.file_meta = FileMetaDataset()
image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
image.save_as(path, enforce_file_format=True)

read = dcmread(path)
units = apply_modality_lut(read.pixel_array, read)
found = {
    "pydicom, modality LUT": units,
    "pydicom, modality and VOI LUT": apply_voi_lut(units, read),
    "SimpleITK": SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)),
    "highdicom": highdicom.Image.from_dataset(read).get_frame(1),
}
for name, values in found.items():
    print(f"{name}: {values.min():g} .. {values.max():g}")
PY
"$folder/venv/bin/python" "$folder/look.py" "$folder/enhanced.dcm" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
pydicom, modality LUT: 0 .. 1500
pydicom, modality and VOI LUT: 0 .. 1500
SimpleITK: -1024 .. 476
highdicom: -1024 .. 476
SEEN
