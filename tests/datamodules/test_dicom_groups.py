"""Enhanced DICOM objects: what functional groups say comes before the top level; several frames are refused."""

import numpy as np
import pytest
from dicom_files import code, lut, write_mammogram
from pydicom import Dataset
from pydicom.sequence import Sequence

from datamodules.decoding.dicom import read_dicom, read_values
from datamodules.decoding.dicom_headers import can_show_otherwise, read_header
from datamodules.files.errors import UnreadableImageError
from datamodules.records.mammography_tags import tag_chest_wall, tag_reasons, tag_side, tag_view

SHARED, FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
TOP = {"WindowCenter": 9, "WindowWidth": 2, "VOILUTFunction": "SIGMOID", "RescaleSlope": 7, "RescaleIntercept": 1}


def item(**values):
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def groups(**macros):
    """Return one frame's groups; each macro is given by the values of its only item."""
    return Sequence([item(**{name: Sequence([item(**values)]) for name, values in macros.items()})])


def shown(path, **tags):
    return read_dicom(write_mammogram(path / "a.dcm", RAMP, bits=12, **tags)).ravel()


@pytest.mark.parametrize("place", [SHARED, FRAME])
@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big_endian", "deflated", "jpeg2000"])
def test_window_and_rescale_of_a_group_come_before_the_top_level(tmp_path, place, syntax):
    macros = groups(
        FrameVOILUTSequence={"WindowCenter": 1000, "WindowWidth": 2000, "VOILUTFunction": "LINEAR_EXACT"},
        PixelValueTransformationSequence={"RescaleSlope": 2, "RescaleIntercept": -500},
    )
    values = shown(tmp_path, syntax=syntax, NumberOfFrames=1, **{place: macros}, **TOP)
    expected = np.clip((np.arange(4096) * 2.0 - 500) / 2000, 0, 1)
    np.testing.assert_allclose(values, expected, atol=1e-7)
    assert can_show_otherwise(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_values(tmp_path / "a.dcm").values.ravel(), np.arange(4096) * 2.0 - 500)


def test_the_frame_comes_before_what_all_frames_share_and_values_of_two_places_are_not_mixed(tmp_path):
    shared = groups(FrameVOILUTSequence={"WindowCenter": 5, "WindowWidth": 6, "VOILUTFunction": "SIGMOID"})
    frame = groups(FrameVOILUTSequence={"WindowCenter": 2048, "WindowWidth": 4096})
    values = shown(tmp_path, **{SHARED: shared, FRAME: frame, "VOILUTFunction": "SIGMOID"})
    np.testing.assert_allclose(values, np.arange(4096) / 4095, atol=1e-7)  # LINEAR, as the frame says nothing else


def test_voi_lut_of_a_group_is_applied(tmp_path):
    frame = groups(FrameVOILUTSequence={"VOILUTSequence": lut([0, 255], 100, 8)})
    np.testing.assert_array_equal(shown(tmp_path, **{FRAME: frame}), np.arange(4096) > 100)


EMPTY = {
    "no item": Sequence(),
    "no window": groups(FrameVOILUTSequence={}),
    "another group": groups(FrameContentSequence={}),
    "no width": groups(FrameVOILUTSequence={"WindowCenter": 5}),
    "no intercept": groups(PixelValueTransformationSequence={"RescaleSlope": 5}),
}


@pytest.mark.parametrize("empty", EMPTY.values(), ids=EMPTY)
def test_groups_that_say_nothing_leave_the_top_level(tmp_path, empty):
    values = shown(tmp_path, WindowCenter=2048, WindowWidth=4096, **{FRAME: empty, SHARED: empty})
    np.testing.assert_allclose(values, np.arange(4096) / 4095, atol=1e-7)
    assert not can_show_otherwise(tmp_path / "a.dcm")


def test_view_side_and_reasons_of_groups(tmp_path):
    frame = groups(
        FrameAnatomySequence={"FrameLaterality": "R", "ViewCodeSequence": code("R-10226", "oblique")},
        XRayGeometrySequence={"EstimatedRadiographicMagnificationFactor": 1.8},
    )
    tags = {"ImageLaterality": "L", "ViewCodeSequence": code("R-10242", "cranio-caudal"), FRAME: frame}
    header = read_header(write_mammogram(tmp_path / "a.dcm", RAMP, bits=12, **tags))
    assert (tag_view(header), tag_side(header), tag_reasons(header)) == ("MLO", "RIGHT", ("magnification",))
    header = read_header(write_mammogram(tmp_path / "b.dcm", RAMP, bits=12, NumberOfFrames=2, **tags))
    assert tag_reasons(header) == ("magnification", "multi_frame")


def test_orientation_of_a_group_tells_the_chest_wall(tmp_path):
    frame = groups(PatientOrientationInFrameSequence={"PatientOrientation": ["A", "F"]})
    tags = {"PatientOrientation": ["P", "F"], FRAME: frame}
    header = read_header(write_mammogram(tmp_path / "a.dcm", RAMP, bits=12, **tags))
    assert tag_chest_wall(header) == "left"


@pytest.mark.parametrize("number", [None, 0, 1])
def test_one_frame_however_it_is_counted(tmp_path, number):
    tags = {} if number is None else {"NumberOfFrames": number}
    np.testing.assert_allclose(shown(tmp_path, **tags), np.arange(4096) / 4095, atol=1e-7)
    assert tag_reasons(read_header(tmp_path / "a.dcm")) == ()
    assert not can_show_otherwise(tmp_path / "a.dcm")


@pytest.mark.parametrize("number", [2, 300])
def test_several_frames_are_refused_by_name(tmp_path, number):
    path = write_mammogram(tmp_path / "a.dcm", RAMP, bits=12, NumberOfFrames=number)
    with pytest.raises(UnreadableImageError, match=rf"^a.dcm: is a multi-frame image \({number} frames\)"):
        read_dicom(path)


def test_damaged_groups_are_refused_by_name(tmp_path):
    frame = groups(FrameVOILUTSequence={"WindowCenter": "7777", "WindowWidth": 3})
    path = write_mammogram(tmp_path / "a.dcm", RAMP, bits=12, **{FRAME: frame})
    content = path.read_bytes()
    assert content.count(b"7777") == 1
    path.write_bytes(content.replace(b"7777", b"77,7"))
    with pytest.raises(UnreadableImageError, match=r"^a.dcm: its WindowCenter is no number .*decimals with a point"):
        read_dicom(path)
