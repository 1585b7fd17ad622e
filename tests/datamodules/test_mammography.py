"""Mammograms in their four layouts, and quirks 10 to 18 of the real files."""

import itertools
import logging
import pickle

import numpy as np
import pytest
import torch
from conftest import SHARED
from dicom_files import code, write_mammogram
from PIL import Image

from datamodules.base import ImageDataModule
from datamodules.batches.augmentation import Augmentation
from datamodules.batches.breast import fuller_half, isolate_breast, pad_to_aspect, seen_side
from datamodules.batches.samplers import BatchRequest
from datamodules.files.errors import DataError, UnreadableImageError
from datamodules.mammography import Mammography, read_picture
from datamodules.records import mammography_layouts
from datamodules.records.mammography_layouts import read_cbis_csv, read_rows
from experiments.configuration import files as config_files
from experiments.configuration import objects
from experiments.configuration.errors import ConfigError
from lightning_modules.schedules import ConstantSchedule

SMALL = ConstantSchedule((160, 128), 4, 8)
SAMPLES = SHARED / "mammography"
SHAPES = ("IDENTITY", "INVERSE", None)
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real samples (../shared/data) are not here")


def breast_side(values, told=None):
    return seen_side(values) or told or fuller_half(values)


def breast(side="left", height=100, width=60, number=0, white=4095):
    """Return a half disc at one border (H, W) uint16 on background 0; the number makes each image unique."""
    y, x = np.mgrid[:height, :width]
    inside = ((y - height / 2) / (0.4 * height)) ** 2 + (x / (0.7 * width)) ** 2 < 1
    image = np.where(inside, white * (0.4 + 0.3 * np.sin(x / 5 + number) ** 2), 0).astype(np.uint16)
    image[height // 2, 1] = white - number
    return image if side == "left" else image[:, ::-1].copy()


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def data(root, tmp_path, layout="folder", schedule=SMALL, **arguments):
    module = Mammography(schedule, 0, str(tmp_path / "cache"), str(root), layout, **arguments)
    module.check()
    return module


def prepared(root, tmp_path, layout="folder", **arguments):
    module = data(root, tmp_path, layout, **{"val_fraction": 0.2, "test_fraction": 0.2, **arguments})
    module.prepare_data()
    module.setup()
    return module


def of(records, part):
    return next(record for record in records if part in record.name)


# The whole way, in all layouts ------------------------------------------------------------------------------------

KINDS = (
    {"syntax": "jpeg2000", "bits": 12},
    {"syntax": "explicit", "bits": 12, "photometric": "MONOCHROME1"},
    {"syntax": "implicit", "bits": 16, "WindowCenter": 2048, "WindowWidth": 4096},
    {"syntax": "big_endian", "bits": 12, "RescaleSlope": 2, "RescaleIntercept": -7},
)


def write_layout(root, layout):
    """Write 10 patients with two views of each breast."""
    for patient in range(10):
        for number, (side, view) in enumerate((("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO"))):
            kind = dict(KINDS[number])
            stored = breast("left" if side == "L" else "right", number=10 * patient + number)
            if kind.get("photometric") == "MONOCHROME1":
                stored = 4095 - stored
            long = {"L": "LEFT", "R": "RIGHT"}[side]
            if layout == "cbis_ddsm":
                case = f"Mass-Training_P_{patient:05d}_{long}_{view}"
                kind |= {"PatientOrientation": view, "Laterality": side, "SeriesDescription": "full mammogram images"}
                path, name = root / "CBIS-DDSM" / case / "study" / "1-full mammogram images-1" / "1-1.dcm", case
            elif layout == "inbreast":
                short = {"CC": "CC", "MLO": "ML"}[view]
                path = root / f"{20586908 + 4 * patient + number}_{patient:016x}_MG_{side}_{short}_ANON.dcm"
                name = "removed"
            elif layout == "vindr":
                path, name = root / "images" / f"study{patient}" / f"image{patient}{number}.dicom", ""
            else:
                path, name = root / f"{patient}_{number}.dcm", f"patient {patient}"
                kind |= {"ViewPosition": view, "ImageLaterality": side}
            write_mammogram(path, stored, patient=name, **kind)
    if layout == "vindr":
        lines = [
            f"study{p},series,image{p}{i},{'LLRR'[i]},{('CC', 'MLO')[i % 2]},100,60,BI-RADS 1,DENSITY B,training"
            for p in range(10)
            for i in range(4)
        ]
        header = "study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,breast_density,split"
        (root / "breast-level_annotations.csv").write_text("\n".join([header, *lines]))
    return root


@pytest.mark.parametrize("layout", ["cbis_ddsm", "inbreast", "vindr", "folder"])
def test_whole_way_from_dicom_files_to_batches(tmp_path, layout):
    module = prepared(write_layout(tmp_path / "root", layout), tmp_path, layout)
    records = module.records()
    assert len(records) == 40 and len({record.group for record in records}) == 10
    counts = {name: sum(name in record.labels for record in records) for name in module.classes}
    assert counts == {"LEFT": 20, "RIGHT": 20, "CC": 20, "MLO": 20}
    assert [module.size(split) for split in ("train", "val", "test")] == [24, 8, 8]
    images = torch.cat(list(module.images("train", 8)))
    assert images.shape == (24, 1, 160, 128) and images.min() == -1 and 0.5 < images.max() <= 1
    background = torch.stack([images[:, 0, :5, :].amax(dim=(1, 2)), images[:, 0, -5:, :].amax(dim=(1, 2))])
    assert (background == -1).all()  # of every photometric interpretation, window and depth
    batch = module.train_images()[BatchRequest(0, np.arange(2), np.array([0, 1]), (160, 128))]
    assert batch["label"].sum(dim=1).tolist() == [2.0, 2.0]


def test_all_kinds_of_files_show_the_same_picture(tmp_path):
    records = data(root := write_layout(tmp_path / "root", "folder"), tmp_path).records()
    module = data(root, tmp_path, flip_to="left")
    # The first differs by its texture only; the window of the third and the rescale of the fourth show 0 as black.
    for record in records[:4]:
        values = module.read(record)[0]
        assert values[50, 1] == pytest.approx(1 if "2.dcm" in record.name else values.max(), abs=0.01)
        assert values[:10].max() < (0.07 if "2.dcm" in record.name else 1e-3)


# Pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(2023, 801), (1444, 1444), (640, 1280), (1280, 1024), (5, 3), (1, 1)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_keeps_aspect_breast_and_chest_wall(height, width, side):
    values = np.random.default_rng(0).random((height, width), np.float32) + 0.1
    padded = pad_to_aspect(values, side, 1280, 1024)
    assert abs(padded.shape[1] - padded.shape[0] * 1024 / 1280) < 1
    above = (padded.shape[0] - height) // 2
    start = 0 if side == "left" else padded.shape[1] - width
    np.testing.assert_array_equal(padded[above : above + height, start : start + width], values)
    assert np.count_nonzero(padded) == height * width  # the rest is background 0
    assert padded.dtype == np.float32


@pytest.mark.parametrize("flip_to", [None, "left", "right"])
def test_flip_brings_all_breasts_to_one_border(tmp_path, flip_to):
    for number, side in enumerate(("left", "right")):
        write_mammogram(tmp_path / "root" / f"{side}.dcm", breast(side, number=number), bits=12, Laterality="L")
    module = data(tmp_path / "root", tmp_path, flip_to=flip_to)
    for record in module.records():
        values = module.read(record)[0]
        expected = flip_to or record.name.removesuffix(".dcm")
        assert breast_side(values) == expected
        chest = values[:, 0] if expected == "left" else values[:, -1]
        assert chest.max() > 0.2 and record.labels == ("LEFT",)  # the label is the patient's side


# Where the breast lies ---------------------------------------------------------------------------------------------


def half_ellipse(width=60, reach=0.95, start=0, dim=0.25, bright=0.9):
    """Return a breast (100, width) at the left border, its far half the brighter one."""
    y, x = np.mgrid[:100, :width] + 0.5
    inside = ((y - 50) / 45) ** 2 + (np.maximum(x - start, 0) / (reach * width - start)) ** 2 < 1
    gland = x - start > (reach * width - start) / 2
    return np.where(inside & (x >= start), np.where(gland, bright, dim), 0.0).astype(np.float32)


def with_label(values):
    values[5:15, -8:] = 1.0
    return values


def with_strip(values, columns, width=2):
    values[:, columns : columns + width or None] = 1.0
    return values


CROPPED = {
    "far half brighter": half_ellipse(),
    "touches the other border, too": half_ellipse(reach=1.0),
    "wide, on faint noise": np.maximum(half_ellipse(200), np.random.default_rng(0).uniform(0, 0.01, (100, 200))),
    "fat of one value fills more of it than the background": half_ellipse(reach=1.3, dim=0.2),
    "dark line at the chest wall": half_ellipse(200, start=4),
    "label at the other border": with_label(half_ellipse(reach=0.8)),
    "scanner strip at the other border": with_strip(half_ellipse(reach=0.8), -2),
    "scanner strip at the chest wall": with_strip(half_ellipse(200, reach=0.8), 0),
    "away from both borders": half_ellipse(reach=0.8, start=10),
    "large": np.repeat(np.repeat(half_ellipse(), 12, 0), 12, 1),
}


@pytest.mark.parametrize("name", CROPPED)
def test_breast_lies_where_more_of_it_is_not_where_it_is_brighter(name):
    values = CROPPED[name].astype(np.float32)
    mirrored = values[:, ::-1].copy()
    assert (breast_side(values), breast_side(mirrored)) == ("left", "right")
    seen = name != "away from both borders"
    assert (seen_side(values), seen_side(mirrored)) == (("left", "right") if seen else (None, None))
    clean = isolate_breast(values)
    chest = 10 if not seen else 5
    assert (clean[25:75, chest : chest + 8] == values[25:75, chest : chest + 8]).all()


def test_what_is_told_decides_where_the_borders_do_not_show_it():
    y, x = np.mgrid[:100, :80] + 0.5
    alone = (((y - 50) / 40) ** 2 + ((x - 40) / 30) ** 2 < 1).astype(np.float32) * 0.5  # touches no border
    for values in (alone, np.full((100, 80), 0.6, np.float32), np.zeros((100, 80), np.float32)):
        assert seen_side(values) is None
        assert [breast_side(values, told) for told in ("left", "right", None)] == ["left", "right", "left"]
    assert breast_side(half_ellipse(), "right") == "left"  # a table's side is the patient's, not the image's


def sided(tmp_path, *images, **arguments):
    """Return a module of PNG files, each of a picture and a side in the CSV; "" = the CSV says none."""
    lines = ["file,patient,view,side"]
    for number, (values, side) in enumerate(images):
        stored = np.rint(values * 255).astype(np.uint8)
        stored[50, 20] = number + 1  # no two files are equal
        save(tmp_path / "root" / f"image{number}.png", stored)
        lines.append(f"image{number}.png,patient{number},CC,{side}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    module = data(tmp_path / "root", tmp_path, csv=str(tmp_path / "list.csv"), val_fraction=0, test_fraction=0)
    for name, value in arguments.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize("flip_to", [None, "left", "right"])
def test_no_band_of_background_at_the_chest_wall_and_flips_to_the_right_border(tmp_path, flip_to):
    left = half_ellipse()
    images = [(left, "L"), (left[:, ::-1], "R"), (left, ""), (left[:, ::-1], "")]
    module = sided(tmp_path, *images, flip_to=flip_to)
    for record, (_, side) in zip(module.records(), images, strict=True):
        assert record.told.get("side") == {"L": "left", "R": "right", "": None}[side]
    module.prepare_data()
    module.setup()
    for number, image in enumerate(module.images("train", 1)):
        border = {"left": 0, "right": -1}[flip_to or ("left", "right")[number % 2]]
        assert (image[0, 0, 30:130, border] > -1).all() and (image[0, 0, :, -1 - border] == -1).all()


def whole_ellipse():
    y, x = np.mgrid[:100, :60] + 0.5
    return (((y - 50) / 40) ** 2 + ((x - 30) / 22) ** 2 < 1) * np.float32(0.5)


def test_sides_that_the_pixels_contradict_or_do_not_show_are_said_once(tmp_path, caplog):
    left, right = half_ellipse(), half_ellipse()[:, ::-1]
    module = sided(tmp_path, (left, "L"), (right, "R"), (right, "L"), (left, ""), (whole_ellipse(), "R"))
    module.prepare_data()
    module.setup()
    said = [text for text in caplog.messages if "side" in text]
    assert len(said) == 2
    assert "lies at the other border in 1 images and at the border of that name in 2, e.g. image2.png" in said[0]
    assert "in 1 images the borders do not show where the breast lies, e.g. image4.png" in said[1]
    labels = [record.labels[0] for record in module.records()]
    assert labels == ["LEFT", "RIGHT", "LEFT", "CC", "RIGHT"]  # the patient's side stays what the table says
    padded = [module.read(record)[0] for record in module.records()]
    assert [bool(values[55, 0] > 0) for values in padded] == [True, False, False, True, False]
    ellipse = np.flatnonzero(padded[4].any(axis=0))
    assert ellipse[0] - (padded[4].shape[1] - 60) == 8  # padded at the left


def test_of_a_mirrored_data_set_the_few_that_are_not_are_named(tmp_path, caplog):
    right = half_ellipse()[:, ::-1]
    module = sided(tmp_path, (right, "L"), (right, "L"), (half_ellipse(), "L"))
    module.prepare_data()
    assert "other border in 2 images and at the border of that name in 1, e.g. image2.png" in caplog.text


def test_another_side_in_the_table_is_another_cache(tmp_path):
    def prints(side):
        module = sided(tmp_path, (whole_ellipse(), side), (half_ellipse(), "L"))
        module.prepare_data()
        module.setup()
        assert module.facts()["reading"][0].startswith(
            "mammography_folder 2: the breast's side is seen along the borders"
        )
        return module.fingerprint("train"), torch.cat(list(module.images("train", 2)))

    (left, at_left), (right, at_right) = prints("L"), prints("R")
    assert left != right and not torch.equal(at_left[0], at_right[0]) and torch.equal(at_left[1], at_right[1])


def test_images_that_do_not_depend_on_the_side_keep_caches_and_runs_of_before(tmp_path):
    """Those that are not padded beside, mirrored or cut out; the others' caches end with what has changed."""
    root = write_layout(tmp_path / "root", "folder")
    height, width = breast().shape
    exact, wider = ConstantSchedule((height, width), 2, 8), ConstantSchedule((height, 2 * width), 2, 8)
    plain = prepared(root, tmp_path, schedule=exact)
    assert plain.facts()["reading"] == [] and not any(image.record.told for image in plain._scanned())
    for schedule, change in ((wider, {}), (exact, {"flip_to": "left"}), (exact, {"isolate_breast": True})):
        module = prepared(root, tmp_path, schedule=schedule, **change)
        assert module.facts()["reading"][0].startswith("mammography_folder 2: the breast's side is seen")
        assert {image.record.told["side"] for image in module._scanned()} == {"left", "right"}
    endings = {path.name.partition("-mammography")[1] for path in (tmp_path / "cache" / "images").glob("*-*[0-9a-f]")}
    assert endings == {"", "-mammography"}


@pytest.mark.parametrize(
    ("orientation", "side", "told"),
    [
        (["A", "R"], "R", "left"),  # the file's own orientation comes before what its side is called
        (["A", "FL"], "L", "left"),
        (["P", "FL"], "L", "right"),
        (["PR", "F"], "", "right"),
        (["L", "F"], "R", "right"),
        ("CC", "L", "left"),
        ("", "", ""),
        (["A", "P", "F"], "", ""),
    ],
)
def test_file_tells_the_chest_wall_by_its_orientation_else_by_its_side(tmp_path, orientation, side, told):
    stored = (whole_ellipse() * 4095).astype(np.uint16)
    path = tmp_path / "root" / "a.dcm"
    write_mammogram(path, stored, bits=12, PatientOrientation=orientation, ImageLaterality=side)
    module = data(path.parent, tmp_path, flip_to="left")
    (record,) = module.records()
    assert (record.told["side"] or "") == told
    module.flip_to = None
    columns = np.flatnonzero(module.read(record)[0].any(axis=0))
    assert columns[0] == (8 if told != "right" else 8 + 80 - 60)


def test_isolated_breast_loses_strip_and_label_but_no_tissue():
    values = breast("right", 400, 300).astype(np.float32) / 4095
    dirty = values.copy()
    dirty[20:40, 20:60] = 1  # a label
    dirty[:, :4] = 1  # scanner strips, one beside the breast
    dirty[:, -6:] = 1
    clean = isolate_breast(dirty)
    assert clean[:100, :100].max() == 0 and clean[:, :10].max() == 0 and clean[:, -6:].max() == 0
    np.testing.assert_array_equal(clean[:, 90:-10], values[:, 90:-10])


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_isolation_survives_empty_pictures(value):
    values = np.full((40, 30), value, np.float32)
    assert isolate_breast(values).shape == (40, 30)
    assert isolate_breast(values[:1, :1]).shape == (1, 1)


def test_isolation_keeps_a_picture_without_background():
    values = np.random.default_rng(0).uniform(0.4, 0.8, (300, 200)).astype(np.float32)
    np.testing.assert_array_equal(isolate_breast(values), values)


def test_random_flips_exchange_the_sides_in_the_labels_and_keep_the_views(tmp_path):
    root = write_layout(tmp_path / "root", "folder")
    request = BatchRequest(0, np.arange(24), np.arange(24), (160, 128))
    plain = prepared(root, tmp_path).train_images()[request]
    flipped = prepared(root, tmp_path, augmentation=Augmentation(flip_lr=1.0)).train_images()[request]
    assert torch.equal(flipped["image"], plain["image"].flip(-1))
    assert flipped["id"] == plain["id"]
    left, right, cc, mlo = plain["label"].T
    assert torch.equal(flipped["label"], torch.stack([right, left, cc, mlo], dim=1))
    assert 0 < left.sum() < 24 and 0 < cc.sum() < 24


# Sides, views, reasons --------------------------------------------------------------------------------------------


def one_file(tmp_path, name="a.dcm", **tags):
    write_mammogram(tmp_path / "root" / name, breast(), bits=12, **tags)
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("name", "tags", "labels"),
    [
        ("a.dcm", {"ViewPosition": "MLO", "ImageLaterality": "R"}, ("RIGHT", "MLO")),
        ("a.dcm", {"PatientOrientation": "CC", "Laterality": "L"}, ("LEFT", "CC")),
        ("a.dcm", {"PatientOrientation": ["A", "FR"], "Laterality": "L"}, ("LEFT",)),
        ("a.dcm", {"ViewCodeSequence": code("R-10226", "medio-lateral oblique")}, ("MLO",)),
        ("a.dcm", {"ViewCodeSequence": code("399162004", "cranio-caudal")}, ("CC",)),
        ("x_L_CC.dcm", {}, ("LEFT", "CC")),
        ("x_RMLO.dcm", {}, ("RIGHT", "MLO")),
        ("x_L_CC.dcm", {"ViewPosition": "MLO"}, ("LEFT", "MLO")),  # the tag wins
        ("x_L_CC.dcm", {"ViewPosition": "XCCL"}, ("LEFT",)),  # neither CC nor MLO
        ("a.dcm", {}, ()),
    ],
)
def test_view_and_side(tmp_path, name, tags, labels):
    (record,) = data(one_file(tmp_path, name, **tags), tmp_path).records()
    assert record.labels == labels and record.group == "P1"


def test_tag_that_contradicts_the_name_is_counted(tmp_path, caplog):
    data(one_file(tmp_path, "x_L_CC.dcm", ViewPosition="MLO", ImageLaterality="R"), tmp_path).records()
    assert "1 files: view contradicts its name" in caplog.text and "1 files: side contradicts its name" in caplog.text


@pytest.mark.parametrize(
    ("reason", "tags"),
    [
        ("implant", {"BreastImplantPresent": "YES"}),
        ("magnification", {"EstimatedRadiographicMagnificationFactor": "1.8"}),
        ("magnification", {"PartialView": "YES"}),
        ("magnification", {"ViewModifierCodeSequence": code("R-102D6", "Magnification")}),
        (
            "magnification",
            {"ViewCodeSequence": code("R-10242", "x", ViewModifierCodeSequence=code("399163009", "Magnification"))},
        ),
        ("clips", {"ImageComments": "two surgical Clips"}),
        (None, {"BreastImplantPresent": "NO", "EstimatedRadiographicMagnificationFactor": "1.07"}),
        (None, {"ImageComments": "no clips", "PartialView": "NO"}),
        (None, {"ImageComments": "eclipse"}),
    ],
)
def test_exclusion_by_tags_is_applied_if_asked_for_and_counted(tmp_path, caplog, reason, tags):
    caplog.set_level(logging.INFO)
    root = one_file(tmp_path, **tags)
    write_mammogram(root / "b.dcm", breast(number=1), bits=12)
    assert len(data(root, tmp_path).records()) == 2
    kept = data(root, tmp_path, exclude=("implant", "magnification", "clips")).records()
    assert [record.name for record in kept] == (["b.dcm"] if reason else ["a.dcm", "b.dcm"])
    assert (f"left out 1 images: {reason}" in caplog.text) == (reason is not None)


def test_raw_images_are_left_out_and_counted_unless_they_are_wanted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = tmp_path / "root"
    for number, intent in enumerate(("FOR PROCESSING", "FOR PRESENTATION")):
        write_mammogram(root / f"{number}.dcm", breast(number=number), bits=12, PresentationIntentType=intent)
    assert [record.name for record in data(root, tmp_path).records()] == ["1.dcm"]
    assert "left out 1 images: for_processing" in caplog.text
    assert len(data(root, tmp_path, exclude=()).records()) == 2
    node = config_files.load("progressive_mammography_1280x1024_mlo")["data"]
    assert "for_processing" in node["exclude"]


@pytest.mark.parametrize("exclude", [("for_processing",), (), ("multi_frame",)])
def test_several_frames_in_a_file_stop_no_run_and_are_counted(tmp_path, caplog, exclude):
    caplog.set_level(logging.INFO)
    root = write_layout(tmp_path / "root", "folder")
    frames = np.stack([breast(number=90 + i) for i in range(3)]).reshape(-1, 60)
    write_mammogram(root / "3d.dcm", frames, bits=12, patient="patient 3", NumberOfFrames=3, Rows=100)
    module = prepared(root, tmp_path, exclude=exclude)
    assert [module.size(split) for split in ("train", "val", "test")] == [24, 8, 8]
    assert "left out 1 images: multi_frame" in caplog.text


def test_contradicting_polarity_is_said_once_and_photometric_interpretation_is_followed(tmp_path, caplog):
    root = tmp_path / "root"
    for number, (photometric, shape) in enumerate(itertools.product(("MONOCHROME1", "MONOCHROME2"), SHAPES)):
        tags = {"PresentationLUTShape": shape} if shape else {}
        write_mammogram(root / f"{number}.dcm", breast(number=number), bits=12, photometric=photometric, **tags)
    module = data(root, tmp_path)
    records = module.records()
    said = [record.getMessage() for record in caplog.records if "PresentationLUTShape" in record.getMessage()]
    assert len(said) == 1 and "2 files: PresentationLUTShape contradicts PhotometricInterpretation" in said[0]
    assert said[0].endswith("e.g. 0.dcm") and "which is followed" in said[0]
    corners = [module.read(record)[0, 50, -1] for record in records]  # background, stored as 0
    assert corners == [1, 1, 1, 0, 0, 0]


def test_declared_range_of_dicom_is_part_of_the_cache_and_of_the_pixels(tmp_path):
    root = write_layout(tmp_path / "root", "folder")
    plain = prepared(root, tmp_path)
    ranged = prepared(root, tmp_path, value_range=(0, 8190))
    for one in (plain, ranged):
        (record,) = (record for record in one.records() if record.name == "0_2.dcm")
        assert float(one.read(record).max()) == pytest.approx(1.0 if one is plain else 0.5, abs=0.01)
    assert plain.fingerprint("train") != ranged.fingerprint("train")
    assert plain.facts()["intensity"]["meaning"].startswith("MONOCHROME2 after the file's default window")
    assert ranged.facts()["intensity"]["meaning"].startswith("values from 0 (0 = black) to 8190 (1 = white), of DICOM")
    assert len([path for path in (tmp_path / "cache" / "images").iterdir() if path.is_dir()]) == 2
    assert plain.read_settings() == {**ranged.read_settings(), "value_range": None}


def test_percentiles_of_a_series_bring_flat_scans_to_the_whole_range(tmp_path, caplog):
    root = tmp_path / "root"
    stored = [30_000 + breast(number=i).astype(np.int32) // 64 for i in range(10)]  # a hair's breadth of 16 bits
    for number, values in enumerate(stored):
        uid = f"1.2.{number // 5}"
        write_mammogram(root / f"{number}.dcm", values.astype(np.uint16), patient=f"p{number}", SeriesInstanceUID=uid)
    prepared(root, tmp_path)
    (said,) = [record.getMessage() for record in caplog.records if "under 5 %" in record.getMessage()]
    assert "all 10 images together fill under 5 % of the range 0 .. 1 display grey: they lie in 0.457" in said
    assert "data.percentile_range" in said
    caplog.clear()
    module = prepared(root, tmp_path, percentile_range=(0, 100))
    images = torch.cat([image for split in ("train", "val", "test") for image in module.images(split, 4)])
    assert images.min() == -1 and images.max() > 0.8 and "under 5 %" not in caplog.text
    low, high = min(map(np.min, stored[:5])), max(map(np.max, stored[:5]))
    np.testing.assert_allclose(
        module.read(of(module.records(), "3.dcm"))[0, :, :60], (stored[3] - low) / (high - low), atol=1e-6
    )
    again = prepared(root, tmp_path, percentile_range=(0, 100))
    assert again.facts() == module.facts()


def test_images_that_are_flat_or_constant_are_counted_with_an_example(tmp_path, caplog):
    root = write_layout(tmp_path / "root", "folder")
    for name, values in (("flat", 2000 + breast() // 100), ("constant", np.full((100, 60), 819, np.uint16))):
        write_mammogram(root / f"{name}.dcm", values.astype(np.uint16), bits=12, patient=name)
    for _ in range(2):  # a second start says it from the cache
        caplog.clear()
        prepared(root, tmp_path)
        said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        first, second = (text for text in said if "of the range" in text or "are constant" in text)
        assert "2 images fill under 5 % of the range 0 .. 1 display grey: e.g. constant.dcm lies in 0.2 .. 0.2" in first
        assert second == "Mammography: 1 images are constant: constant.dcm"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"percentile_range": (1, 1)}, "must rise"),
        ({"percentile_range": (-1, 99)}, "must rise"),
        ({"percentile_range": (0, 101)}, "must rise"),
        ({"percentile_range": (1, 99), "value_range": (0, 1)}, "give one of them"),
    ],
)
def test_senseless_ranges_are_refused(tmp_path, arguments, problem):
    with pytest.raises(ValueError, match=problem):
        data(write_layout(tmp_path / "root", "folder"), tmp_path, **arguments)


