"""NIH ChestX-ray14 and its quirks, on tiny files in the layout of both releases and on the real sample."""

import csv
import gzip
import json
import logging
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ROOT, SHARED
from PIL import Image

from datamodules.chestxray14 import ChestXray14
from datamodules.decoding.readers import read_grey
from datamodules.files.errors import DataError
from datamodules.records.chestxray14_tables import FINDINGS, Box, Entry, read_boxes, read_list, read_table
from lightning_modules.schedules import ConstantSchedule

REAL, REAL_256 = SHARED / "chestxray14", SHARED / "chestxray14_256"
needs_samples = pytest.mark.skipif(not REAL.is_dir(), reason="the real samples (../shared/data) are not here")
V2020, V2017 = "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)

# Writers of tiny files ------------------------------------------------------------------------------------------------


def name_of(patient, visit=0):
    return f"{patient:08}_{visit:03}.png"


def table(rows, release=2020):
    """Return NIH's table of (patient, visit, labels, age, sex, view) as text; age as in that release."""
    end = ",\r\n" if release == 2017 else "\n"
    lines = [HEADER + end]
    for patient, visit, labels, age, sex, view in rows:
        if release == 2017:
            age = age if isinstance(age, str) else f"{age:03}Y"
            numbers = f"{visit:03},{patient:08},{age},{sex},{view},2682,2749,0.143,0.143\r\n"
        else:
            numbers = f"{visit},{patient},{age},{sex},{view},2682,2749,0.14300000000000002,0.143\n"
        lines.append(f"{name_of(patient, visit)},{labels},{numbers}")
    return "".join(lines)


def plain_rows(patients=40, visits=2):
    """Rows with one of four label sets each, so that the labels of a patient's visits differ."""
    labels = ("No Finding", "Mass|Effusion", "Effusion", "Hernia")
    return [
        (patient, visit, labels[(patient + visit) % 4], 20 + patient, "MF"[patient % 2], ("PA", "AP")[visit % 2])
        for patient in range(1, patients + 1)
        for visit in range(visits)
    ]


def write_images(folder, names, size=32):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        random = np.random.default_rng(int(name[:8]) * 1000 + int(name[9:12]))
        Image.fromarray(random.integers(0, 256, (size, size), dtype=np.uint8)).save(folder / name)


def write_nih(root, rows=None, release=2020, folder="images", images=True):
    """Write table, lists (every fourth patient is a test patient) and images; return the root."""
    rows = plain_rows() if rows is None else rows
    root.mkdir(parents=True, exist_ok=True)
    (root / (V2017 if release == 2017 else V2020)).write_bytes(table(rows, release).encode())
    names = [name_of(patient, visit) for patient, visit, *_ in rows]
    for list_name, is_test in (("train_val_list.txt", False), ("test_list.txt", True)):
        lines = [name for name in names if (int(name[:8]) % 4 == 0) == is_test]
        (root / list_name).write_text("\n".join(lines))  # no line end after the last
    if images:
        write_images(root / folder, names)
    return root


def nih(root, tmp_path, size=32, **arguments):
    data = ChestXray14(ConstantSchedule((size, size), 8, 80), 0, str(root), str(tmp_path / "cache"), **arguments)
    data.check()
    return data


def prepared(root, tmp_path, **arguments):
    data = nih(root, tmp_path, **arguments)
    data.prepare_data()
    data.setup()
    return data


def patients_of(data, split):
    return {data._kept[row].record.group for row in data._rows[split]}


def write_table(tmp_path, text, name=V2020):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


ROW = (13, 4, "Mass|Effusion", 58, "M", "PA")


# The nine quirks, on files written here -------------------------------------------------------------------------------


def test_quirk_1_rgba_files_are_read_as_grey(tmp_path):
    root = write_nih(tmp_path / "root")
    path = root / "images" / name_of(1)
    grey = read_grey(path)
    Image.open(path).convert("RGBA").save(path)
    data = nih(root, tmp_path)
    record = next(record for record in data.records() if record.name == name_of(1))
    assert data.read(record).shape == (1, 32, 32)
    assert (data.read(record)[0] == grey).all()


@pytest.mark.parametrize(
    "written, age",
    [("058Y", 58), ("009M", 0), ("023M", 1), ("001D", 0), ("110Y", 110), ("148Y", None), ("414Y", None), ("000Y", 0)],
)
def test_quirk_2_ages_of_the_first_release(tmp_path, written, age):
    path = write_table(tmp_path, table([(13, 4, "Mass", written, "M", "PA")], 2017))
    assert read_table(path) == {name_of(13, 4): Entry(("Mass",), age, "M", "PA")}


