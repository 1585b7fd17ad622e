"""Frechet Radiomics Distance around a stand-in for pyradiomics, which is compiled; with it where it is installed."""

import importlib
import importlib.util
import math
import sys

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from experiments.measuring.settings import build_tools, load_suite
from experiments.measuring.vectors import VectorCache
from lightning_modules.metrics import radiomics
from lightning_modules.metrics.features import ExtractorError
from lightning_modules.metrics.radiomics import PACKAGES, FrechetRadiomics, Radiomics, z_scored
from lightning_modules.metrics.score import TooFewImagesError

STAND_IN = """
import numpy as np

class Extractor:
    def execute(self, image, mask):
        assert image.ndim == 3 and image.dtype == np.float32 and mask[0, 0, 0] == 0 and mask.sum() == mask.size - 1
        assert np.array_equal(image, np.round(image)) and image.min() >= 0 and image.max() <= 255
        if image.min() == image.max():
            raise ValueError("arange: cannot compute length")
        levels = image.astype(float).ravel()
        features = {f"original_{k}": np.array(np.abs(np.fft.rfft(levels, 800))[k]) for k in range(COUNT)}
        bands = [f"wavelet-{band}_firstorder" for band in ("LH", "HL", "HH")]
        noise = {f"{band}_{what}": 1e-16 for band in bands for what in ("Mean", "Median")}
        return {"diagnostics_Image-original_Mean": image.mean(), "diagnostics_Versions": "3", **noise, **features}

def get_feature_extractor(version, image_dim):
    assert (version, image_dim) == ("v1", 2)
    return Extractor()
"""


@pytest.fixture(params=[379])
def stand_in(request, tmp_path, monkeypatch):
    site = tmp_path / "site"
    files = {
        "frd_score/__init__.py": "",
        "frd_score/frd.py": f"COUNT = {request.param}\n{STAND_IN}",
        "frd_score/configs/extraction_2d.yaml": "imageType: {}\n",
        "radiomics/__init__.py": "def setVerbosity(level): pass\n",
        "SimpleITK/__init__.py": "def GetImageFromArray(values): return values\n",
        "frd_score-9.dist-info/METADATA": "Name: frd-score\nVersion: 9\n",
        "pyradiomics-8.dist-info/METADATA": "Name: pyradiomics\nVersion: 8\n",
    }
    for name, content in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(content)
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # the stand-in is in this process only
    radiomics._extractor.cache_clear()
    yield site
    radiomics._extractor.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]


def loaded():
    extractor = Radiomics()
    extractor.prepare()
    extractor.load()
    return extractor


def images(n, seed=0, size=16):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def vectors(n, seed=0, dimensions=6):
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(99))
    return torch.randn(n, dimensions, generator=random) @ mix * torch.logspace(-3, 8, dimensions)


def test_features_are_those_of_the_8_bit_image_without_diagnostics_and_noise(stand_in):
    some = images(3)
    found = loaded()(some)
    levels = ((some[:, 0] + 1) * 127.5).round().flatten(1).double()
    expected = torch.fft.rfft(levels, 800).abs()[:, :379]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-2)


def test_flat_pictures_have_no_features_and_cost_no_other_image_its_own(stand_in):
    some = images(4)
    some[1], some[3] = 0.3, -1.0
    found = loaded()(some)
    assert found.isnan().all(dim=1).tolist() == [False, True, False, True]
    assert found[::2].isfinite().all()


def test_identity_says_versions_and_settings(stand_in):
    said = loaded().identity()
    assert "frd-score 9" in said["preprocessing"] and "pyradiomics 8" in said["preprocessing"]
    (stand_in / "frd_score" / "configs" / "extraction_2d.yaml").write_text("binWidth: 4\n")
    assert Radiomics().identity()["weights_sha256"] != said["weights_sha256"]


def test_colour_is_refused(stand_in):
    with pytest.raises(ValueError, match="3 channels"):
        loaded()(images(2).expand(-1, 3, -1, -1))


@pytest.mark.parametrize("stand_in", [12], indirect=True)
def test_other_features_than_published_are_refused(stand_in):
    with pytest.raises(ValueError, match="gives 12 features, not 379"):
        loaded()(images(1))


@pytest.mark.parametrize("missing", PACKAGES)
def test_missing_package_is_one_sentence(monkeypatch, missing):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found("math"))
    with pytest.raises(ExtractorError, match=rf"are missing \({missing}\): install the extra mirage-gan\[frd\]"):
        Radiomics().prepare()


def test_flat_pictures_are_named_on_the_terminal(stand_in, tmp_path, caplog):
    class Set:
        what, names, groups, size = "generated", ["a.png", "b.png", "c.png"], [], (16, 16)

        def __len__(self):
            return 3

        def identity(self):
            return {"a": 1}

        def read(self, start, stop):
            some = images(3)
            some[1] = 0.0
            return some[start:stop]

    VectorCache(tmp_path).vectors(Set(), loaded())
    assert "Radiomics finds nothing in 1 images (flat pictures?): b.png" in caplog.text


# The score ------------------------------------------------------------------------------------------------------------