def test_percentiles_of_pictures_are_refused_not_passed_over(tmp_path):
    root = pictures(tmp_path, "1_L_CC.png", "2_R_CC.png")
    with pytest.raises(DataError, match=r"data.percentile_range=\[1, 99\]: holds for DICOM files, and there is none"):
        data(root, tmp_path, percentile_range=(1, 99)).records()


def test_exclude_csv_lists_files_or_image_ids(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = write_layout(tmp_path / "root", "folder")
    (tmp_path / "out.csv").write_text("image_id\n0_0\n0_1.dcm\n")
    assert len(data(root, tmp_path, exclude_csv=str(tmp_path / "out.csv")).records()) == 38
    assert "left out 2 images: listed in data.exclude_csv" in caplog.text
    (tmp_path / "out.csv").write_text("name\n0_0\n")
    with pytest.raises(DataError, match=r"out.csv: has no column file or image_id; it has \['name'\]"):
        data(root, tmp_path, exclude_csv=str(tmp_path / "out.csv")).records()


def test_view_is_chosen_and_unknown_views_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = write_layout(tmp_path / "root", "folder")
    write_mammogram(root / "unknown.dcm", breast(number=77), bits=12)
    assert len(data(root, tmp_path, view="CC").records()) == 20
    assert "left out 1 images: the view is not known" in caplog.text
    assert "left out 20 images: the view is not CC" in caplog.text
    assert len(data(root, tmp_path).records()) == 41


# Folders with a CSV -----------------------------------------------------------------------------------------------


def pictures(tmp_path, *names):
    for number, name in enumerate(names):
        save(tmp_path / "root" / name, (breast(number=number) // 16).astype(np.uint8))
    return tmp_path / "root"


def with_csv(tmp_path, text, *names, **arguments):
    root = pictures(tmp_path, *names)
    (tmp_path / "list.csv").write_text(text)
    return data(root, tmp_path, csv=str(tmp_path / "list.csv"), **arguments)


@pytest.mark.parametrize("separator", [",", ";"])
def test_csv_gives_patient_view_side_and_reason(tmp_path, separator):
    text = "file,patient,view,side,exclude\nx/IM1.png,A , cc ,L,\nIM2.png,B,MLO,RIGHT,clips implant\n"
    module = with_csv(tmp_path, text.replace(",", separator), "x/IM1.png", "IM2.png", "IM3.png")
    first, second = sorted(module.records(), key=lambda record: record.group)
    assert (first.name, first.group, first.labels) == ("x/IM1.png", "A", ("LEFT", "CC"))
    assert (second.group, second.labels) == ("B", ("RIGHT", "MLO"))
    module.exclude = ("clips",)
    assert len(module.records()) == 1


def test_patient_of_two_spellings_is_one_group(tmp_path, caplog):
    lines = ["file,patient"]
    for patient in range(1, 9):
        for spelling in (f"{patient:05d}", f"{patient}", f"{patient}.0"):
            lines.append(f"IM{len(lines)}.png,{spelling}")
    lines += ["IM1.png,1"]  # a file may be listed again, under the other spelling
    module = with_csv(tmp_path, "\n".join(lines), *(f"IM{i}.png" for i in range(1, 25)))
    assert sorted({record.group for record in module.records()}) == [f"{patient:05d}" for patient in range(1, 9)]
    assert "8 patients are spelled in several ways" in caplog.text


def test_tag_joins_two_names_of_a_patient_in_the_table(tmp_path, caplog):
    lines = ["file,patient"]
    for i, (tag, name) in enumerate((("0012", "Ada"), ("12", "Ada L."), ("13", "Bo"), ("13", "Bo"))):
        write_mammogram(tmp_path / "root" / f"{i}.dcm", breast(number=i), bits=12, patient=tag)
        lines.append(f"{i}.dcm,{name}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    module = data(tmp_path / "root", tmp_path, csv=str(tmp_path / "list.csv"))
    assert [record.group for record in module.records()] == ["Ada", "Ada", "Bo", "Bo"]
    assert "1 patients are spelled in several ways" in caplog.text and "0012" not in caplog.text


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("file,view\nIM1.png,CC\n", r"list.csv: has no column patient; it has \['file', 'view'\]"),
        ("name\nIM1.png\n", "has no column file and no column patient"),
        ("file,patient\n", "holds no row"),
        ("", "has no column file"),
        ("file,patient\nIM1.png,\n", "has no file or no patient"),
        ("file,patient,exclude\nIM1.png,A,blurred\n", "exclude='blurred' of 'IM1.png' must be of implant"),
        ("file,patient\nIM1.png,A\nIM1.png,B\n", "listed with two patients"),
        ('file,patient\n"IM1.png,A\n', "is not a readable CSV file"),
        ("file,patient\nIM1.png,A\nIM9.png,A\n", r"1 of 2 listed images are not on disk.*IM9.png.*missing_ok=0.5"),
    ],
)
def test_wrong_csv_is_refused(tmp_path, text, match):
    with pytest.raises(DataError, match=match):
        with_csv(tmp_path, text, "IM1.png").records()


def test_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pictures(tmp_path, "IM1.png", "IM2.png")
    (tmp_path / "list.csv").write_text("file,patient\nIM1.png,A\nIM2.png,B\n")
    (tmp_path / "out.csv").write_text("file\nIM2.png\n")
    module = data("~/root", tmp_path, csv="~/list.csv", exclude_csv="~/out.csv")
    assert [record.path for record in module.records()] == [tmp_path / "root" / "IM1.png"]


def test_missing_files_are_counted_up_to_the_limit(tmp_path, caplog):
    text = "file,patient\nIM1.png,A\nIM9.png,A\n"
    assert len(with_csv(tmp_path, text, "IM1.png", missing_ok=0.5).records()) == 1
    assert "1 of 2 listed images are not on disk" in caplog.text


def test_unreadable_files_are_counted_by_the_base_class(tmp_path, caplog):
    root = write_layout(tmp_path / "root", "folder")
    (root / "broken.dcm").write_bytes(b"no image")
    write_mammogram(root / "frames.dcm", breast(number=99), bits=12, NumberOfFrames=1).write_bytes(
        (root / "0_0.dcm").read_bytes()[:-200]
    )
    module = prepared(root, tmp_path, max_unreadable=0.1)
    assert sum(module.size(split) for split in ("train", "val", "test")) == 40
    assert "left out 2 unusable files" in caplog.text and "broken.dcm: its header cannot be read" in caplog.text
    with pytest.raises(DataError, match=r"more than data.max_unreadable=0"):
        prepared(root, tmp_path / "strict")


# Quirks of the real files -----------------------------------------------------------------------------------------


def test_quirk_10_sixteen_bits_are_neither_clipped_nor_wrapped(tmp_path):
    stored = np.array([[0, 255, 256, 4095], [32767, 32768, 65534, 65535]], np.uint16)
    values = read_picture(save(tmp_path / "a.png", stored), (0, 65535))
    np.testing.assert_allclose(values, stored / 65535, atol=1e-7)


def test_quirk_11_depth_is_not_range(tmp_path):
    path = save(tmp_path / "root" / "0_L-CC.png", breast())
    with pytest.raises(
        DataError, match=r"0_L-CC.png: has 16 bits with values 0 .. 4095.*data.value_range=\[0,4095\]"
    ) as caught:
        prepared(path.parent, tmp_path, max_unreadable=0.9)
    assert not isinstance(caught.value, UnreadableImageError)  # a wrong setting is not a damaged file
    assert read_picture(path, (0, 4095)).max() == 1
    with pytest.raises(
        UnreadableImageError, match=r"0_L-CC.png: values 0 .. 4095 lie outside data.value_range=\[0,255\]"
    ):
        read_picture(path, (0, 255))
    dark = save(tmp_path / "dark.png", np.full((4, 4), 9, np.uint16))  # 16 bits although all values fit in 8
    with pytest.raises(DataError, match="has 16 bits"):
        read_picture(dark, None)
    assert read_picture(save(tmp_path / "b.png", np.full((4, 4), 255, np.uint8)), None).max() == 1


@pytest.mark.parametrize("name", ["0_L-CC.png", "1_L_CC.png", "12_R-MLO.png"])
def test_quirk_12_exam_is_the_patient_of_nyu_names(tmp_path, name):
    (record,) = data(pictures(tmp_path, name), tmp_path).records()
    assert record.group == name.split("_")[0]
    assert record.labels == (("RIGHT", "MLO") if "MLO" in name else ("LEFT", "CC"))


def test_quirk_12_names_without_a_patient_need_a_csv(tmp_path):
    with pytest.raises(DataError, match=r"of 1 files the patient is not known, e.g. IM0041.jpg.*data.csv=FILE"):
        data(pictures(tmp_path, "normal_mammograms/left/IM0041.jpg"), tmp_path).records()


def test_quirk_12_hash_is_the_patient_of_inbreast_names(tmp_path):
    records = data(write_layout(tmp_path / "root", "inbreast"), tmp_path, "inbreast").records()
    assert {record.group for record in records} == {f"{patient:016x}" for patient in range(10)}


CBIS = {"PatientOrientation": "MLO", "Laterality": "R"}
CASE = "Mass-Test_P_00016_RIGHT_MLO"


def test_quirk_13_cbis_view_side_and_patient(tmp_path):
    path = tmp_path / "root" / CASE / "s" / "1-full mammogram images-1" / "1-1.dcm"
    write_mammogram(path, breast(), bits=12, patient=CASE, **CBIS)
    (record,) = data(tmp_path / "root", tmp_path, "cbis_ddsm").records()
    assert record.group == "P_00016" and record.labels == ("RIGHT", "MLO")


def test_quirk_14_cbis_crops_masks_and_full_images_are_told_apart_by_header_not_folder(tmp_path):
    root = tmp_path / "root"
    folder = root / f"{CASE}_1" / "s" / "1-ROI mask images-1"
    crop = {"patient": f"{CASE}_1", "SeriesDescription": "cropped images", **CBIS}
    write_mammogram(folder / "1-1.dcm", breast(number=1), **crop)
    write_mammogram(folder / "1-2.dcm", (breast(number=2) > 0).astype(np.uint8) * 255, bits=8, **crop)
    write_mammogram(folder / "1-3.dcm", (breast(number=3) > 0).astype(np.uint16) * 65280, **crop)
    full = root / CASE / "s" / "1-ROI mask images-2" / "1-1.dcm"  # the folder is wrong, the header is right
    write_mammogram(full, breast(), patient=CASE, SeriesDescription="full mammogram images", **CBIS)
    assert [record.name for record in data(root, tmp_path, "cbis_ddsm").records()] == [
        full.relative_to(root).as_posix()
    ]
    (record,) = data(root, tmp_path, "cbis_ddsm", content="crops").records()
    assert record.name.endswith("1-1.dcm") and record.group == "P_00016"


def test_quirk_15_cbis_csv_with_line_ends_in_paths_and_both_spellings(tmp_path):
    header = "patient_id,breast density,image file path,cropped image file path,ROI mask file path,pathology\n"
    row = 'P_1,3,{0}/1/2/000000.dcm,{0}_1/1/2/000000.dcm,"{0}_1/1/2/000001.dcm\n",BENIGN_WITHOUT_CALLBACK\n'
    path = tmp_path / "root" / "mass_case_description_test_set.csv"
    path.parent.mkdir()
    path.write_text(header + row.format(CASE) + row.format("Mass-Test_P_00099_LEFT_CC"))
    rows = read_cbis_csv(path)
    assert rows[0]["ROI_mask_file_path"].endswith("1.dcm") and rows[0]["breast_density"] == "3"
    write_mammogram(path.parent / CASE / "s" / "a b" / "1-1.dcm", breast(), patient=CASE, **CBIS)
    with pytest.raises(DataError, match=r"1 of 2 listed images are not on disk, e.g. Mass-Test_P_00099_LEFT_CC"):
        data(path.parent, tmp_path, "cbis_ddsm").records()
    assert len(data(path.parent, tmp_path, "cbis_ddsm", missing_ok=0.5).records()) == 1


def test_quirk_16_eight_bit_grey_stored_as_rgb_jpeg(tmp_path):
    grey = (breast() // 16).astype(np.uint8)
    Image.fromarray(np.repeat(grey[..., None], 3, axis=-1)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_picture(tmp_path / "a.jpg", None) - grey / 255).max() < 0.1


def test_quirk_17_masks_are_left_out_and_exam_lists_are_never_unpickled(tmp_path, caplog):
    root = pictures(tmp_path, "0_L-CC.png", "0_R-CC_benign.png", "0_L-CC_malignant.png")
    marker = tmp_path / "unpickled"
    payload = f"cos\nmkdir\n(S'{marker}'\ntR.".encode()
    (root / "exam_list.pkl").write_bytes(payload)
    module = prepared(root, tmp_path, val_fraction=0.0, test_fraction=0.0)
    assert module.size("train") == 1 and not marker.exists()
    pickle.loads(payload)
    assert marker.exists()
    assert [record.name for record in data(root, tmp_path).records()] == ["0_L-CC.png"]
    assert "2 files: left out, they are masks of lesions" in caplog.text
    assert "import pickle" not in open(mammography_layouts.__file__).read()


def test_quirk_18_inbreast_csv_with_semicolons_and_padded_blanks(tmp_path, caplog):
    root = write_layout(tmp_path / "root", "inbreast")
    lines = [
        f"removed;removed;{'LLRR'[i % 4]};{('CC', 'MLO')[i % 2]};200801;{20586908 + i}; {i % 4} ;2" for i in range(40)
    ]
    lines[0] = lines[0].replace(";L;", ";R;")
    header = "Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads"
    (root / "INbreast.csv").write_text("\n".join([header, *lines]))
    assert read_rows(root / "INbreast.csv", ("ACR",))[1]["ACR"] == "1"
    records = data(root, tmp_path, "inbreast").records()
    assert len(records) == 40 and of(records, "20586908").labels == ("LEFT", "CC")
    assert caplog.text.count("contradicts") == 1 and "side contradicts the CSV" in caplog.text


@pytest.mark.parametrize("layout", ["cbis_ddsm", "inbreast", "vindr", "folder"])
def test_linked_folders_are_followed(tmp_path, layout):
    plain = data(write_layout(tmp_path / "elsewhere", layout), tmp_path, layout).records()
    (tmp_path / "root").mkdir()
    for path in (tmp_path / "elsewhere").iterdir() if layout == "vindr" else [tmp_path / "elsewhere"]:
        (tmp_path / "root" / path.name).symlink_to(path)
    linked = data(tmp_path / "root", tmp_path, layout).records()
    assert len(linked) == 40 and [record.group for record in linked] == [record.group for record in plain]


@pytest.mark.parametrize(
    ("layout", "name", "text"),
    [
        (
            "cbis_ddsm",
            "mass_case_description_test_set.csv",
            "patient_id,image file path,cropped image file path,ROI mask file path,pathology\nP,Mass-Test_P_9,c,m,M\n",
        ),
        ("inbreast", "INbreast.csv", "File Name;View\n999;CC\n"),
    ],
)
def test_lists_in_linked_folders_are_followed(tmp_path, layout, name, text):
    root = write_layout(tmp_path / "root", layout)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / name).write_text(text)
    (root / "lists").symlink_to(tmp_path / "lists")
    with pytest.raises(DataError, match="1 of 1 listed images are not on disk"):
        data(root, tmp_path, layout).records()


# Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"layout": "ddsm"}, "layout='ddsm': must be one of cbis_ddsm"),
        ({"csv": "a.csv", "layout": "vindr"}, 'only layout="folder" takes one'),
        ({"content": "crops"}, 'only layout="cbis_ddsm" has crops'),
        ({"exclude": ("clip",)}, "must be of implant, magnification, clips"),
        ({"value_range": (4095, 0)}, "black must be below white"),
        ({"missing_ok": 2}, "missing_ok=2"),
        ({"window": -1}, "window=-1"),
        (
            {"flip_to": "left", "augmentation": Augmentation("mammogram")},
            r"flip_to=left: augmentation.flip_lr=0.5 .*set data.augmentation.flip_lr=0",
        ),
    ],
)
def test_wrong_settings_are_refused(tmp_path, arguments, match):
    with pytest.raises(ValueError, match=match):
        data(tmp_path, tmp_path, **arguments)


