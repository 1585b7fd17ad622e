"""Folders as people have them: what is read from them, what is said of them, and what is refused before any score."""

import json
import re
import shutil
import warnings

import numpy as np
import pytest
import torch
from conftest import write_kidney
from dicom_files import write_mammogram
from PIL import Image

from datamodules.ct_kidney import CTKidney
from datamodules.files.errors import DataError
from datamodules.writing.writers import write_png16
from experiments.configuration.errors import ConfigError
from experiments.evaluate import main
from experiments.evaluation.subject import Subject, sets_of
from experiments.measuring.equal_pixels import checked_pixels
from experiments.measuring.image_sets import FolderImages
from experiments.measuring.settings import load_suite
from experiments.measuring.vectors import VectorCache
from lightning_modules.schedules import ConstantSchedule

COUNT = 12


def picture(seed, size=(16, 16), top=255, dtype=np.uint8):
    return (np.random.default_rng(seed).uniform(0, 1, size) * top).astype(dtype)


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def fill(folder, first, count=COUNT, suffix=".png", **picture_options):
    for i in range(count):
        save(folder / f"{i:02d}{suffix}", picture(first + i, **picture_options))
    return folder


@pytest.fixture
def top(tmp_path):
    """Folders real, gen and others of 12 pictures of 16x16 each."""
    for name, first in (("real", 0), ("gen", 1000), ("others", 2000)):
        fill(tmp_path / name, first)
    return tmp_path


def look(top, *overrides, gen="gen", real="real"):
    """What ``evaluate`` does with folders before it computes anything."""
    overrides = [text.replace("TOP", str(top)) for text in overrides]
    suite = load_suite("quick", [f"against={top / real}", *overrides])
    return sets_of(suite, Subject(top / gen, None), top / real)


# What is refused ------------------------------------------------------------------------------------------------------


def generated_below_real(top):
    (top / "gen").rename(top / "real" / "gen")
    return {"gen": "real/gen"}


def real_below_generated(top):
    (top / "real").rename(top / "gen" / "real")
    return {"real": "gen/real"}


def link_to_the_same(top):
    (top / "link").symlink_to(top / "real")
    return {"gen": "link"}


def link_within_the_real(top):
    (top / "real" / "link").symlink_to(top / "gen")
    return {}


def links_to_files(top):
    (top / "gen" / "x.png").symlink_to(top / "real" / "03.png")
    return {}


def equal_file(top):
    shutil.copy(top / "real" / "03.png", top / "gen" / "copy.png")
    return {}


def equal_held_out_file(top):
    shutil.copy(top / "others" / "03.png", top / "gen" / "copy.png")
    return {}


def held_out_below_real(top):
    (top / "others").rename(top / "real" / "others")
    return {"held_out": "real/others"}


def other_shapes(top):
    for i in range(3):
        save(top / "gen" / f"{i:02d}.png", picture(i, (16, 32)))
    return {}


def other_shapes_of_real(top):
    for i in range(3):
        save(top / "real" / f"{i:02d}.png", picture(i, (20, 16)))
    return {}


def another_shape_of_all(top):
    fill(top / "gen", 0, size=(32, 24))
    return {}


def another_shape_of_dicom(top):
    write_mammogram(top / "gen" / "x.dcm", np.arange(16 * 24, dtype=np.uint16).reshape(16, 24), bits=12)
    for path in sorted((top / "gen").glob("*.png"))[:4]:
        path.unlink()
    return {}


def twelve_bits(name):
    def change(top):
        fill(top / name, 0, top=4095, dtype=np.uint16)
        return {}

    return change


def eight_among_twelve_bits(top):
    twelve_bits("gen")(top)
    save(top / "gen" / "00.png", picture(3000))
    return {}


def empty_files(top):
    for i in range(3):
        (top / "real" / f"{i:02d}.png").write_bytes(b"")
    return {}


def nothing_but_thumbnails(top):
    (top / "gen").rename(top / "@eaDir")
    (top / "gen").mkdir()
    (top / "@eaDir").rename(top / "gen" / "@eaDir")
    return {}