def test_quirk_2_unknown_ages_are_left_out_and_counted_only_with_a_filter_of_age(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = [(1, 0, "Mass", "414Y", "M", "PA"), (2, 0, "Mass", "030Y", "M", "PA"), (4, 0, "Mass", "090Y", "M", "PA")]
    root = write_nih(tmp_path / "root", rows, 2017)
    assert len(nih(root, tmp_path).records()) == 3
    assert "not known" not in caplog.text
    assert [record.group for record in nih(root, tmp_path, min_age=0).records()] == ["00000002", "00000004"]
    assert "the age of 1 images is not known" in caplog.text
    assert [record.group for record in nih(root, tmp_path, max_age=40).records()] == ["00000002"]


def test_quirk_3_header_cells_with_commas_do_not_shift_the_columns(tmp_path):
    expected = {name_of(13, 4): Entry(("Effusion", "Mass"), 58, "M", "PA")}
    for release in (2017, 2020):
        assert read_table(write_table(tmp_path, table([ROW], release))) == expected
    quoted = HEADER.replace("OriginalImage[Width,Height]", '"OriginalImage[Width,Height]"')
    assert read_table(write_table(tmp_path, table([ROW]).replace(HEADER, quoted))) == expected
    moved = "OriginalImage[Width,Height],Patient Age,View Position,Patient Gender,Patient ID,Finding Labels,Image Index"
    assert read_table(write_table(tmp_path, f"{moved}\n1,2,58,PA,M,13,Mass|Effusion,{name_of(13, 4)}\n")) == expected


def test_quirk_4_the_newer_release_is_preferred_and_csv_overrules(tmp_path):
    root = write_nih(tmp_path / "root")
    old = [(patient, visit, "Edema", *rest) for patient, visit, _, *rest in plain_rows()]
    (root / V2017).write_text(table(old, 2017))
    assert {record.labels for record in nih(root, tmp_path).records()} != {("Edema",)}
    assert {record.labels for record in nih(root, tmp_path, csv=str(root / V2017)).records()} == {("Edema",)}
    (root / V2020).unlink()
    assert {record.labels for record in nih(root, tmp_path).records()} == {("Edema",)}
    (root / f"{V2020}.gz").write_bytes(gzip.compress(table(plain_rows()).encode()))
    assert {record.labels for record in nih(root, tmp_path).records()} != {("Edema",)}


def test_quirk_5_labels_are_split_and_no_finding_is_no_class(tmp_path):
    root = write_nih(
        tmp_path / "root", [(1, 0, "Pleural_Thickening|Mass", 3, "F", "AP"), (1, 1, "No Finding", 3, "F", "AP")]
    )
    labels = [record.labels for record in nih(root, tmp_path, split_by="stratified").records()]
    assert labels == [("Mass", "Pleural_Thickening"), ()]
    assert len(ChestXray14.classes) == 14 and "No Finding" not in ChestXray14.classes


BOXES = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"


def test_quirk_6_boxes_with_empty_columns_and_infiltrate(tmp_path):
    root = write_nih(tmp_path / "root", images=False)
    boxes = (f"{name_of(13, 8)},Infiltrate,225.5,547,86.75,79\n", f"{name_of(13, 8)},Mass,0,0,1024,1024\n")
    (root / "BBox_List_2017.csv").write_text(BOXES + "".join(boxes))
    found = nih(root, tmp_path).boxes()
    assert found == {name_of(13, 8): [Box("Infiltration", 225.5, 547.0, 86.75, 79.0), Box("Mass", 0, 0, 1024, 1024)]}


def test_quirk_6_infiltrate_is_no_finding_of_the_table(tmp_path):
    path = write_table(tmp_path, table([ROW, (13, 5, "Mass|Infiltrate", 58, "M", "PA")]))
    with pytest.raises(DataError, match=r"csv, line 3: 'Infiltrate' is not a finding; the nearest is 'Infiltration'"):
        read_table(path)


def test_quirk_7_the_last_line_of_a_list_counts_without_line_end(tmp_path):
    for end in ("", "\n", "\r\n\r\n"):
        path = write_table(tmp_path, f"{name_of(1)}\r\n{name_of(2)}{end}", "test_list.txt")
        assert read_list(path) == {name_of(1), name_of(2)}


def test_quirk_7_official_test_patients_are_the_list_and_validation_is_cut_from_the_rest(tmp_path):
    data = prepared(write_nih(tmp_path / "root"), tmp_path, val_fraction=0.2, test_fraction=0.0)
    assert patients_of(data, "test") == {f"{patient:08}" for patient in range(4, 41, 4)}
    assert len(patients_of(data, "val")) == 6
    assert len(patients_of(data, "train")) == 24
    assert not patients_of(data, "val") & patients_of(data, "train")


def test_training_patient_who_shares_a_file_with_a_test_patient_is_tested(tmp_path, caplog):
    root = write_nih(tmp_path / "root")
    (root / "images" / name_of(5)).write_bytes((root / "images" / name_of(4, 1)).read_bytes())  # with equal labels
    data = prepared(root, tmp_path)
    assert name_of(5, 1) in [record.name for record in data.split_records("test")]
    assert sum(data.size(split) for split in ("train", "val", "test")) == 79
    assert f"joined the groups of byte-identical files: {name_of(5)} as {name_of(4, 1)}" in caplog.text


def test_quirk_8_images_that_are_not_on_disk_are_refused_or_left_out_as_wished(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = write_nih(tmp_path / "root", images=False)
    write_images(root / "images", [name_of(patient) for patient in range(1, 31)] + [name_of(999)])
    with pytest.raises(DataError, match=r"30 of the 80 images .* data.min_present=0.5 .*set data.min_present lower"):
        nih(root, tmp_path).records()
    assert len(nih(root, tmp_path, min_present=0.375).records()) == 30
    assert "lists 80 images, 80 after the filters, 30 of these on disk; 1 other PNG files left out" in caplog.text
    assert len(nih(root, tmp_path, view="PA").records()) == 30  # of the 40 that pass the filter


def test_quirk_8_kaggles_twelve_folders_are_read(tmp_path):
    root = write_nih(tmp_path / "root", images=False)
    names = [name_of(patient, visit) for patient, visit, *_ in plain_rows()]
    for number in range(1, 13):
        write_images(root / f"images_{number:03}" / "images", names[number - 1 :: 12])
    assert [record.name for record in nih(root, tmp_path).records()] == sorted(names)


def test_quirk_8_images_directly_in_the_root_are_read(tmp_path):
    assert len(nih(write_nih(tmp_path / "root", folder="."), tmp_path).records()) == 80


def test_quirk_8_a_name_in_two_folders_is_refused(tmp_path):
    root = write_nih(tmp_path / "root")
    write_images(root / "images_007" / "images", [name_of(5)])
    with pytest.raises(DataError, match=r"00000005_000.png: lies both in .*images and in .*images_007/images"):
        nih(root, tmp_path).records()


def test_quirk_9_other_sizes_are_resized_and_other_shapes_are_refused(tmp_path, caplog):
    root = write_nih(tmp_path / "root")
    write_images(root / "images", [name_of(1)], size=64)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 101), np.uint8)).save(root / "images" / name_of(2))
    Image.fromarray(np.zeros((32, 40), np.uint8)).save(root / "images" / name_of(3))
    with pytest.raises(DataError, match=r"1 of 80 files .*00000003_000.png: 32x40 pixels would be squashed to 32x32"):
        prepared(root, tmp_path)
    data = prepared(root, tmp_path, max_unreadable=0.02)
    assert "left out 1 unusable files: 00000003_000.png: 32x40" in caplog.text
    assert sum(data.size(split) for split in ("train", "val", "test")) == 79


