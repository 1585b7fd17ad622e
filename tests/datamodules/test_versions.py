"""Versions of reading: caches and runs are given up where a file's pixels can have changed, and nowhere else."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import write_kidney
from PIL import Image

from datamodules.ct_kidney import CTKidney
from datamodules.files.files import find_files
from datamodules.records import versions
from lightning_modules.schedules import ConstantSchedule


@pytest.fixture(scope="module")
def mixed_root(tmp_path_factory):
    """JPEG files of four classes, one of them also with a PNG."""
    root = write_kidney(tmp_path_factory.mktemp("mixed"))
    folder = next(path.parent for path in root.rglob("Stone- (1).jpg"))
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(folder / "Stone- (11).png")
    return root


@pytest.fixture
def first_versions(monkeypatch):
    """Every reader and layout as it was before anything changed."""
    monkeypatch.setattr(versions, "CHANGES", dict.fromkeys(versions.CHANGES, ()))


def prepared(root, tmp_path):
    data = CTKidney(ConstantSchedule((32, 32), 8, 80), 0, str(root), str(tmp_path / "cache"), block_size=2)
    data.prepare_data()
    data.setup()
    return data


def caches(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "images").iterdir() if path.is_dir())


def newer(monkeypatch, name, concerns=lambda path: True):
    change = versions.Change(f"{name}s are brighter", concerns)
    monkeypatch.setitem(versions.CHANGES, name, (*versions.CHANGES.get(name, ()), change))


def test_the_first_version_has_the_names_from_before_there_were_versions(kidney_root, tmp_path):
    data = prepared(kidney_root, tmp_path)
    paths = [image.record.path for image in data._scanned()]
    settings = {
        "data_set": "CTKidney",
        "format": 2,
        "size": [32, 32],
        "intensity": {
            "low": 0,
            "high": 255,
            "bits": 8,
            "unit": "grey level",
            "meaning": "windowed CT (window not documented), brighter = denser",
        },
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    for path, content in zip(paths, contents, strict=True):
        digest.update(f"\n{path.relative_to(kidney_root).as_posix()}\0{content}".encode())
    assert len(paths) == len(find_files(kidney_root, {".jpg"})) == 40
    assert caches(tmp_path) == [f"CTKidney-32x32-{digest.hexdigest()[:20]}"]
    train = "".join(contents[row] for row in data._rows["train"])
    assert data.fingerprint("train") == hashlib.sha256(f"(32, 32) {{}}{train}".encode()).hexdigest()[:20]
    assert data.facts()["reading"] == []


@pytest.mark.usefixtures("first_versions")
@pytest.mark.parametrize("name", ["png", "dicom", "tiff", "Mammography_folder"])
def test_what_a_data_set_does_not_use_may_change(kidney_root, tmp_path, monkeypatch, name):
    before = prepared(kidney_root, tmp_path).facts()
    newer(monkeypatch, name)
    monkeypatch.setattr(CTKidney, "read", lambda *_: pytest.fail("read again"))
    assert prepared(kidney_root, tmp_path).facts() == before


@pytest.mark.usefixtures("first_versions")
def test_a_change_that_concerns_none_of_the_files_costs_nothing(mixed_root, tmp_path, monkeypatch):
    before = prepared(mixed_root, tmp_path).facts()
    with monkeypatch.context() as first:
        newer(first, "jpeg", lambda path: path.suffix == ".jpeg")
        first.setattr(CTKidney, "read", lambda *_: pytest.fail("read again"))
        assert prepared(mixed_root, tmp_path).facts() == before
    newer(monkeypatch, "jpeg")
    newer(monkeypatch, "jpeg", lambda path: path.name == "Cyst- (3).jpg")
    rules = [image.rule for image in prepared(mixed_root, tmp_path)._scanned()]
    assert [rules.count(("jpeg", version)) for version in (1, 2, 3)] == [0, 39, 1]


@pytest.mark.usefixtures("first_versions")
@pytest.mark.parametrize("name", ["jpeg", "png", "CTKidney", "resizing"])
def test_a_changed_rule_builds_the_cache_anew_and_says_what_has_changed(
    mixed_root, tmp_path, monkeypatch, caplog, name
):
    before = prepared(mixed_root, tmp_path).facts()
    (old,) = caches(tmp_path)
    newer(monkeypatch, name)
    monkeypatch.setattr(CTKidney, "read", lambda *_: np.full((1, 64, 64), 255, np.float32))
    after = prepared(mixed_root, tmp_path)
    assert float(after.select("train", np.arange(after.size("train"))).min()) == 1
    assert after.facts()["reading"] == [f"{name} 2: {name}s are brighter"]
    assert after.facts()["fingerprint"] != before["fingerprint"]
    said = [record.getMessage() for record in caplog.records if "made anew" in record.getMessage()]
    assert len(said) == 1 and old in said[0] and said[0].endswith(f"Changed since: {name} 2: {name}s are brighter")
    assert caches(tmp_path) == [old, f"{old}-{name}2"]


@pytest.mark.usefixtures("first_versions")
def test_two_changes_are_told_apart(mixed_root, tmp_path, monkeypatch, caplog):
    newer(monkeypatch, "jpeg")
    prepared(mixed_root, tmp_path)
    newer(monkeypatch, "png")
    newer(monkeypatch, "png")
    data = prepared(mixed_root, tmp_path)
    assert data.facts()["reading"] == [
        "jpeg 2: jpegs are brighter",
        "png 2: pngs are brighter",
        "png 3: pngs are brighter",
    ]
    assert "Changed since: png 2: pngs are brighter; png 3: pngs are brighter" in caplog.text


def test_headers_are_looked_at_once_per_content_and_change(mixed_root, tmp_path, monkeypatch):
    asked = []
    newer(monkeypatch, "png", lambda path: asked.append(path.name) or True)
    first = prepared(mixed_root, tmp_path).facts()
    assert asked == ["Stone- (11).png"]
    assert prepared(mixed_root, tmp_path).facts() == first and len(asked) == 1
    memo = tmp_path / "cache" / "hashes" / "CTKidney-rules.json"
    memo.write_text(json.dumps({key: "two" for key in json.loads(memo.read_text())}))
    assert prepared(mixed_root, tmp_path).facts() == first and len(asked) == 2
    newer(monkeypatch, "png", lambda path: asked.append(path.name))
    prepared(mixed_root, tmp_path)
    assert len(asked) == 4  # both changes, once


def test_what_a_table_tells_of_an_image_is_part_of_its_pixels(kidney_root, tmp_path, monkeypatch):
    before = prepared(kidney_root, tmp_path).facts()
    records = CTKidney.records
    monkeypatch.setattr(
        CTKidney, "records", lambda self: [replace(one, told={"side": "left"}) for one in records(self)]
    )
    assert prepared(kidney_root, tmp_path).fingerprint("train") != before["fingerprint"]["train"]
    assert len(caches(tmp_path)) == 2
