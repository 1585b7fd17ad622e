"""The CT KIDNEY DATASET and its quirks, on tiny files in the native layout and on the real sample."""

import re
import shutil

import numpy as np
import pytest
import torch
from conftest import CLASSES, SHARED, write_kidney
from PIL import Image

from datamodules.ct_kidney import CTKidney, read_classes
from datamodules.files.errors import DataError
from lightning_modules.schedules import ConstantSchedule

SCHEDULE = ConstantSchedule((32, 32), 8, 80)


def kidney(root, tmp_path, schedule=SCHEDULE, **arguments):
    data = CTKidney(schedule, 0, str(root), str(tmp_path / "cache"), **arguments)
    data.check()
    return data


def prepared(root, tmp_path, **arguments):
    data = kidney(root, tmp_path, **{"block_size": 2, **arguments})
    data.prepare_data()
    data.setup()
    return data


def class_folder(root, label):
    return next(root.glob(f"*/*/{label}"))


def test_native_layout_is_read_with_the_folder_as_class(kidney_root, tmp_path):
    data = prepared(kidney_root, tmp_path)
    records = data.records()
    assert len(records) == 40
    assert [record.labels[0] for record in records[::10]] == list(CLASSES)
    numbers = [record.name.rsplit("(")[1] for record in records[:10]]
    assert numbers == [f"{i}).jpg" for i in range(1, 11)]  # 10 after 9, not after 1
    images = torch.cat(list(data.images("train", 16)))
    assert images.shape[1:] == (1, 32, 32)
    assert -1 <= float(images.min()) < float(images.max()) <= 1


def test_batch_keeps_the_contract(kidney_root, tmp_path):
    from datamodules.batches.samplers import BatchRequest

    data = prepared(kidney_root, tmp_path)
    batch = data.train_images()[BatchRequest(16, np.arange(16, 19), np.array([0, 5, 5]), (32, 32))]
    assert batch["image"].shape == (3, 1, 32, 32) and batch["image"].dtype == torch.float32
    assert batch["label"].shape == (3, 4) and batch["label"].dtype == torch.float32
    assert batch["label"].sum(dim=1).tolist() == [1.0, 1.0, 1.0]
    assert batch["images_seen"] == 16
    assert batch["id"][1] == batch["id"][2] and batch["id"][0] != batch["id"][1]
    assert CLASSES[int(batch["label"][1].argmax())] in batch["id"][1]


def test_hidden_files_and_folders_are_left_out(tmp_path):
    root = write_kidney(tmp_path / "root", per_class=2)
    for trash in (".trash", "#recycle"):
        shutil.copytree(class_folder(root, "Cyst"), root / trash / "Cyst")
    (class_folder(root, "Cyst") / "._Cyst- (1).jpg").write_bytes(b"what macOS leaves beside a file")
    assert len(kidney(root, tmp_path).records()) == 8


def test_tilde_is_the_home_folder(kidney_root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(kidney_root.parent))
    assert kidney(f"~/{kidney_root.name}", tmp_path).records() == kidney(kidney_root, tmp_path).records()


@pytest.mark.parametrize("depth", ["flat", "single"])
def test_other_depths_are_found(kidney_root, tmp_path, depth):
    target = tmp_path / "copy" if depth == "flat" else tmp_path / "copy" / "inner"
    target.mkdir(parents=True)
    for label in CLASSES:
        shutil.copytree(class_folder(kidney_root, label), target / label)
    assert len(kidney(tmp_path / "copy", tmp_path).records()) == 40


def test_pixel_values_map_to_minus_one_and_one(tmp_path):
    root = tmp_path / "root"
    for i, label in enumerate(CLASSES):
        (root / label).mkdir(parents=True)
        Image.fromarray(np.full((32, 32), 85 * i, np.uint8)).save(root / label / f"{label}- (1).png")
    data = prepared(root, tmp_path, val_fraction=0.0, test_fraction=0.0)
    levels = [float(image.mean()) for image in torch.cat(list(data.images("train", 4)))]
    assert levels == pytest.approx([-1, -1 / 3, 1 / 3, 1])