# What else must hold --------------------------------------------------------------------------------------------------


def test_batch_keeps_the_contract_and_grey_levels_map_to_minus_one_and_one(tmp_path):
    from datamodules.batches.samplers import BatchRequest

    root = write_nih(tmp_path / "root")
    for patient, grey in ((1, 0), (2, 255)):
        Image.fromarray(np.full((32, 32), grey, np.uint8)).save(root / "images" / name_of(patient))
    data = prepared(root, tmp_path, split_by="stratified", val_fraction=0.0, test_fraction=0.0)
    names = [data._names[row] for row in data._rows["train"]]
    rows = [names.index(name_of(1)), names.index(name_of(2)), names.index(name_of(4))]
    batch = data.train_images()[BatchRequest(0, np.arange(3), np.array(rows), (32, 32))]
    assert batch["image"].shape == (3, 1, 32, 32) and batch["image"].dtype == torch.float32
    assert [float(image.mean()) for image in batch["image"][:2]] == [-1, 1]
    assert batch["label"].shape == (3, 14)
    positive = [[FINDINGS[i] for i in row.nonzero().flatten()] for row in batch["label"]]
    assert positive == [["Effusion", "Mass"], ["Effusion"], []]
    assert batch["id"] == [name_of(1), name_of(2), name_of(4)]
    assert data.facts()["classes"] == list(FINDINGS)


