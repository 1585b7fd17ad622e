"""The same image under several names: broken downloads, copies of files, files that were saved once more."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from datamodules.base import ImageDataModule
from datamodules.batches.samplers import BatchRequest
from datamodules.decoding.readers import read_grey
from datamodules.files.cache import ImageCache
from datamodules.files.errors import DataError, UnreadableImageError
from datamodules.phantoms import Phantoms
from datamodules.records.duplicates import Duplicates, JoinedGroups
from datamodules.records.records import Intensity, Record
from lightning_modules.schedules import ConstantSchedule

SIZE = 16
PARTS = ("train", "val", "test")
PAGE = b"<!DOCTYPE html><html><title>Too many requests</title></html>"


class Films(ImageDataModule):
    """Files called <patient>_<class>_<number>.png."""

    classes = ("A", "B")
    intensity = Intensity(0, 255, 8, "grey level", "made here")

    def __init__(self, folder, side=SIZE, max_unreadable=0.0, held_out=0.0):
        schedule = ConstantSchedule((side, side), 4, 8)
        super().__init__(schedule, 0, str(folder.parent / "cache"), 0.0, held_out, max_unreadable, 0, None)
        self.folder = folder

    def check(self):
        """Do nothing."""

    def records(self):
        """Return a record per file."""
        paths = sorted(self.folder.iterdir())
        return [Record(path.name, (of := path.stem.split("_"))[0], (of[1],), path) for path in paths]

    def read(self, record):
        """Return grey levels."""
        return read_grey(record.path)[None]


def pixels(seed, side=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def saved(values, level=6):
    """Return a PNG whose bytes depend on the level."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """20 patients with two films each, one of each class."""
    (tmp_path / "films").mkdir()
    for i in range(40):
        (tmp_path / "films" / f"p{i // 2:02}_{'AB'[i % 2]}_{i % 2}.png").write_bytes(saved(pixels(i)))
    return tmp_path / "films"


def opened(folder, **arguments):
    data = Films(folder, **arguments)
    data.setup()
    return data


def used(data):
    """Return the group of each used image, by name; every image is the one of its file."""
    found = {}
    for part in PARTS:
        images = data.select(part, np.arange(data.size(part)))
        for record, image in zip(data.split_records(part), images, strict=True):
            expected = read_grey(record.path) / 127.5 - 1
            if data.schedule.resolution == (SIZE, SIZE):
                np.testing.assert_allclose(image[0], expected, atol=1e-6)
            found[record.name] = record.group
    return found


# Broken downloads -----------------------------------------------------------------------------------------------------


def broken(folder, content=PAGE, patients=8):
    """Put the same broken file in place of the first film of some patients."""
    names = [f"p{i:02}_A_0.png" for i in range(patients)]
    for name in names:
        (folder / name).write_bytes(content)
    return names


@pytest.mark.parametrize("content", [PAGE, b"", saved(pixels(0))[:90]], ids=["error page", "empty", "cut"])
def test_identical_broken_files_are_counted_each_and_join_nobody(folder, caplog, content):
    names = broken(folder, content)
    with pytest.raises(UnreadableImageError, match=r"at least 8 of 40 files cannot be used, more than .*=0.1 allows"):
        opened(folder, max_unreadable=0.1)
    data = opened(folder, max_unreadable=0.2, held_out=0.2)
    groups = used(data)
    assert len(groups) == 32 and not set(groups) & set(names)
    assert all(group == name[:3] for name, group in groups.items()) and len(set(groups.values())) == 20
    assert "left out 8 unusable files: p00_A_0.png: " in caplog.text
    assert "copies p01_A_0.png, p02_A_0.png, p03_A_0.png, p04_A_0.png, p05_A_0.png and 2 more" in caplog.text
    assert "joined" not in caplog.text and "dropped" not in caplog.text


def test_limit_holds_also_for_a_cache_that_was_built_under_another(folder):
    broken(folder)
    opened(folder, max_unreadable=0.2)
    with pytest.raises(UnreadableImageError, match=r"^8 of 40 files cannot be used"):
        opened(folder, max_unreadable=0.19)


def test_broken_files_of_two_classes_are_broken_and_no_contradiction(folder, caplog):
    names = broken(folder, patients=2)
    (folder / "p07_B_1.png").write_bytes(PAGE)
    assert not set(used(opened(folder, max_unreadable=0.1))) & {*names, "p07_B_1.png"}
    assert "left out 3 unusable files" in caplog.text
    assert "different labels" not in caplog.text and "joined" not in caplog.text
    with pytest.raises(UnreadableImageError, match=r"^3 of 40 files"):
        opened(folder, max_unreadable=0.07)


def test_nothing_but_broken_files_is_refused(folder):
    for path in folder.iterdir():
        path.write_bytes(PAGE)
    with pytest.raises(UnreadableImageError, match="at least 40 of 40 files cannot be used"):
        opened(folder, max_unreadable=0.99)


def test_good_copies_count_among_all_files_and_behave_as_ever(folder, caplog):
    broken(folder, patients=2)
    shutil.copy(folder / "p10_A_0.png", folder / "p11_A_0.png")  # one patient under two names
    shutil.copy(folder / "p12_A_0.png", folder / "p13_B_1.png")  # and contradicting classes
    groups = used(opened(folder, max_unreadable=0.05))  # 2 of 40, although 35 contents are left to be read
    assert groups["p11_B_1.png"] == groups["p10_A_0.png"] == "p10" and "p11_A_0.png" not in groups
    assert groups["p13_A_0.png"] == groups["p12_B_1.png"] == "p12"
    assert not {"p12_A_0.png", "p13_B_1.png"} & set(groups) and len(groups) == 35
    assert "dropped 1 byte-identical duplicates: p11_A_0.png" in caplog.text
    assert (
        "left out 2 byte-identical duplicates with different labels, none of which can be trusted: p12" in caplog.text
    )
    assert (
        "joined the groups of byte-identical files: p11_A_0.png as p10_A_0.png, p13_B_1.png as p12_A_0.png"
        in caplog.text
    )


# Saved once more ------------------------------------------------------------------------------------------------------


def resave(folder, name, other, level=1):
    """Put the pixels of one file into another, in other bytes."""
    (folder / other).write_bytes(saved(read_grey(folder / name).astype(np.uint8), level))
    assert (folder / name).read_bytes() != (folder / other).read_bytes()


def test_resaved_images_are_dropped_or_left_out_and_join_their_groups(folder, caplog):
    before = opened(folder).facts()
    resave(folder, "p03_A_0.png", "p05_A_0.png")
    resave(folder, "p03_A_0.png", "p06_A_0.png", level=9)
    resave(folder, "p08_A_0.png", "p09_B_1.png")
    data = opened(folder)
    groups = used(data)
    assert len(groups) == 36
    assert "p03_A_0.png" in groups and not {"p05_A_0.png", "p06_A_0.png"} & set(groups)
    assert groups["p05_B_1.png"] == groups["p06_B_1.png"] == groups["p03_B_1.png"] == "p03"
    assert not {"p08_A_0.png", "p09_B_1.png"} & set(groups) and groups["p09_A_0.png"] == groups["p08_B_1.png"] == "p08"
    assert "dropped 2 re-saved (other bytes, equal pixels) duplicates: p05_A_0.png, p06_A_0.png" in caplog.text
    assert "left out 2 re-saved (other bytes, equal pixels) duplicates with different labels" in caplog.text
    assert "p05_A_0.png as p03_A_0.png, p06_A_0.png as p03_A_0.png, p09_B_1.png as p08_A_0.png" in caplog.text
    assert "Films: 36 images" in data.describe()
    assert before["images"]["train"] == 40 and data.facts()["images"]["train"] == 36
    assert data.facts()["groups"]["train"] == 17
    batch = data.train_images()[BatchRequest(4, np.arange(32, 36), np.arange(32, 36), (SIZE, SIZE))]
    assert batch["id"] == ["p18_A_0.png", "p18_B_1.png", "p19_A_0.png", "p19_B_1.png"]
    assert batch["label"].tolist() == [[1, 0], [0, 1]] * 2
    np.testing.assert_allclose(batch["image"][3, 0], pixels(39) / 127.5 - 1, atol=1e-6)


def test_a_run_from_before_sees_other_images(folder, monkeypatch):
    resave(folder, "p03_A_0.png", "p05_A_0.png")
    with monkeypatch.context() as patch:
        patch.setattr(ImageCache, "equal_rows", lambda self: [])
        before = opened(folder).facts()
    after = opened(folder).facts()
    assert before["images"]["train"] == 40 and after["images"]["train"] == 39
    assert before["fingerprint"]["train"] != after["fingerprint"]["train"]


def test_a_resaved_copy_of_copied_files_joins_all_of_them(folder):
    shutil.copy(folder / "p03_A_0.png", folder / "p04_A_0.png")
    resave(folder, "p03_A_0.png", "p02_A_0.png")
    groups = used(opened(folder))
    assert len(groups) == 38 and {groups[f"p0{i}_B_1.png"] for i in (2, 3, 4)} == {"p02"}


def test_images_of_one_value_join_nobody(folder, caplog):
    black, grey = np.zeros((SIZE, SIZE), np.uint8), np.full((SIZE, SIZE), 7, np.uint8)
    for i in range(3):
        (folder / f"p0{i}_A_0.png").write_bytes(saved(black, level=i))
        (folder / f"p1{i}_A_0.png").write_bytes(saved(grey))
    (folder / "p15_A_0.png").write_bytes(saved(np.full((SIZE, SIZE), 9, np.uint8)))
    (folder / "p16_B_1.png").write_bytes(saved(np.full((SIZE, SIZE), 9, np.uint8)))
    groups = used(opened(folder))
    assert all(group == name[:3] for name, group in groups.items()) and len(set(groups.values())) == 20
    assert len(groups) == 36 and {f"p0{i}_A_0.png" for i in range(3)} <= set(groups)
    assert "3 images are equal because they have one value only; they are kept" in caplog.text
    assert "dropped 2 byte-identical duplicates: p11_A_0.png, p12_A_0.png" in caplog.text
    assert "left out 2 byte-identical duplicates with different labels" in caplog.text and "joined" not in caplog.text


def test_images_that_only_look_alike_when_tiny_are_kept(folder):
    similar = pixels(0, 16).astype(int)
    similar[0, 0] += 1 if similar[0, 0] < 255 else -1
    (folder / "p05_A_0.png").write_bytes(saved(similar.astype(np.uint8)))
    data = opened(folder, side=2)
    rows = data._caches[(2, 2)].equal_rows()
    assert [row.tolist() for row in rows] == [[0, 10]] and len(used(data)) == 40
    assert len(used(opened(folder))) == 40


def test_drawn_images_may_be_equal(tmp_path, monkeypatch):
    monkeypatch.setattr(
        Phantoms, "read", lambda self, record: np.linspace(0, 1, 1024, dtype=np.float32).reshape(1, 32, 32)
    )
    data = Phantoms(ConstantSchedule((32, 32), 4, 8), 0, str(tmp_path), "kidney_ct", 30)
    data.setup()
    assert sum(map(data.size, PARTS)) == 30 and sum(map(data.groups, PARTS)) == 15


# What is said ---------------------------------------------------------------------------------------------------------


def test_small_parts_are_said(folder, caplog):
    opened(folder)
    assert "has only" not in caplog.text
    for path in folder.glob("p1*"):
        path.unlink()
    opened(folder, held_out=0.2)
    assert "test has only 2 groups (4 of 20 images; asked for was a share of 0.2)" in caplog.text
    assert "has no image of" not in caplog.text
    with pytest.raises(DataError, match=r"class A has 1 groups .*data.test_fraction=0"):
        for path in folder.glob("p0[1-9]_A*"):
            path.unlink()
        opened(folder, held_out=0.2)


class OneClassHeldOut(Films):
    """Patients with one film each; all of class A are held out."""

    def records(self):
        """Return the first film of even patients and the second of odd ones."""
        return [one for one in super().records() if (one.labels == ("A",)) == (int(one.group[1:]) % 2 == 0)]

    def split(self, records):
        """Return the part of each record."""
        return np.array(["test" if one.labels == ("A",) else "train" for one in records])


def test_class_that_a_part_lacks_is_said(folder, caplog):
    OneClassHeldOut(folder, held_out=0.5).setup()
    assert "OneClassHeldOut: test has no image of B" in caplog.text and "has only" not in caplog.text


class FewOfOneClassHeldOut(Films):
    """One film of class A is held out, and all of class B but one."""

    def records(self):
        """Return films that are no patient's."""
        return [Record(one.name, one.name, one.labels, one.path) for one in super().records()]

    def split(self, records):
        """Return the part of each record."""
        seldom = ("p00_A_0.png", "p00_B_1.png")
        return np.array(["test" if (one.name in seldom) == (one.labels == ("A",)) else "train" for one in records])


