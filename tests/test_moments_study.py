import contextlib
import csv
import io
import re

import numpy as np
import pytest
import torch
from conftest import figures_drawn
from dicom_files import write_mammogram
from PIL import Image

from datamodules.files.errors import DataError
from datamodules.writing.writers import write_png16
from experiments.figures.moments import beyond_axes, contour_plots, scatter_matrix
from experiments.measuring.moment_analysis import analyse, pruning_effect
from experiments.measuring.moments import main, read_folder, warnings_of
from experiments.measuring.moments_page import pruning_section, sections, tables_csv
from lightning_modules.metrics.agreement import MomentAgreement, agreement, contour_coverage, neighbours_within
from lightning_modules.metrics.moments import NAMES, moments, moments_of_levels
from lightning_modules.metrics.pruning import outside_support
from lightning_modules.metrics.score import TooFewImagesError


def stored_images(count, dtype, seed, spread=1.0):
    """Small images of different size, brightness and contrast."""
    random, top = np.random.default_rng(seed), np.iinfo(dtype).max
    for _ in range(count):
        shape, scale = random.gamma(4.0, 1.0), spread * random.gamma(8.0, 0.01)
        height, width = random.integers(10, 20, 2)
        values = random.gamma(shape, scale, (height, width)).clip(0, 1)
        yield np.rint(values * top).astype(dtype)


def write_folder(folder, images, name="{}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / name.format(i))
    return folder


def draw(count, seed):
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(5, 5, generator=torch.Generator().manual_seed(99))
    return (torch.randn(count, 5, generator=random) @ mixing * 0.3).exp().double()


def values(text):
    return {(row["table"], row["first"], row["second"]): row["value"] for row in csv.DictReader(io.StringIO(text))}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """120 real images of 16 bits, some in subfolders, and 110 generated ones of 8 bits."""
    root = tmp_path_factory.mktemp("folders")
    real = list(stored_images(120, np.uint16, 0))
    write_folder(root / "real" / "a", real[:70])
    write_folder(root / "real" / "b", real[70:])
    write_folder(root / "generated", stored_images(110, np.uint8, 1, spread=1.2))
    return root


def moments_below(folder, top):
    arrays = [np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))]
    return torch.cat([moments_of_levels(array, (0, top)) for array in arrays])


@pytest.fixture(scope="module")
def output(folders, tmp_path_factory):
    """What the command writes into a folder, and says."""
    out, said = tmp_path_factory.mktemp("out"), io.StringIO()
    with contextlib.redirect_stdout(said), figures_drawn():
        roots = [str(folders / "real"), str(folders / "generated")]
        assert main([*roots, "--value-range", "0", "65535", "--output", str(out / "new" / "folder")]) == 0
    return out / "new" / "folder", said.getvalue()


def test_the_command_writes_what_the_functions_say(folders, output):
    folder, said = output
    real, generated = moments_below(folders / "real", 65535), moments_below(folders / "generated", 255)
    found, table = values((folder / "tables.csv").read_text()), agreement(real, generated)
    number = {key: float(value) for key, value in found.items()}
    assert number["images", "real", ""] == 120 and number["images", "generated", ""] == 110
    for i, name in enumerate(NAMES):
        assert number["real median", name, ""] == pytest.approx(np.median(real[:, i]))
        assert number["generated upper quartile", name, ""] == pytest.approx(np.quantile(generated[:, i], 0.75))
        assert number["neighbours", name, ""] == pytest.approx(float(neighbours_within(real, generated)[i]))
        for j in range(i, 5):
            assert number["agreement", name, NAMES[j]] == pytest.approx(float(table[i, j]))
    assert number["coverage", "mean", "kurtosis"] == pytest.approx(contour_coverage(real, generated, (0, 3)).coverage)
    outside = outside_support(real, generated)
    assert number["outside the real support", "", ""] == pytest.approx(float(outside.double().mean()))
    kept = MomentAgreement().measure(real, generated[~outside])
    assert number["pruning", "moment_agreement", "outliers left out"] == pytest.approx(kept["moment_agreement"])
    assert "120 PNG of 16 bits, values 0 to 65535" in said