@pytest.mark.parametrize(
    "filters, expected",
    [
        ({"view": "PA"}, 40),
        ({"view": "AP", "sex": "F"}, 20),
        ({"sex": "M"}, 40),
        ({"min_age": 31}, 60),
        ({"max_age": 30}, 20),
        ({"min_age": 31, "max_age": 32}, 4),
        ({"only_labels": ("Hernia",)}, 20),
        ({"only_labels": ("Hernia", "Mass")}, 40),
        ({"only_labels": ("No Finding",)}, 20),
        ({"only_labels": ("No Finding", "Effusion"), "sex": "F", "view": "PA"}, 10),
    ],
)
def test_filters_keep_what_they_say(tmp_path, filters, expected):
    data = nih(write_nih(tmp_path / "root"), tmp_path, **filters)
    entries = read_table(tmp_path / "root" / V2020)
    kept = [entries[record.name] for record in data.records()]
    assert len(kept) == expected
    assert all(filters.get("view", entry.view) == entry.view for entry in kept)
    assert all(filters.get("sex", entry.sex) == entry.sex for entry in kept)
    assert all(filters.get("min_age", 0) <= entry.age <= filters.get("max_age", 110) for entry in kept)
    wanted = set(filters.get("only_labels", ()))
    assert all(wanted & set(entry.labels or ("No Finding",)) for entry in kept if wanted)