def test_flips_of_the_preset_are_switched_off_on_the_command_line(tmp_path):
    settings = ["augmentation.preset=mammogram", "flip_to=left", f"root={tmp_path}", f"cache_dir={tmp_path}"]

    def built(*more):
        overrides = [f"data.{setting}" for setting in (*settings, *more)]
        node = config_files.load("progressive_mammography_1280x1024_cc", overrides)["data"]
        return objects.build(node, "data", ImageDataModule, schedule=SMALL, seed=0)

    with pytest.raises(ConfigError, match=r"data\.flip_to=left: "):
        built()
    limits = built("augmentation.flip_lr=0").augmentation.limits
    assert limits.flip_lr == 0 and limits.max_zoom > 0


@pytest.mark.parametrize("layout", ["cbis_ddsm", "inbreast", "vindr", "folder"])
def test_missing_or_empty_root_says_what_is_expected(tmp_path, layout):
    with pytest.raises(DataError, match=r"data.root=.*nowhere: there is no such folder. Expected for data.layout="):
        data(tmp_path / "nowhere", tmp_path, layout)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no such file. Expected"):
        data(tmp_path / "empty", tmp_path, layout)


def test_settings_that_change_pixels_change_the_cache(tmp_path):
    root = write_layout(tmp_path / "root", "folder")
    changes = ({}, {"flip_to": "left"}, {"isolate_breast": True}, {"value_range": (0, 9)}, {"window": 1})
    settings = [str(data(root, tmp_path, **change).read_settings()) for change in changes]
    settings.append(str(data(root, tmp_path, schedule=ConstantSchedule((64, 64), 4, 8)).read_settings()))
    assert len(set(settings)) == len(changes) + 1