def test_class_far_below_its_share_is_said(folder, caplog, monkeypatch):
    FewOfOneClassHeldOut(folder, held_out=0.5).setup()
    assert "test has only 1 of 20 images of A (asked for was a share of 0.5); another seed" in caplog.text
    assert "images of B" not in caplog.text
    monkeypatch.setattr(FewOfOneClassHeldOut, "drawn_parts", ("train", "val"))  # a list says what is tested
    caplog.clear()
    FewOfOneClassHeldOut(folder, held_out=0.5).setup()
    assert "images of A" not in caplog.text


def test_unusable_files_are_said_once(folder, caplog):
    broken(folder)
    data = Films(folder, max_unreadable=0.2)
    data.prepare_data()
    data.setup()
    assert caplog.text.count("left out 8 unusable files") == 1


class Sided(Films):
    """Films of which the side, the view or both are known."""

    classes = ("LEFT", "RIGHT", "CC", "MLO")
    questions = (("LEFT", "RIGHT"), ("CC", "MLO"))
    told: dict = {}

    def records(self):
        """Return a record per film, with what is told of it."""
        return [Record(one.name, one.group, self.told.get(one.name, ()), one.path) for one in super().records()]


@pytest.mark.parametrize("level", [6, 0], ids=["byte-identical", "re-saved"])
def test_what_is_not_known_contradicts_nothing(folder, caplog, level):
    for name in ("p01_A_0", "p02_A_0", "p03_A_0"):
        (folder / f"{name}.png").write_bytes(saved(pixels(0), 6 if name == "p03_A_0" else level))
    Sided.told = {"p01_A_0.png": ("LEFT", "CC"), "p02_A_0.png": ("LEFT",), "p04_A_0.png": ("MLO",)}
    data = opened_as(Sided, folder)
    kept = {record.name: record.labels for record in data.split_records("train")}
    assert kept["p00_A_0.png"] == ("LEFT", "CC") and not kept.keys() & {"p01_A_0.png", "p02_A_0.png", "p03_A_0.png"}
    assert len(kept) == 37 and "different labels" not in caplog.text
    Sided.told["p03_A_0.png"] = ("RIGHT",)
    assert len(opened_as(Sided, folder).split_records("train")) == 36
    assert "different labels" in caplog.text


def opened_as(kind, folder):
    data = kind(folder)
    data.setup()
    return data


def test_groups_are_named_after_the_first():
    groups = JoinedGroups()
    found = Duplicates("X", "equal", groups)
    a, b, c, d = (Record(f"image of {group}", group, ("A",)) for group in "abcd")
    found.add([c, a])
    found.add([b, a, d])
    assert [groups.name(group) for group in "abcde"] == ["b", "b", "b", "b", "e"]
    names = [("a", "c"), ("a", "b"), ("d", "b")]
    assert found.joined == [f"image of {other} as image of {first}" for other, first in names]
    assert not groups.join("a", "d")