def test_filters_that_leave_nothing_are_named(tmp_path):
    root = write_nih(tmp_path / "root")
    with pytest.raises(DataError, match=r"none of its 80 images passes the filters .*only_labels=\['Edema'\]"):
        nih(root, tmp_path, only_labels=("Edema",)).records()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"only_labels": ("Infiltrate",)}, "only_labels: 'Infiltrate' is not a finding; the nearest is 'Infiltration'"),
        ({"min_present": 1.5}, "min_present=1.5"),
        ({"min_age": 50, "max_age": 40}, "min_age=50, max_age=40"),
        ({"min_age": -1}, "min_age=-1"),
        ({"view": "LL"}, "view='LL': must be one of PA, AP, both"),
        ({"sex": "m"}, "sex='m'"),
        ({"split_by": "random"}, "split_by='random'"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        nih(tmp_path, tmp_path, **arguments)


def test_missing_things_are_named_with_the_source(tmp_path):
    source = r".*https://nihcc.app.box.com/v/ChestXray-NIHCC"
    with pytest.raises(DataError, match=rf"data.root is not set.*MIRAGE_CHESTXRAY14{source}"):
        nih("", tmp_path)
    with pytest.raises(DataError, match=rf"data.root=/nowhere: there is no such folder{source}"):
        nih("/nowhere", tmp_path)
    root = tmp_path / "root"
    root.mkdir()
    searched = "Data_Entry_2017_v2020.csv, Data_Entry_2017_v2020.csv.gz, Data_Entry_2017.csv, Data_Entry_2017.csv.gz"
    with pytest.raises(DataError, match=rf"found none of {searched} in it; set data.csv{source}"):
        nih(root, tmp_path)
    with pytest.raises(DataError, match=rf"data.csv=/nowhere.csv: there is no such file{source}"):
        nih(root, tmp_path, csv="/nowhere.csv")
    write_nih(root, images=False)
    with pytest.raises(DataError, match=r"found no BBox_List_2017.csv in it nor beside .*Data_Entry_2017_v2020.csv"):
        nih(root, tmp_path).boxes()
    with pytest.raises(DataError, match=r"none of the 80 images .* is on disk.*images_001/images to images_012/images"):
        nih(root, tmp_path, min_present=0.0).records()
    (root / "test_list.txt").unlink()
    with pytest.raises(DataError, match=rf"found no test_list.txt{source}, or choose data.split_by=stratified"):
        nih(root, tmp_path)
    nih(root, tmp_path, split_by="stratified")


def test_lists_and_boxes_are_found_beside_the_table(tmp_path):
    tables = write_nih(tmp_path / "tables", images=False)
    (tables / "BBox_List_2017.csv").write_text(f"{BOXES}{name_of(1)},Mass,1,2,3,4\n")
    write_images(tmp_path / "images", [name_of(patient) for patient in range(1, 41)])
    data = nih(tmp_path, tmp_path, csv=str(tables / V2020))
    assert len(data.records()) == 40
    assert data.boxes() == {name_of(1): [Box("Mass", 1, 2, 3, 4)]}


def test_lists_that_share_a_patient_or_miss_an_image_are_refused(tmp_path):
    root = write_nih(tmp_path / "root")
    with (root / "test_list.txt").open("a") as file:
        file.write(f"\n{name_of(1, 7)}")
    with pytest.raises(DataError, match=r"train_val_list.txt and test_list.txt share 1 patients, e.g. 00000001"):
        nih(root, tmp_path).records()
    (root / "test_list.txt").write_text(name_of(4))
    with pytest.raises(DataError, match=r"00000004_001.png: is in neither train_val_list.txt nor test_list.txt"):
        nih(root, tmp_path).records()
    (root / "test_list.txt").write_text(f"{name_of(4)}\n{name_of(8)}x")
    with pytest.raises(DataError, match=r"test_list.txt, line 2: '00000008_000.pngx' is not named like"):
        nih(root, tmp_path).records()


GOOD = table([ROW, (13, 5, "No Finding", 58, "M", "PA"), (14, 0, "Hernia", 3, "F", "AP")])
LINES = GOOD.splitlines(keepends=True)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "csv: is empty"),
        ("\n \n", "csv: is empty"),
        (LINES[0], "csv: holds no image"),
        (GOOD.replace("Patient Age,", ""), "line 1: has no column 'Patient Age'"),
        (GOOD.replace("Follow-up #", "Patient ID"), "line 1: has no column 'Patient ID', or has it twice"),
        (GOOD[:-20], "line 4: has 10 cells, expected 11"),
        (LINES[0] + "00000013_004.png,Mass,4,13\n", "line 2: has 4 cells, expected 7"),
        (GOOD.replace("Hernia,", ""), "line 4: has 10 cells, expected 11"),
        (GOOD + LINES[1], "line 5: 00000013_004.png is listed twice"),
        (GOOD.replace(",14,", ",15,"), "line 4: patient '15' contradicts the image's name 00000014_000.png"),
        (GOOD.replace(",14,", ",x,"), "line 4: patient 'x' contradicts"),
        (GOOD.replace("00000014_000.png", "14_000.png"), "line 4: image '14_000.png' is not named like"),
        (GOOD.replace("No Finding", "No Finding|Mass"), "line 3: 'No Finding|Mass' is both without and with a finding"),
        (GOOD.replace("Hernia", "hernia"), "line 4: 'hernia' is not a finding; the nearest is 'Hernia'"),
        (GOOD.replace("Hernia", ""), "line 4: '' is not a finding"),
        (GOOD.replace(",3,F", ",3 years,F"), "line 4: age '3 years' is not written like"),
        (GOOD.replace(",3,F", ",-3,F"), "line 4: age '-3'"),
        (GOOD.replace(",F,AP", ",O,AP"), "line 4: sex 'O' is neither M nor F"),
        (GOOD.replace(",F,AP", ",F,LL"), "line 4: view 'LL' is neither PA nor AP"),
        (GOOD.replace("Hernia", '"Hernia'), "line 4: is not readable as CSV"),
        (GOOD.replace("No Finding", '"No Finding').replace("Hernia", 'Hernia"'), "line 3: "),
        (GOOD.encode().replace(b"Hernia", b"Herni\xff"), "line 4: is not text"),
        (GOOD.encode("utf-16"), "line 1: is not text"),
        (gzip.compress(GOOD.encode())[:-9], "csv: cannot be read"),
        (b"\x1f\x8bnonsense", "csv: cannot be read"),
    ],
)
def test_malformed_table_is_refused_with_file_and_line(tmp_path, text, message):
    path = write_table(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("Mass|Effusion", '"Mass | Effusion"').replace("00000014_000.png", ' "00000014_000.png"'.strip()),
        GOOD.replace(",13,", ",  00000013 ,").replace(",M,", ", M ,"),
        GOOD + "\n\n",
        GOOD.rstrip("\n"),
        gzip.compress(GOOD.encode()),
        gzip.compress(GOOD.encode()[:50]) + gzip.compress(GOOD.encode()[50:]),
    ],
)
def test_harmless_differences_of_a_table_change_nothing(tmp_path, text):
    assert read_table(write_table(tmp_path, text)) == read_table(write_table(tmp_path, GOOD, "good.csv"))