# Real samples -----------------------------------------------------------------------------------------------------


def real_pictures():
    names = {"nyu_gmic/images/*.png": (0, 4095), "cbis_ddsm/png8/*/*.png": None, "cdd_cesm_cc/*/*/*.jpg": None}
    return [(path, limits) for pattern, limits in names.items() for path in sorted(SAMPLES.glob(pattern))]


@needs_samples
def test_real_breasts_are_seen_at_their_chest_wall():
    """As seen by eye: both of CBIS-DDSM, a left and a right breast, at the right border; the others where they say."""
    sides = {path: seen_side(read_picture(path, limits)) for path, limits in real_pictures()}
    right = {path for path in sides if "cbis" in path.parts[-4] or "R-" in path.name or path.parent.name == "right"}
    assert len(sides) == 20 and len(right) == 11
    assert {path for path, side in sides.items() if side == "right"} == right and None not in sides.values()


@needs_samples
def test_real_cbis_crops(tmp_path):
    module = prepared(
        SAMPLES / "cbis_ddsm", tmp_path, "cbis_ddsm", content="crops", missing_ok=1.0, val_fraction=0, test_fraction=0
    )
    records = module.records()
    assert {record.group for record in records} == {"P_00038", "P_00016", "P_00116"}
    assert [record.labels for record in records] == [("LEFT", "CC"), ("LEFT", "CC"), ("RIGHT", "MLO")]