def test_byte_identical_duplicates_are_dropped_and_counted(tmp_path, caplog):
    root = write_kidney(tmp_path / "root")
    folder = class_folder(root, "Cyst")
    shutil.copy(folder / "Cyst- (2).jpg", folder / "Cyst- (200).jpg")
    shutil.copy(folder / "Cyst- (3).jpg", folder / "Cyst- (300).jpg")
    data = prepared(root, tmp_path)
    assert "dropped 2 byte-identical duplicates" in caplog.text and "Cyst- (200).jpg" in caplog.text
    assert sum(data.size(split) for split in ("train", "val", "test")) == 40


def test_byte_identical_files_of_two_classes_are_left_out_and_counted(tmp_path, caplog):
    root = write_kidney(tmp_path / "root")
    shutil.copy(class_folder(root, "Cyst") / "Cyst- (2).jpg", class_folder(root, "Tumor") / "Tumor- (2).jpg")
    data = prepared(root, tmp_path)
    assert "left out 2 byte-identical duplicates with different labels" in caplog.text
    names = [record.name for split in ("train", "val", "test") for record in data.split_records(split)]
    assert sorted(name.rsplit("/")[-1] for name in names if "(2)" in name) == ["Normal- (2).jpg", "Stone- (2).jpg"]
    assert len(names) == 38


def test_blocks_that_share_a_file_stay_together(tmp_path, caplog):
    root = write_kidney(tmp_path / "root", per_class=60)
    folder = class_folder(root, "Cyst")
    for number, other in ((2, 12), (13, 22), (42, 31)):  # blocks of ten: 0, 1 and 2 become one, 3 and 4 another
        shutil.copy(folder / f"Cyst- ({number}).jpg", folder / f"Cyst- ({other}).jpg")
    parts = set()
    for seed in range(8):
        data = CTKidney(SCHEDULE, seed, str(root), str(tmp_path / "cache"), 10, val_fraction=0.2, test_fraction=0.3)
        data.setup()
        split_of = {
            record.name.rsplit(" ")[-1]: split
            for split in ("train", "val", "test")
            for record in data.split_records(split)
            if record.labels == ("Cyst",)
        }
        assert len(split_of) == 57
        assert len({split_of[f"({number}).jpg"] for number in (1, 11, 21)}) == 1
        assert len({split_of[f"({number}).jpg"] for number in (31, 41)}) == 1
        parts.add(split_of["(31).jpg"])
    assert len(parts) > 1
    assert "joined the groups of byte-identical files: " in caplog.text
    for copy, first in ((12, 2), (22, 13), (42, 31)):
        assert re.search(rf"Cyst- \({copy}\)\.jpg as \S* ?\S*Cyst- \({first}\)\.jpg", caplog.text)


def test_blocks_of_neighbours_stay_together(tmp_path):
    root = write_kidney(tmp_path / "root", per_class=60)
    data = prepared(root, tmp_path, block_size=5, val_fraction=0.2, test_fraction=0.2)
    blocks = {}
    for split in ("train", "val", "test"):
        for row in data._rows[split]:
            blocks.setdefault(data._kept[row].record.group, set()).add(split)
    assert len(blocks) == 4 * 13
    assert all(len(parts) == 1 for parts in blocks.values())
    assert min(data.size(split) for split in ("val", "test")) > 20


def touched(root, **numbers):
    """Make empty files: which images there are and how they are split does not depend on pixels."""
    for label in CLASSES:
        (root / label).mkdir(parents=True)
        for number in numbers.get(label, range(1, 151)):
            (root / label / f"{label}- ({number}).png").touch()
    return root


@pytest.mark.parametrize("slices, block", [(100, 10), (150, 15), (161, 17), (60, 10), (2000, 50)])
def test_every_class_of_few_slices_has_its_share_in_every_part(tmp_path, caplog, slices, block):
    data = kidney(touched(tmp_path / "root", Stone=range(1, slices + 1), Cyst=range(1, 1001)), tmp_path)
    records = data.records()
    groups = [record.group for record in records if record.labels == ("Stone",)]
    assert max(groups.count(group) for group in groups) == block
    assert max(sum(record.group == f"Cyst block {i}" for record in records) for i in range(21)) == 50
    assert len(groups) == slices and min(groups.count(group) for group in groups) >= (
        1 if slices == 2000 else block - 1
    )
    assert (f"Stone ({slices}) into " in caplog.text) == (slices != 2000) and "Normal (150) into 10" in caplog.text
    for seed in range(5):
        data.seed = seed
        split = data.split(records)
        for label in CLASSES:
            inside = split[[record.labels == (label,) for record in records]]
            for part in ("val", "test"):
                assert (inside == part).mean() == pytest.approx(
                    1 / 6 if (label, slices) == ("Stone", 60) else 0.1, abs=0.01
                )