REFUSED = {
    generated_below_real: "real/gen lies in against=.*/real, so its images are in both",
    real_below_generated: "against=.*/gen/real lies in .*/gen, so its images are in both",
    link_to_the_same: "/link and against=.*/real are one folder",
    link_within_the_real: "gen: 12 of its 12 files also lie in against=.*real, e.g. .* as link/",
    links_to_files: "gen: 1 of its 13 files also lie in against=.*real, e.g. x.png as 03.png",
    equal_file: "gen: 1 of its 13 files also lie in against=.*real, e.g. copy.png as 03.png; remove",
    equal_held_out_file: "gen: 1 of its 13 files also lie in held_out=.*others, e.g. copy.png as 03.png",
    held_out_below_real: "held_out=.*real/others lies in against=.*real",
    other_shapes: r"gen: 3 of 12 images have another aspect ratio than 16x16 .* with 16x32: .*pad=true",
    other_shapes_of_real: r"real: 3 of 12 images have another aspect ratio than 16x16 .* with 20x16: ",
    another_shape_of_all: r"gen: 12 of 12 images have another aspect ratio than 16x16 .* with 32x24: ",
    another_shape_of_dicom: r"gen: 1 of 9 images have another aspect ratio than 16x16 .*e.g. x.dcm with 16x24: ",
    empty_files: r"real: 3 of 12 images cannot be read, e.g. 0\d.png: .*; repair or remove them",
    nothing_but_thumbnails: "gen: holds no image",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_folders_that_say_something_false_are_refused(change, top):
    where = change(top)
    held_out = where.pop("held_out", "others")
    with pytest.raises((ConfigError, DataError), match=f"^{re.escape(str(top))}|^against|^held_out") as caught:
        look(top, f"held_out=TOP/{held_out}", **where)
    assert re.search(REFUSED[change], str(caught.value)), caught.value


@pytest.mark.parametrize(
    ("change", "overrides", "said"),
    [
        (twelve_bits("gen"), (), r"png: has 16 bits with values .* set generated_value_range, e.g. .*=\[0,4095\]"),
        (twelve_bits("real"), (), r"png: has 16 bits with values .* set value_range, e.g. value_range=\[0,4095\]"),
        (twelve_bits("gen"), ("generated_value_range=[0,1000]",), r"outside generated_value_range=\[0,1000\]"),
        (eight_among_twelve_bits, ("generated_value_range=[0,4095]",), "00.png: has 8 bits, which do not reach"),
    ],
)
def test_a_range_that_nobody_has_declared_is_refused(change, overrides, said, top):
    change(top)
    with pytest.raises(DataError, match=f"^(against=)?{re.escape(str(top))}/(gen|real): .*{said}"):
        look(top, *overrides)


def test_files_of_a_data_set_are_no_generated_ones(tmp_path):
    root = write_kidney(tmp_path / "root", per_class=4)
    data = CTKidney(ConstantSchedule((32, 32), 4, 8), 0, str(root), str(tmp_path / "cache"), block_size=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.setup()
    gen = fill(tmp_path / "gen", 0, size=(64, 64))
    suite = load_suite("quick", ["against=tiny"])
    assert len(sets_of(suite, Subject(gen, None), data).generated) == min(COUNT, data.size("train"))
    black = sets_of(suite, Subject(save(tmp_path / "black" / "0.png", np.zeros((64, 64), np.uint8)).parent, None), data)
    assert "if that is not what the images show, generated_value_range is wrong" in black.warnings[0]
    shutil.copy(next(root.rglob("Cyst- (3).jpg")), gen / "copy.jpg")
    for path in sorted(gen.glob("*.png"))[4:]:
        path.unlink()
    with pytest.raises(
        ConfigError, match=r"gen: 1 of its 5 files also lie in CTKidney, .*, e.g. copy.jpg as .*\(3\).jpg"
    ):
        sets_of(suite, Subject(gen, None), data)


# What is read ---------------------------------------------------------------------------------------------------------


def test_thumbnails_and_bins_are_no_images(top):
    before = look(top).real
    for left in (
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "lost+found",
        "__MACOSX",
        "@Recycle",
        "System Volume Information",
    ):
        fill(top / "real" / left, 5000, count=2)
    (top / "real" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    assert look(top).real.identity() == before.identity()
    (top / "#recycle").mkdir()
    (top / "real").rename(top / "#recycle" / "real")  # what the user names is meant
    assert look(top, real="#recycle/real").real.identity() == before.identity()


def test_names_and_places_do_not_matter(top):
    before = look(top)
    for path in (top / "gen").iterdir():
        path.rename(path.with_suffix(".PNG"))
    (top / "gen").rename(top / "real" / ".hidden")  # not read as real
    (top / "link").symlink_to(top / "real" / ".hidden")
    after = look(top, gen="link")
    assert after.generated.identity() == before.generated.identity() and after.warnings == before.warnings == ()


def test_copies_of_real_files_count_once(top):
    before = look(top)
    for path in sorted((top / "real").iterdir()):
        for k in range(7):
            shutil.copy(path, top / "real" / f"{path.stem}_copy{k}.png")
    after = look(top)
    assert after.warnings == ("84 of 96 real files are copies of another one, byte by byte: left out",)
    assert after.real.identity() == before.real.identity() and len(after.generated) == COUNT


def test_patients_who_share_a_file_are_one_group(top):
    shutil.copy(top / "real" / "00.png", top / "real" / "12.png")
    table = top / "patients.csv"
    table.write_text("file,group\n" + "".join(f"{i:02d}.png,p{i // 2}\n" for i in range(COUNT + 1)))
    images = FolderImages(top / "real", 0, groups=table)
    groups = dict(zip(images.names, images.groups, strict=True))
    assert "12.png" not in groups and groups["00.png"] == groups["01.png"] == "p0" and len(set(groups.values())) == 6
    assert images.patients.keys() == {f"p{i}" for i in range(7)}


def test_tables_of_groups_are_read_as_those_of_patients(top):
    rows = [f"{i:02d}.png;{('00007', '7', '7.0')[i] if i < 3 else f'p{i}'} " for i in range(COUNT)]
    table = top / "groups.csv"
    table.write_bytes("\n".join(["file; group", *rows]).encode("utf-8-sig"))
    assert len(set(FolderImages(top / "real", 0, groups=table).groups)) == COUNT - 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("00.png,", "names no group of 1 of 12 files, e.g. 00.png; complete it"),
        ("00.png", "names no group of 1 of 12 files, e.g. 00.png; complete it"),
        ("00.png,p0\n00.png,p1", "00.png is listed with two groups"),
        ("", "says nothing of 1 of 12 files, e.g. 00.png"),
        ("00.png,\xe4", "is not a readable CSV file"),
    ],
)
def test_tables_of_groups_that_say_too_little_are_refused(text, said, top):
    rows = ["file,group", text, *(f"{i:02d}.png,p{i}" for i in range(1, COUNT))]
    (top / "groups.csv").write_bytes("\n".join(rows).encode("latin-1"))
    with pytest.raises((ConfigError, DataError), match=f"groups.csv: {said}"):
        FolderImages(top / "real", 0, groups=top / "groups.csv")


# Pixels ---------------------------------------------------------------------------------------------------------------


def pixels_of(top, found):
    """What is said once all images have been read."""
    read = [images for images in (found.real, found.generated, found.train, found.held_out) if images is not None]
    return checked_pixels(found, read, VectorCache(top / "vectors")).warnings


def save_anew(values, path):
    """Save the same picture in other bytes: as 16 bits that say so, or as colours."""
    if path.suffix == ".png":
        write_png16(torch.from_numpy(values / 127.5 - 1.0)[None].float(), path)
    else:
        Image.fromarray(np.stack([values] * 3, axis=-1)).save(path)


@pytest.mark.parametrize("name", ["copy.png", "copy.bmp"])
@pytest.mark.parametrize("seed", [3, 2003])
def test_real_images_saved_anew_among_generated_ones_are_told(name, seed, top):
    assert pixels_of(top, look(top, "held_out=TOP/others")) == ()
    save_anew(picture(seed), top / "gen" / name)
    for path in sorted((top / "gen").glob("0*.png"))[:4]:
        path.unlink()
    (said,) = pixels_of(top, look(top, "held_out=TOP/others"))
    assert said.startswith("1 of 9 generated images have the same pixels as real ones")


def test_held_out_images_saved_anew_are_no_training_ones(top):
    save_anew(picture(3), top / "others" / "copy.bmp")
    with pytest.raises(
        ConfigError, match=r"^held_out=.*: 1 of 13 images have the same pixels as those of against=.*03"
    ):
        pixels_of(top, look(top, "held_out=TOP/others"))


def test_real_images_saved_twice_are_told_and_black_ones_are_not(top):
    for name in ("real", "gen"):
        save(top / name / "black.bmp", np.zeros((16, 16), np.uint8))
        save(top / name / "black.png", np.zeros((16, 16), np.uint8))
    (top / "gen" / "black.bmp").unlink()
    (top / "gen" / "black.png").rename(top / "gen" / "black2.png")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(top / "gen" / "black2.png")
    save_anew(picture(3), top / "real" / "copy.bmp")
    (said,) = pixels_of(top, look(top))
    assert said.startswith("1 of 15 real images have the same pixels as another one")


def test_a_generator_that_repeats_itself_is_judged_and_told(top):
    for path in sorted((top / "gen").iterdir())[1:]:
        shutil.copy(top / "gen" / "00.png", path)
    found = look(top)
    assert len(found.generated) == COUNT
    assert found.warnings == (
        "11 of 12 generated files are copies of another one, byte by byte: they stay, for a generator that repeats "
        "itself is judged by it",
    )


def test_black_images_are_judged_and_told(top):
    for path in (top / "gen").iterdir():
        save(path, np.zeros((16, 16), np.uint8))
    found = look(top)
    assert torch.equal(found.generated.read(0, COUNT), torch.full((COUNT, 1, 16, 16), -1.0))
    assert len(found.warnings) == 2 and "generated ones 0%" in found.warnings[1]


def test_twelve_bits_taken_for_sixteen_are_named_before_any_score(top):
    twelve_bits("gen")(top)
    (said,) = look(top, "generated_value_range=[0,65535]").warnings
    assert re.match(r"real images use 9\d% of their range of values, generated ones 6%: .*generated_value_range", said)
    right = look(top, "generated_value_range=[0,4095]")
    assert right.warnings == () and right.generated.read(0, COUNT).max() > 0.9


def test_smaller_pictures_are_enlarged_and_told(top):
    fill(top / "gen", 1000, size=(8, 8))
    found = look(top)
    assert found.generated.own_size == (8, 8) and found.generated.size == (16, 16)
    (said,) = found.warnings
    assert said.startswith("12 of 12 generated images are enlarged to 16x16 pixels (they have 8x8)")
    save(top / "real" / "small.png", picture(7, (8, 8)))
    assert look(top).warnings[0].startswith("1 of 13 real images are enlarged to 16x16 pixels (they have 8x8)")
    (top / "real" / "small.png").unlink()
    larger = look(top, gen="real", real="gen")
    assert larger.warnings == () and larger.generated.own_size == (16, 16) and larger.generated.size == (8, 8)


def test_other_shapes_are_padded_as_asked(top):
    save(top / "gen" / "00.png", np.full((16, 32), 255, np.uint8))
    save(top / "gen" / "01.png", np.full((32, 8), 255, np.uint8))
    images = look(top, "pad=true").generated
    wide, high = (images.read(i, i + 1)[0, 0] for i in map(images.names.index, ("00.png", "01.png")))
    assert (wide[:4] == -1).all() and (wide[4:12] == 1).all() and (wide[12:] == -1).all()
    assert (high[:, :6] == -1).all() and (high[:, 6:10] == 1).all() and (high[:, 10:] == -1).all()
    assert images.identity()["padded"]


@pytest.mark.parametrize(("size", "fits"), [((33, 32), True), ((15, 16), True), ((333, 333), True), ((36, 32), False)])
def test_rounding_is_no_other_shape(top, size, fits):
    save(top / "gen" / "00.png", picture(0, size))
    if fits:
        assert look(top).generated.read(0, COUNT).shape == (COUNT, 1, 16, 16)
    else:
        with pytest.raises(ConfigError, match="another aspect ratio"):
            look(top)


# What is written ------------------------------------------------------------------------------------------------------

SUITE = """
images: 40
replicates: 10
extractors: {random_conv: {_target_: lightning_modules.metrics.features.RandomConvNet}}
scores: {precision_recall: {_target_: lightning_modules.metrics.precision_recall.PrecisionRecall}}
"""


@pytest.mark.usefixtures("drawn")
def test_warnings_and_sizes_are_in_every_result(tmp_path, capsys):
    fill(tmp_path / "real", 0, count=40, size=(32, 32))
    for i in range(40):
        save(tmp_path / "gen" / f"{i}.png", picture(1000, (8, 8)))
    save_anew(picture(3, (32, 32)), tmp_path / "real" / "03.bmp")
    (tmp_path / "real" / "04.png").unlink()
    (tmp_path / "small.yaml").write_text(SUITE)
    out = tmp_path / "out"
    command = [str(tmp_path / "gen"), f"suite={tmp_path / 'small.yaml'}", f"against={tmp_path / 'real'}"]
    assert main([*command, f"output={out}"]) == 0
    said = json.loads((out / "scores.json").read_text())
    assert said["generated"]["own_sizes"] == {"8x8": 40} and said["real"]["own_sizes"] == {"32x32": 40}
    assert [row["fingerprint"]["generated_size"] for row in said["scores"]] == [[8, 8], [8, 8]]
    assert "39 of 40 generated files are copies" in said["warnings"][0]
    assert "40 of 40 generated images are enlarged to 32x32" in said["warnings"][1]
    assert "1 of 40 real images have the same pixels as another one" in said["warnings"][2]
    zero = "40 of 40 generated images equal 3 others: their balls have radius 0 and hold nothing else"
    assert all(zero in row["warnings"] for row in said["scores"])
    shown, page = capsys.readouterr().out, (out / "report.html").read_text()
    assert "The files of the generated images have other sizes: 8x8 (40)." in page
    for text in (shown, page):
        assert all(warning in text for warning in (*said["warnings"], zero))