@needs_samples
def test_real_cbis_full_png(tmp_path):
    module = prepared(
        SAMPLES / "cbis_ddsm",
        tmp_path,
        "cbis_ddsm",
        missing_ok=1.0,
        val_fraction=0,
        test_fraction=0,
        isolate_breast=True,
        flip_to="left",
    )
    assert [record.group for record in module.records()] == ["P_00016", "P_00116"]
    images = torch.cat(list(module.images("train", 2)))
    assert (images[:, 0, :, 0].amax(dim=1) > -1).all() and (images[:, 0, :, -1] == -1).all()
    with pytest.raises(DataError, match="listed images are not on disk"):
        data(SAMPLES / "cbis_ddsm", tmp_path, "cbis_ddsm").records()


@needs_samples
def test_real_cbis_csvs():
    rows = [row for path in sorted((SAMPLES / "cbis_ddsm" / "csv").glob("*.csv")) for row in read_cbis_csv(path)]
    assert len(rows) == 3568 and not any("\n" in value for row in rows for value in row.values())
    assert all(row["breast_density"] in "01234" for row in rows)


@needs_samples
def test_real_nyu_exam(tmp_path):
    module = prepared(SAMPLES / "nyu_gmic", tmp_path, value_range=(0, 4095), val_fraction=0, test_fraction=0)
    records = module.records()
    assert [record.labels for record in records] == [("LEFT", "CC"), ("LEFT", "MLO"), ("RIGHT", "CC"), ("RIGHT", "MLO")]
    assert {record.group for record in records} == {"0"}
    assert float(torch.cat(list(module.images("train", 4))).mean()) > -0.9