def test_blocks_that_were_asked_for_are_as_large_as_they_were(tmp_path):
    records = kidney(touched(tmp_path / "root"), tmp_path, block_size=15).records()
    assert [record.group for record in records[:150]] == [f"Cyst block {number // 15}" for number in range(1, 151)]


def test_class_of_too_few_blocks_is_refused_with_what_to_set(tmp_path):
    root = touched(tmp_path / "root", Tumor=range(1, 16))
    data = kidney(root, tmp_path)
    with pytest.raises(DataError, match=r"class Tumor has 2 groups .*data.val_fraction=0.*data.block_size below 10"):
        data.split(data.records())
    smaller = kidney(root, tmp_path, block_size=5)
    assert set(smaller.split(smaller.records())[-15:]) == {"train", "val", "test"}
    none = kidney(root, tmp_path, val_fraction=0.0, test_fraction=0.0)
    assert set(none.split(none.records())) == {"train"}


def test_files_named_after_a_patient_are_grouped_by_patient(tmp_path):
    root = write_kidney(tmp_path / "root", per_class=2)
    folder = class_folder(root, "Stone")
    for name in ("P143_RA_M_S_I01", "P143_RA_M_S_I02", "P9_LA_F_S_I01"):
        shutil.copy(folder / "Stone- (1).jpg", folder / f"{name}.jpg")
    groups = {record.name.rsplit("/")[-1]: record.group for record in kidney(root, tmp_path).records()}
    assert groups["P143_RA_M_S_I01.jpg"] == groups["P143_RA_M_S_I02.jpg"] == "P143"
    assert groups["P9_LA_F_S_I01.jpg"] == "P9"


def test_renamed_copies_with_a_number_at_the_end_form_the_same_blocks(tmp_path):
    root = write_kidney(tmp_path / "root", per_class=12)
    of_download = [record.group for record in kidney(root, tmp_path, block_size=5).records()]
    for label in CLASSES:
        for path in class_folder(root, label).iterdir():
            path.rename(path.with_name(f"{label}-{int(path.stem.split('(')[1][:-1]):04}.jpg"))
    records = kidney(root, tmp_path, block_size=5).records()
    assert [record.group for record in records] == of_download
    assert {record.group for record in records if "Cyst-0007" in record.name} == {"Cyst block 1"}
    assert len({record.group for record in records}) == 4 * 3


def test_files_whose_neighbours_are_not_known_are_refused(tmp_path):
    root = write_kidney(tmp_path / "root", per_class=2)
    folder = class_folder(root, "Stone")
    for name in ("a", "b"):
        shutil.copy(folder / "Stone- (1).jpg", folder / f"{name}.jpg")
    with pytest.raises(DataError, match=r"names of 2 files .* e.g. .*Stone/a.jpg: .* neighbouring slices would leak"):
        kidney(root, tmp_path).records()


def test_damaged_and_stray_files_are_skipped_by_name_up_to_the_limit(tmp_path, caplog):
    root = write_kidney(tmp_path / "root")
    folder = class_folder(root, "Tumor")
    (folder / "Tumor- (3).jpg").write_bytes((folder / "Tumor- (3).jpg").read_bytes()[:200])
    Image.fromarray(np.zeros((45, 65), np.uint8)).save(folder / "Tumor- (4).jpg")
    data = prepared(root, tmp_path, max_unreadable=0.05)
    assert "left out 2 unusable files" in caplog.text
    assert "Tumor- (3).jpg" in caplog.text
    assert "Tumor- (4).jpg: 45x65 pixels, the other files have 64x64 (a stray file)" in caplog.text
    assert sum(data.size(split) for split in ("train", "val", "test")) == 38
    with pytest.raises(DataError, match=r"1 of 40 files cannot be used, more than data.max_unreadable=0.01"):
        prepared(root, tmp_path / "other", max_unreadable=0.01)


