"""Declared ranges of DICOM files: in the unit of rescaling, or percentiles of each series."""

import numpy as np
import pytest
from dicom_files import write_mammogram

from datamodules.decoding import dicom_ranges
from datamodules.decoding.dicom import read_dicom
from datamodules.decoding.dicom_ranges import series_ranges

CT = {"RescaleSlope": 1, "RescaleIntercept": -1024, "Modality": "CT"}


def test_declared_range_is_in_the_unit_of_rescaling_and_wins_over_the_window(tmp_path):
    stored = np.array([[0, 864, 1024, 1264, 4095]], np.uint16)  # -1024, -160, 0, 240, 3071 HU
    expected = np.array([[0, 0, 0.4, 1, 1]])
    for number, tags in enumerate(({}, {"WindowCenter": 9, "WindowWidth": 2})):
        path = write_mammogram(tmp_path / f"{number}.dcm", stored, bits=16, **CT, **tags)
        np.testing.assert_allclose(read_dicom(path, value_range=(-160, 240)), expected, atol=1e-7)
    path = write_mammogram(tmp_path / "m1.dcm", stored, photometric="MONOCHROME1", PixelPaddingValue=0, **CT)
    np.testing.assert_allclose(read_dicom(path, value_range=(-160, 240)), [[0, 1, 0.6, 0, 0]], atol=1e-7)


@pytest.fixture
def volume(tmp_path):
    """Three slices of one series with slopes of their own, and one of another."""
    random = np.random.default_rng(0)
    slices = [random.integers(0, 700, (20, 17)).astype(np.int16) for _ in range(4)]
    paths, values = [], []
    for number, stored in enumerate(slices):
        tags = {"RescaleSlope": 1 + 0.25 * number, "RescaleIntercept": number, "PixelPaddingValue": 5}
        uid = "1.2.3" if number < 3 else "1.2.4"
        paths.append(write_mammogram(tmp_path / f"{number}.dcm", stored, SeriesInstanceUID=uid, **tags))
        values.append((stored * (1 + 0.25 * number) + number)[stored != 5])
    return paths, [np.concatenate(values[:3]), values[3]]


@pytest.mark.parametrize("percentiles", [(1, 99), (0, 100), (0.5, 99.9)])
def test_percentiles_are_those_of_all_pixels_of_the_series(tmp_path, volume, percentiles):
    paths, values = volume
    found = series_ranges(paths, percentiles, tmp_path / "hashes.json", tmp_path / "memo.json")
    expected = [tuple(np.percentile(one, percentiles, method="inverted_cdf")) for one in values]
    assert [found[path] for path in paths] == [expected[0]] * 3 + [expected[1]]
    turned = series_ranges(paths[::-1], percentiles, tmp_path / "hashes.json", tmp_path / "other.json")
    assert turned == found


def test_percentiles_are_remembered_until_a_file_changes(tmp_path, volume, monkeypatch):
    paths, _ = volume
    arguments = ((1, 99), tmp_path / "hashes.json", tmp_path / "memo.json")
    found = series_ranges(paths, *arguments)
    monkeypatch.setattr(dicom_ranges, "read_values", lambda path: pytest.fail("read again"))
    assert series_ranges(paths, *arguments) == found
    monkeypatch.undo()
    write_mammogram(paths[3], np.full((5, 5), 7, np.int16), SeriesInstanceUID="1.2.4")
    assert series_ranges(paths, *arguments)[paths[3]] == (7.0, 14.0)  # constant: black, and a range that is not empty
    (tmp_path / "memo.json").write_text("{nonsense")
    assert series_ranges(paths, *arguments)[paths[0]] == found[paths[0]]


def test_files_that_cannot_be_read_have_no_range_and_do_not_change_that_of_others(tmp_path, volume):
    paths, _ = volume
    before = series_ranges(paths, (1, 99), tmp_path / "hashes.json", tmp_path / "memo.json")
    (tmp_path / "broken.dcm").write_bytes(b"nothing")
    found = series_ranges([*paths, tmp_path / "broken.dcm"], (1, 99), tmp_path / "hashes.json", tmp_path / "m.json")
    assert found == before