def test_distance_is_that_of_z_scored_features():
    real, generated = vectors(60), vectors(50, seed=1) * 1.3 + 0.2
    mean, deviation = real.double().mean(0).numpy(), real.double().numpy().std(axis=0)
    a, b = ((part.double().numpy() - mean) / deviation for part in (real, generated))
    covariances = [np.cov(part, rowvar=False) for part in (a, b)]
    expected = np.square(b.mean(0)).sum() + np.trace(sum(covariances) - 2 * sqrtm(covariances[0] @ covariances[1]).real)
    assert FrechetRadiomics().measure(real, generated)["frechet_radiomics"] == pytest.approx(expected, rel=1e-6)


def test_equal_sets_are_at_0_and_units_do_not_matter_and_the_order_does():
    score, real, generated = FrechetRadiomics(), vectors(40), vectors(40, seed=1) * 2.0
    assert score.measure(real, real)["frechet_radiomics"] == pytest.approx(0.0, abs=1e-9)
    there = score.measure(real, generated)["frechet_radiomics"]
    unit = torch.tensor([2.0, 0.5, 4.0, 1.0, 8.0, 0.25])
    assert score.measure(real * unit, generated * unit)["frechet_radiomics"] == pytest.approx(there, rel=1e-6)
    assert score.measure(generated, real)["frechet_radiomics"] < 0.5 * there


def test_features_constant_in_the_real_set_are_left_out():
    real, generated = vectors(40), vectors(40, seed=1)
    constant = torch.full((40, 1), 0.1)
    there = FrechetRadiomics().measure(real, generated)
    assert (
        FrechetRadiomics().measure(torch.cat([real, constant], 1), torch.cat([generated, generated[:, :1]], 1)) == there
    )
    assert [
        part.shape[1] for part in z_scored(torch.cat([real, constant], 1), torch.cat([generated, constant], 1))
    ] == [6, 6]
    with pytest.raises(ValueError, match="every radiomics feature is constant"):
        FrechetRadiomics().measure(constant, generated[:, :1])


def test_flat_pictures_are_left_out_counted_and_placed():
    score, real, generated = FrechetRadiomics(), vectors(40), vectors(20, seed=1)
    there = score.measure(real, generated)
    assert there["flat_share"] == 0.0 and score.warnings(real, generated) == []
    flat = torch.full((1, 6), math.nan)
    with_flat = torch.cat([generated[:3], flat, generated[3:], flat])
    found = score.measure(torch.cat([real, flat]), with_flat)
    assert found == {"frechet_radiomics": there["frechet_radiomics"], "flat_share": 2 / 22}
    of_real, of_generated = score.warnings(torch.cat([real, flat]), with_flat)
    assert of_real.startswith("1 of 41 real images are flat pictures") and of_real.endswith("(counted from 0: 40)")
    assert of_generated.startswith("2 of 22 generated images") and of_generated.endswith("(counted from 0: 3, 21)")
    with pytest.raises(TooFewImagesError, match="not flat, got 1 of 3 generated ones"):
        score.measure(real, torch.cat([generated[:1], flat, flat]))


def test_vector_with_some_values_that_are_not_finite_is_no_flat_picture():
    real, generated = vectors(40), vectors(40, seed=1)
    generated[3, 2] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        FrechetRadiomics().measure(real, generated)


def test_one_override_adds_it_to_a_suite():
    name = "lightning_modules.metrics.radiomics.FrechetRadiomics"
    tools = build_tools(load_suite("quick", [f"scores.frechet_radiomics._target_={name}"]))
    assert isinstance(tools.instruments["frechet_radiomics"].reads, Radiomics)


# pyradiomics itself ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_features_and_distance_are_those_of_frd_score(tmp_path, monkeypatch):
    frd = pytest.importorskip("frd_score.frd", reason="the extra frd is not installed: pyradiomics is compiled")
    pytest.importorskip("radiomics", reason="the extra frd is not installed: pyradiomics is compiled")
    from datamodules.writing.writers import write_png8

    random = torch.Generator().manual_seed(0)
    sets = [torch.rand(10, 1, 20, 20, generator=random) * width - 1 for width in (2.0, 1.7)]
    for name, some in zip("ab", sets, strict=True):
        for i, image in enumerate(some):
            write_png8(image, tmp_path / name / f"{i}.png")

    without = frd.compute_features

    def compute_features(*arguments, **settings):
        values, dictionaries, masks = without(*arguments, **settings)
        kept = [i for i, name in enumerate(dictionaries[0]) if radiomics.is_feature(name)]
        assert len(dictionaries[0]) == 385 + 13  # with the diagnostics
        theirs.append(values[:, kept])
        return values[:, kept], dictionaries, masks

    theirs: list = []
    monkeypatch.setattr(frd, "compute_features", compute_features)
    value = frd.compute_frd([str(tmp_path / "a"), str(tmp_path / "b")], num_workers=1)
    ours = [loaded()(some) for some in sets]
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, torch.from_numpy(other).float(), rtol=1e-6, atol=0)
    found = FrechetRadiomics().measure(*ours)["frechet_radiomics"]
    assert found == pytest.approx(math.exp(value), rel=1e-3)