def test_one_stray_under_many_names_and_classes_counts_each_time_and_joins_no_blocks(tmp_path, caplog):
    root = write_kidney(tmp_path / "root")
    Image.fromarray(np.arange(45 * 65).astype(np.uint8).reshape(45, 65)).save(tmp_path / "removed.png")
    for number in (2, 5, 8):
        for label in ("Cyst", "Stone"):
            shutil.copy(tmp_path / "removed.png", class_folder(root, label) / f"{label}- ({number}).jpg")
    data = prepared(root, tmp_path, max_unreadable=0.15)
    assert sum(map(data.size, ("train", "val", "test"))) == 34
    assert sum(map(data.groups, ("train", "val", "test"))) == 4 * 6
    assert "left out 6 unusable files" in caplog.text and "joined" not in caplog.text
    assert "different labels" not in caplog.text
    with pytest.raises(DataError, match="6 of 40 files cannot be used"):
        prepared(root, tmp_path / "other", max_unreadable=0.14)


@pytest.mark.parametrize("missing", ["", "/nowhere/at/all"])
def test_missing_root_names_argument_layout_and_source(tmp_path, missing):
    with pytest.raises(DataError, match=r"data.root.*Cyst, Normal, Stone and Tumor.*https://www.kaggle.com"):
        kidney(missing, tmp_path)


def test_missing_class_folder_is_named(tmp_path):
    root = write_kidney(tmp_path / "root", per_class=1)
    shutil.rmtree(class_folder(root, "Stone"))
    with pytest.raises(DataError, match="found no folder Stone in it"):
        kidney(root, tmp_path)


def test_second_start_reads_no_image_file(tmp_path, monkeypatch):
    root = write_kidney(tmp_path / "root")
    first = prepared(root, tmp_path)
    monkeypatch.setattr(CTKidney, "read", lambda *_: pytest.fail("decoded again"))
    second = prepared(root, tmp_path)
    assert first.fingerprint("train") == second.fingerprint("train")


def test_changed_file_changes_the_fingerprint(tmp_path):
    root = write_kidney(tmp_path / "root")
    before = prepared(root, tmp_path).fingerprint("train")
    for label in CLASSES:
        path = class_folder(root, label) / f"{label}- (1).jpg"
        Image.fromarray(np.full((64, 64), 7, np.uint8)).save(path)
    assert prepared(root, tmp_path).fingerprint("train") != before


CSV = "{},image_id,path,diag,target,Class\n"


def write_csv(root, *rows):
    (root / "kidneyData.csv").write_text(CSV.format("") + "\n".join(rows) + "\n")


def test_csv_lists_more_images_than_there_are(tmp_path, caplog):
    root = write_kidney(tmp_path / "root")
    caplog.set_level("INFO")
    write_csv(root, '0,Tumor- (1),"/content/TUMOR/Tumor- (1).jpg",Tumor,3,Tumor', "1,Cyst- (999),x,Cyst,0,Cyst")
    assert len(kidney(root, tmp_path).records()) == 40
    assert "lists 2 images, 1 of them are not on disk" in caplog.text


def test_csv_that_contradicts_the_folder_is_refused(tmp_path):
    root = write_kidney(tmp_path / "root")
    write_csv(root, "0,Tumor- (1),x,Cyst,0,Cyst")
    with pytest.raises(DataError, match=r"says 'Cyst' of 'Tumor- \(1\)', which lies in folder 'Tumor'"):
        kidney(root, tmp_path).records()


needs_samples = pytest.mark.skipif(not SHARED.is_dir(), reason="the real samples (../shared/data) are not here")


@needs_samples
def test_real_sample_in_native_layout(tmp_path):
    data = prepared(SHARED / "ct_kidney", tmp_path, block_size=50, schedule=ConstantSchedule((64, 64), 8, 80))
    assert sum(data.size(split) for split in ("train", "val", "test")) == 61  # 62 files, one of them twice
    assert len(read_classes(SHARED / "ct_kidney" / "kidneyData.csv", data.classes)) == 12_446


@needs_samples
def test_real_training_set(tmp_path):
    data = prepared(SHARED / "ct_kidney_128", tmp_path, block_size=50, schedule=ConstantSchedule((64, 64), 8, 80))
    assert sum(data.size(split) for split in ("train", "val", "test")) == 2627
    assert 0.05 < data.size("val") / 2627 < 0.15 and 0.05 < data.size("test") / 2627 <= 0.1