def test_folder_instead_of_a_table_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    "row, message",
    [
        (f"{name_of(1)},Mass,1,2,3\n", "line 2: has 5 cells, expected 6"),
        (f"{name_of(1)},Mass,1,2,3,x\n", "line 2: a box needs four numbers"),
        (f"{name_of(1)},Mass,1,2,3,nan\n", "line 2: box 1.0, 2.0, 3.0, nan does not lie in 1024x1024"),
        (f"{name_of(1)},Mass,1000,2,25,3\n", "does not lie in"),
        (f"{name_of(1)},Mass,1,2,0,3\n", "does not lie in"),
        (f"{name_of(1)},No Finding,1,2,3,4\n", "line 2: 'No Finding' is not a finding"),
        ("x.png,Mass,1,2,3,4\n", "line 2: image 'x.png' is not named like"),
        ("", "holds no box"),
    ],
)
def test_malformed_boxes_are_refused_with_file_and_line(tmp_path, row, message):
    path = write_table(tmp_path, BOXES + row, "BBox_List_2017.csv")
    with pytest.raises(DataError) as caught:
        read_boxes(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


FUZZ = """
import gzip, json, random, re, sys
from collections import Counter
from pathlib import Path
from datamodules.records.chestxray14_tables import FINDINGS, read_boxes, read_list, read_table
from datamodules.files.errors import DataError

def mutate(raw, random):
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(raw) + 1)
        commas = [i for i, byte in enumerate(raw) if byte in b",|\\n"] or [0]
        separator = random.choice(commas)
        choice = random.randrange(8)
        if choice == 0:
            raw = raw[:at] + bytes([random.randrange(256)]) + raw[at + 1:]
        elif choice == 1:
            raw = raw[:at]
        elif choice == 2:
            raw = raw[:separator] + raw[separator + 1:]
        elif choice == 3:
            raw = raw[:separator] + raw[separator:separator + 1] + raw[separator:]
        elif choice == 4:
            raw = raw[:at] + random.choice([b"\\0", b'"', b'""', b"\\r", b"\\n", b"\\xef\\xbb\\xbf"]) + raw[at:]
        elif choice == 5:
            raw = raw[:separator + 1] + b'"' + raw[separator + 1:]
        elif choice == 6:
            end = random.randrange(at, min(at + 200, len(raw)) + 1)
            raw = raw[:at] + raw[end:]
        else:
            raw = raw[:at] + random.choice([b"9" * 5000, b"x" * 200_000, b"-1", b"1e999", b"\\xd9\\xa3"]) + raw[at:]
    return raw

def plausible(kind, found):
    assert found and all(re.fullmatch("[0-9]{8}_[0-9]{3}[.]png", name) for name in found), found
    if kind == "table":
        for entry in found.values():
            assert set(entry.labels) <= set(FINDINGS) and len(set(entry.labels)) == len(entry.labels), entry
            assert entry.age is None or 0 <= entry.age <= 110, entry
            assert entry.sex in ("M", "F") and entry.view in ("PA", "AP"), entry
    if kind == "boxes":
        for box in (box for boxes in found.values() for box in boxes):
            assert box.finding in FINDINGS and box.x + box.width <= 1024 and box.y + box.height <= 1024, box

folder, counts = Path(sys.argv[1]), Counter()
readers = {"table": read_table, "boxes": read_boxes, "list": read_list}
for kind, source, cases in json.loads(sys.argv[2]):
    good = (folder / source).read_bytes()
    for case in range(cases):
        path = folder / f"mutated_{case}_{source}"
        path.write_bytes(mutate(good, random.Random(f"{source} {case}")))
        try:
            found = readers[kind](path)
        except DataError as error:
            assert str(path) in str(error), error
            assert len(str(error)) < 1000, error
            counts[kind + " refused"] += 1
        except BaseException:
            print(f"case {case} of {source}", file=sys.stderr)
            raise
        else:
            plausible(kind, found)
            counts[kind + " read"] += 1
        path.unlink()
print(json.dumps(counts))
"""


@pytest.mark.slow  # importing takes the child longer than its 1000 files
def test_mutated_files_are_read_or_refused_by_name_and_never_crash(tmp_path):
    rows = plain_rows(10, 3)
    (tmp_path / "v2020.csv").write_bytes(table(rows).encode())
    (tmp_path / "v2017.csv").write_bytes(table(rows, 2017).encode())
    (tmp_path / "v2017.csv.gz").write_bytes(gzip.compress(table(rows, 2017).encode(), mtime=0))
    boxes = [f"{name_of(patient)},Infiltrate,{patient}.5,2,3,4\n" for patient in range(1, 30)]
    (tmp_path / "boxes.csv").write_text(BOXES + "".join(boxes))
    (tmp_path / "list.txt").write_text("\n".join(name_of(patient) for patient in range(1, 30)))
    plan = [
        ("table", "v2020.csv", 300),
        ("table", "v2017.csv", 300),
        ("table", "v2017.csv.gz", 100),
        ("boxes", "boxes.csv", 150),
        ("list", "list.txt", 150),
    ]
    child = subprocess.run(
        [sys.executable, "-c", FUZZ, str(tmp_path), json.dumps(plan)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    counts = json.loads(child.stdout)
    assert sum(counts.values()) == 1000
    assert min(counts.get(f"{kind} {end}", 0) for kind in ("table", "boxes", "list") for end in ("read", "refused")) > 0


# The stratified split -------------------------------------------------------------------------------------------------


def test_stratified_split_keeps_patients_together_and_labels_balanced(tmp_path):
    data = prepared(write_nih(tmp_path / "root", plain_rows(200, 1)), tmp_path, split_by="stratified", val_fraction=0.2)
    groups = {split: patients_of(data, split) for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in groups.items()} == {"train": 120, "val": 40, "test": 40}
    assert len(set.union(*groups.values())) == 200
    for split, rows in data._rows.items():
        shares = dict(zip(FINDINGS, data._labels[rows].mean(axis=0), strict=True))
        assert shares["Hernia"] == pytest.approx(0.25, abs=0.03), split
        assert shares["Effusion"] == pytest.approx(0.5, abs=0.03), split


def test_second_start_does_not_stratify_again(tmp_path, monkeypatch):
    root = write_nih(tmp_path / "root")
    first = prepared(root, tmp_path, split_by="stratified")
    monkeypatch.setitem(sys.modules, "iterstrat.ml_stratifiers", None)  # importing it raises
    second = prepared(root, tmp_path, split_by="stratified")
    assert first.fingerprint("val") == second.fingerprint("val")
    with pytest.raises(ImportError):
        prepared(root, tmp_path, split_by="stratified", val_fraction=0.3)


def test_too_few_patients_for_a_stratified_split_are_named(tmp_path):
    root = write_nih(tmp_path / "root", plain_rows(1, 4))
    with pytest.raises(DataError, match=r"1 groups \(patients\) are too few .*change data.test_fraction"):
        prepared(root, tmp_path, split_by="stratified")
    data = prepared(root, tmp_path, split_by="stratified", val_fraction=0.0, test_fraction=0.0)
    assert data.size("train") == 4


# The real samples -----------------------------------------------------------------------------------------------------


def real(tmp_path, **arguments):
    return nih(REAL, tmp_path, **{"min_present": 0.0, "size": 64, **arguments})


@pytest.fixture(scope="module")
def real_tables():
    return {release: read_table(REAL / f"{name}.gz") for release, name in ((2017, V2017), (2020, V2020))}


def raw_rows(name):
    with gzip.open(REAL / f"{name}.gz", "rt") as file:
        return list(csv.reader(file))[1:]


@needs_samples
def test_real_quirk_1_three_rgba_files_are_read(tmp_path):
    data = real(tmp_path)
    modes = {record.name: Image.open(record.path).mode for record in data.records()}
    assert Counter(modes.values()) == {"L": 29, "RGBA": 3}
    for record in data.records():
        if modes[record.name] == "RGBA":
            values = data.read(record)
            assert values.shape == (1, 1024, 1024) and values.max() <= 255


@needs_samples
@pytest.mark.parametrize("release, name", [(2017, V2017), (2020, V2020)])
def test_real_quirks_2_3_5_every_row_is_read(real_tables, release, name):
    entries, rows = real_tables[release], raw_rows(name)
    assert len(entries) == len(rows) == 112_120
    counts = Counter(label for row in rows for label in row[1].split("|"))
    assert Counter(label for entry in entries.values() for label in entry.labels) == {f: counts[f] for f in FINDINGS}
    assert sum(not entry.labels for entry in entries.values()) == counts["No Finding"] > 60_000
    # The 836 texts of 2020 are 801 sets: 35 are written in two orders.
    assert len({row[1] for row in rows}) == (790 if release == 2017 else 836)
    assert len({entry.labels for entry in entries.values()}) == (790 if release == 2017 else 801)
    assert Counter(entry.view for entry in entries.values()) == {"PA": 67_310, "AP": 44_810}
    assert Counter(entry.sex for entry in entries.values()) == {"M": 63_340, "F": 48_780}
    ages = [entry.age for entry in entries.values()]
    assert ages.count(None) == (16 if release == 2017 else 0)
    assert max(age for age in ages if age is not None) == 95
    assert len({name[:8] for name in entries}) == 30_805


@needs_samples
def test_real_quirk_4_the_releases_name_the_same_images_and_disagree(real_tables):
    old, new = real_tables[2017], real_tables[2020]
    assert old.keys() == new.keys()
    assert sum(old[name].labels != new[name].labels for name in old) == 181


@needs_samples
def test_real_quirk_6_boxes(real_tables):
    boxes = read_boxes(REAL / "BBox_List_2017.csv")
    assert len(boxes) == 880 and sum(map(len, boxes.values())) == 984
    assert boxes.keys() <= real_tables[2020].keys()
    findings = Counter(box.finding for found in boxes.values() for box in found)
    assert findings["Infiltration"] == 123 and findings["Atelectasis"] == 180 and len(findings) == 8


@needs_samples
def test_real_quirk_7_the_official_lists_are_complete_and_patient_disjoint(real_tables):
    train, test = read_list(REAL / "train_val_list.txt"), read_list(REAL / "test_list.txt")
    assert len(train) == 86_524 and len(test) == 25_596
    assert train | test == real_tables[2020].keys()
    assert not {name[:8] for name in train} & {name[:8] for name in test}


@needs_samples
def test_real_quirk_8_32_images_are_refused_by_default_and_allowed_on_request(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(DataError, match="32 of the 112120 images"):
        real(tmp_path, min_present=0.5).records()
    data = prepared(REAL, tmp_path, size=64, min_present=0.0)
    assert {split: data.size(split) for split in ("train", "val", "test")} == {"train": 21, "val": 3, "test": 8}
    assert patients_of(data, "test") == {name[:8] for name in read_list(REAL / "test_list_present.txt")}
    assert "lists 112120 images, 112120 after the filters, 32 of these on disk" in caplog.text


@needs_samples
def test_real_quirk_9_the_512_pixel_copy_is_resized(tmp_path):
    root = write_nih(tmp_path / "root", [(1, 0, "Cardiomegaly", 57, "M", "PA")], images=False)
    (root / "images").mkdir()
    copy = root / "images" / name_of(1)
    copy.write_bytes((REAL / "images_resized_512" / name_of(1)).read_bytes())
    data = nih(root, tmp_path, split_by="stratified")
    (record,) = data.records()
    assert data.read(record).shape == (1, 512, 512)


@needs_samples
@pytest.mark.parametrize("split_by", ["official", "stratified"])
def test_real_training_set(tmp_path, split_by):
    data = prepared(REAL_256, tmp_path, size=64, csv=str(REAL / f"{V2020}.gz"), min_present=0.0, split_by=split_by)
    groups = {split: patients_of(data, split) for split in ("train", "val", "test")}
    assert sum(data.size(split) for split in groups) == 369
    assert len(set.union(*groups.values())) == sum(map(len, groups.values()))
    assert all(data.size(split) > 20 for split in groups)
    images = next(data.images("train", 16))
    assert images.shape == (16, 1, 64, 64) and -1 <= float(images.min()) < float(images.max()) <= 1


@needs_samples
def test_real_stratified_split_of_all_patients_is_balanced(tmp_path, real_tables):
    from datamodules.records.splits import stratified_split

    entries = real_tables[2020]
    groups = [name[:8] for name in entries]
    labels = np.array([[finding in entry.labels for finding in FINDINGS] for entry in entries.values()])
    split = stratified_split(groups, labels, 0.1, 0.2, 0, tmp_path)
    patients = {part: set(np.array(groups)[split == part]) for part in ("train", "val", "test")}
    assert sum(map(len, patients.values())) == 30_805
    assert len(patients["test"]) / 30_805 == pytest.approx(0.2, abs=0.002)
    assert len(patients["val"]) / 30_805 == pytest.approx(0.1, abs=0.002)
    _, patient = np.unique(groups, return_inverse=True)
    mean = np.stack([np.bincount(patient, column) for column in labels.T], axis=1) / np.bincount(patient)[:, None]
    for part in ("train", "val", "test"):
        inside = np.zeros(30_805, dtype=bool)
        inside[patient[split == part]] = True
        assert mean[inside].mean(axis=0) == pytest.approx(mean.mean(axis=0), rel=0.25)
        assert (split == part).mean() == pytest.approx(inside.mean(), abs=0.01)
        assert labels[split == part].mean(axis=0) == pytest.approx(labels.mean(axis=0), abs=0.015)