def test_the_report_needs_no_network_and_holds_the_tables(output):
    page = (output[0] / "report.html").read_text()
    sources = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]{0,30})""", page)
    assert len(sources) == 2 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?:|@import|url\(|<script|<link", re.sub(r"base64,[^\"]+", "", page))
    words = re.sub(r"base64,[^\"]+", "", page)
    found = values((output[0] / "tables.csv").read_text())
    assert f"{float(found['agreement', 'mean', 'skewness']):.3f}" in words
    assert f"{float(found['mutual information', 'kurtosis', '']):.4f}" in words
    assert "values 0 to 255" in words and "What pruning does" in words


def test_files_of_a_folder_are_read_in_any_container(tmp_path):
    stored = next(stored_images(1, np.uint16, 0)) // 16
    write_png16(torch.from_numpy(stored / 32767.5 - 1.0), tmp_path / "0.png")
    Image.fromarray((stored // 16).astype(np.uint8)).save(tmp_path / "1.png")
    write_mammogram(tmp_path / "2.dcm", stored, bits=12)
    found = read_folder(tmp_path)
    shown = torch.from_numpy(stored.astype(np.float64))[None, None] / 4095 * 2 - 1
    expected = [
        moments_of_levels(stored, (0, 65535)),
        moments_of_levels((stored // 16).astype(np.uint8), (0, 255)),
        moments(shown),
    ]
    torch.testing.assert_close(found.moments, torch.cat(expected), rtol=1e-5, atol=1e-6)
    for said in ("1 PNG of 16 bits, values 0 to 65535", "1 PNG of 8 bits, values 0 to 255", "1 DICOM as displayed"):
        assert said in found.said


def test_twelve_bits_in_sixteen_need_their_range(tmp_path):
    stored = next(stored_images(1, np.uint16, 0)) // 16
    write_folder(tmp_path, [stored])
    found = read_folder(tmp_path, (0.0, 4095.0))
    torch.testing.assert_close(found.moments, moments_of_levels(stored, (0, 4095)))
    with pytest.raises(
        DataError, match=r"1 of 1 images cannot be used, e.g. 0.png: values .* outside --value-range 0 9"
    ):
        read_folder(tmp_path, (0.0, 9.0))
    with pytest.raises(DataError, match=r"0.png: has 16 bits .*set --generated-value-range, .* 0 4095 for 12-bit"):
        read_folder(tmp_path, generated=True)
    shares = read_folder(tmp_path, (0.0, 4095.0)).share, read_folder(tmp_path, (0.0, 65535.0)).share
    assert shares[0] == pytest.approx(16 * shares[1], rel=1e-3) and shares[0] > 0.3


def test_a_declared_range_holds_for_dicom_files_too(tmp_path):
    stored = next(stored_images(1, np.uint16, 0)) // 32
    write_mammogram(tmp_path / "0.dcm", stored, bits=12)
    found = read_folder(tmp_path, (0.0, 2047.0))
    shown = torch.from_numpy(stored.astype(np.float64))[None, None] / 2047 * 2 - 1
    torch.testing.assert_close(found.moments, moments(shown), rtol=1e-5, atol=1e-6)
    assert "1 DICOM values 0 to 2047" in found.said


def test_copies_and_overlaps_are_told(tmp_path):
    images = list(stored_images(4, np.uint8, 0))
    write_folder(tmp_path / "a", images)
    write_folder(tmp_path / "a" / "@eaDir", images, "thumb{}.png")
    write_folder(tmp_path / "a" / "more", images[:3], "{}_copy.png")
    real = read_folder(tmp_path / "a")
    assert len(real.moments) == 4 and "3 of 7 real files are copies of another one" in real.warnings[0]
    generated = read_folder(tmp_path / "a", generated=True)
    assert len(generated.moments) == 7 and "3 of 7 generated files are copies" in generated.warnings[0]
    below = read_folder(write_folder(tmp_path / "a" / "generated", stored_images(3, np.uint8, 1)))
    write_folder(tmp_path / "b", [next(stored_images(1, np.uint8, 2))])
    write_folder(tmp_path / "b", images[:2], "{}_copy.png")
    for other, said in (
        (generated, "are one folder"),
        (below, "generated lies in .*a, so"),
        (read_folder(tmp_path / "b"), "b: 2 of its 3 files also lie in .*a, e.g. 0_copy.png as 0.png"),
    ):
        with pytest.raises(DataError, match=said):
            warnings_of(real, other)
    dark = read_folder(write_folder(tmp_path / "c", [image // 16 for image in stored_images(4, np.uint8, 3)]))
    (_, said) = warnings_of(real, dark)
    assert "--generated-value-range is wrong" in said


def test_a_view_is_chosen_by_name_or_tag(tmp_path):
    images = list(stored_images(6, np.uint8, 0))
    write_folder(tmp_path, images[:2], "{}_L-MLO.png")
    write_folder(tmp_path, images[2:4], "{}_L-CC.png")
    write_folder(tmp_path, images[4:5], "unnamed{}.png")
    write_mammogram(tmp_path / "5.dcm", images[5].astype(np.uint16), bits=12, ViewPosition="MLO")
    assert len(read_folder(tmp_path, view="MLO").moments) == 3
    assert len(read_folder(tmp_path, view="MLO", generated=True).moments) == 4
    assert len(read_folder(tmp_path, view="CC").moments) == 2
    assert len(read_folder(tmp_path).moments) == 6


def test_bad_folders_are_named(tmp_path, capsys):
    write_folder(tmp_path / "few", stored_images(10, np.uint8, 0))
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "few"), str(tmp_path / "none")]) == 1
    assert "none: no such folder" in capsys.readouterr().err
    assert main([str(tmp_path / "few"), str(tmp_path / "empty")]) == 1
    assert "empty: holds no PNG or DICOM file" in capsys.readouterr().err
    assert main([str(tmp_path / "few"), str(tmp_path / "few"), "--view", "CC"]) == 1
    assert "say CC" in capsys.readouterr().err
    write_folder(tmp_path / "others", stored_images(10, np.uint8, 1))
    assert main([str(tmp_path / "few"), str(tmp_path / "others"), "--output", str(tmp_path / "out")]) == 1
    assert "at least 50 images of each set, got 10" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "few" / "3.png").write_bytes(b"\x89PNG damaged")
    assert main([str(tmp_path / "few"), str(tmp_path / "few")]) == 1
    assert "1 of 10 images cannot be used, e.g. 3.png" in capsys.readouterr().err


def test_no_number_depends_on_the_seed_and_few_real_images_have_no_support():
    study, other = analyse(draw(60, 0), draw(80, 1), seed=0), analyse(draw(60, 0), draw(80, 1), seed=1)
    assert tables_csv(study) == tables_csv(other)
    assert study.outside is None and "60 real images are too few" in "".join(sections(study))
    with pytest.raises(TooFewImagesError):
        analyse(draw(49, 0), draw(80, 1))


def test_pruning_takes_away_the_outliers_and_only_them():
    real, generated = draw(500, 0), draw(200, 1)
    generated[:20] += 1e3
    masks = []

    def scores(kept):
        masks.append(kept)
        return {"planted": float(kept[:20].double().mean()), "images": float(kept.sum())}

    effect = pruning_effect(real, generated, scores, seed=3)
    everything, at_random, pruned = masks
    assert everything.all() and not pruned[:20].any() and pruned[20:].double().mean() > 0.95
    assert at_random.sum() == pruned.sum() and at_random[:20].any()
    assert effect.pruned == 200 - int(pruned.sum())
    assert effect.rows[0][0] == "planted" and effect.rows[0][1] == 1.0 and effect.rows[0][3] == 0.0
    assert effect.rows[1][2] == effect.rows[1][3]
    assert pruning_effect(real, generated, scores, seed=3) == effect
    assert "planted</td><td>1</td><td>" in pruning_section(effect)


@pytest.mark.parametrize("generated", [draw(60, 1), draw(1, 1).expand(60, 5), draw(60, 1) + 50])
def test_figures_are_drawn_whatever_was_generated(generated):
    real = draw(60, 0)
    matrix = scatter_matrix(real, generated, analyse(real, generated).agreement, seed=0)
    contours = contour_plots(real, generated)
    assert len(matrix.axes) == 25 and sum(axes.axison for axes in contours.axes) == 10
    titles = [axes.get_title() for axes in contours.axes if axes.axison]
    assert titles[0] == f"{contour_coverage(real, generated, (0, 1)).coverage:.0%} of real covered"


def test_images_beyond_the_axes_are_counted():
    real = draw(3000, 0)
    assert beyond_axes(real, real)[0] < 30
    real[0] = 1e6
    generated = draw(3000, 1)
    generated[:3] = -1e6
    generated[:3, 1:] = 1.0
    ours, theirs = beyond_axes(real, generated)
    assert 1 <= ours < 30 and 0 <= theirs < 30