@needs_samples
def test_real_cesm_needs_a_csv(tmp_path):
    with pytest.raises(DataError, match=r"data.csv=FILE"):
        data(SAMPLES / "cdd_cesm_cc", tmp_path).records()
    files = sorted((SAMPLES / "cdd_cesm_cc").rglob("*.jpg"))
    lines = [f"{path.relative_to(SAMPLES / 'cdd_cesm_cc')},{i},CC,{path.parent.name}" for i, path in enumerate(files)]
    (tmp_path / "cesm.csv").write_text("\n".join(["file,patient,view,side", *lines]))
    module = prepared(SAMPLES / "cdd_cesm_cc", tmp_path, csv=str(tmp_path / "cesm.csv"))
    assert len(module.records()) == 14 and all(len(record.labels) == 2 for record in module.records())


@needs_samples
@pytest.mark.parametrize(("path", "limits"), real_pictures(), ids=lambda value: getattr(value, "name", ""))
def test_quirk_16_isolation_keeps_real_breasts_and_drops_strip_and_labels(path, limits):
    values = read_picture(path, limits)
    clean = isolate_breast(values)
    assert seen_side(clean) == seen_side(values)
    kept = clean == values
    if "P_00016_LEFT_CC" in path.name:  # a slanted white strip beside the chest wall, up to 48 pixels wide
        assert (values[:, -48:] > 0.95).mean() > 0.3 and (clean > 0.95).sum() < 0.02 * (values > 0.95).sum()
        values, clean = values[:, :-64], clean[:, :-64]
    elif "P_00116_RIGHT_MLO" in path.name:  # "R MLO" at the upper left
        assert values[:1100, :600].max() > 0.5 and clean[:1100, :600].max() == 0
        values, clean = values[:, 600:], clean[:, 600:]
    elif path.name == "0_L-CC.png":  # part of a label at the upper right
        assert values[:60, -60:].max() > 0.5 and clean[:60, -60:].max() == 0
    assert clean.sum() > 0.995 * values.sum()
    assert set(np.unique(clean[~kept[:, : clean.shape[1]]])) <= {0} if "P_00116" not in path.name else True
