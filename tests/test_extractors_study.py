"""What the comparison of extractors does to images, and what it makes of their features."""

import csv

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from experiments.benchmarks.instruments import extractors as study
from experiments.benchmarks.instruments.extractors import (
    BODY,
    CHANGES,
    FLOORS,
    MEASURED,
    REAL,
    SEED,
    WARP,
    Stages,
    multiples,
)
from experiments.measuring.resampling import halves
from lightning_modules.metrics.efficientnet import EfficientNetLite0
from lightning_modules.metrics.frechet import frechet_distance_of


@pytest.fixture(scope="module")
def body():
    """A textured disk on black, 64x64."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    inside = (rows - 32) ** 2 + (columns - 32) ** 2 < 28**2
    grey = 0.1 * torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) - 0.3
    return torch.where(inside, grey, torch.tensor(-1.0))[None]


@pytest.mark.parametrize("name", CHANGES)
def test_changes_depend_on_the_number_of_the_image_alone(name, body):
    changed = CHANGES[name](body, 3)
    assert changed.shape == body.shape and torch.equal(changed, CHANGES[name](body.clone(), 3))
    assert not torch.equal(changed, body)


def test_noise_and_speckle_are_as_large_as_they_are_called(body):
    noise = CHANGES["white noise, 2.5 % of the range"](body, 0) - body
    assert float(noise.std()) == pytest.approx(2 * 0.025, rel=0.05)
    moved = (CHANGES["speckle on a tenth of the body"](body, 0) != body) & (body > BODY)
    assert float(moved.sum() / (body > BODY).sum()) == pytest.approx(0.1, abs=0.02)
    assert torch.equal(CHANGES["speckle on a tenth of the body"](body, 0)[body <= BODY], body[body <= BODY])


def test_shuffled_organs_leave_outline_and_coarse_layout(body):
    changed = CHANGES["organs shuffled"](body, 0)
    coarse = [gaussian_blur(image, [17, 17], [8.0, 8.0]) for image in (body, changed)]
    assert float((coarse[0] - coarse[1]).abs().max()) < 0.05  # of 0.7
    assert torch.allclose(changed[body <= BODY], body[body <= BODY], atol=1e-6)
    ramp = torch.linspace(-0.5, 0.5, 64).expand(1, 64, 64)
    detail = ramp + 0.1 * torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(1))
    assert float((CHANGES["organs shuffled"](detail, 0) - detail).std()) == pytest.approx(0.1 * 2**0.5, rel=0.1)


def test_warp_moves_pixels_by_two_in_the_mean():
    """Grey levels that are places say how far each pixel came."""
    place = (torch.arange(96.0) / 48.0 - 1.0).expand(1, 96, 96)
    moved = []
    for i in range(20):
        columns = (CHANGES["warp of 2 pixels"](place, i) - place)[0] * 48.0
        rows = (CHANGES["warp of 2 pixels"](place.mT, i) - place.mT)[0] * 48.0
        moved.append((rows**2 + columns**2)[8:-8, 8:-8].mean())
    assert float(torch.stack(moved).mean().sqrt()) == pytest.approx(WARP, rel=0.05)


def test_stages_end_with_the_usual_features():
    usual, stages = EfficientNetLite0(32), Stages(32)
    usual.load()
    stages.load()
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    outputs = []
    for i in Stages.MIDDLE:
        stages.network[2][i].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    found = stages(images)
    assert found.shape == (3, Stages.dimensions) and stages.identity() != usual.identity()
    torch.testing.assert_close(found[:, 2 * Stages.MEANS :], usual(images))
    flat = [output.flatten(2) for output in outputs]
    torch.testing.assert_close(found[:, : Stages.MEANS], torch.cat([one.mean(dim=2) for one in flat], dim=1))
    deviations = torch.cat([one.std(dim=2, correction=0) for one in flat], dim=1)
    torch.testing.assert_close(found[:, Stages.MEANS : 2 * Stages.MEANS], deviations)


@pytest.fixture(scope="module")
def features():
    return torch.randn(200, 4, generator=torch.Generator().manual_seed(0))


def test_multiples_are_of_the_largest_distance_of_real_images(features):
    groups = [str(i // 2) for i in range(200)]
    classes = [("Rare",) if i < 10 else ("Half",) if i % 2 else () for i in range(200)]
    found = multiples({REAL: features, "moved": features + 1.0, "doubled": 2.0 * features}, groups, classes)
    pairs = [halves(groups, SEED, k) for k in range(FLOORS)]
    distances = [frechet_distance_of(features[pair.first], features[pair.second]) for pair in pairs]
    assert found[REAL] == pytest.approx(np.mean(distances[:MEASURED]) / max(distances)) and found[REAL] < 1.0
    # Of a shift d of all means the distance grows by |d|^2 + 2 d (m_a - m_b).
    steps = [float((features[p.second].mean(0) - features[p.first].mean(0)).sum()) for p in pairs[:MEASURED]]
    expected = (np.mean(distances[:MEASURED]) + 4.0 + 2.0 * np.mean(steps)) / max(distances)
    assert found["moved"] == pytest.approx(expected)
    assert found["collapse onto a tenth"] > 1.0 and found["20% copies of the other half"] < found[REAL]
    missing = [name for name in found if name.startswith("no ")]
    assert missing == ["no Half (48% of the images)"]  # one of 5 % is nobody's to miss


def test_class_that_means_nothing_is_not_missed_for_the_smaller_number_of_images():
    """Half as many images lie farther from the others; that is no failure, and is taken out."""
    features = torch.randn(300, 60, generator=torch.Generator().manual_seed(1))
    classes = [("Half",) if i % 2 else () for i in range(300)]
    found = multiples({REAL: features}, [str(i) for i in range(300)], classes)
    assert found["no Half (50% of the images)"] == pytest.approx(found[REAL], rel=0.06)


def test_command_measures_nothing_twice_and_names_further_extractors(tmp_path, capsys, monkeypatch):
    arguments = ["dcgan_chest_phantoms_64", "data.count=60", "schedule.resolution=[32,32]"]
    arguments += ["--folder", str(tmp_path), "--only", "random", "--images", "40"]
    further = "extractors.small._target_=lightning_modules.metrics.efficientnet.EfficientNetLite0"
    study.main([*arguments, further, "extractors.small.size=32"])
    rows = list(csv.reader((tmp_path / "dcgan_chest_phantoms_64.csv").open()))
    assert rows[0] == ["what was done", "random", "small"] and rows[1][0] == REAL
    monkeypatch.setattr(study, "multiples", None)
    study.main([*arguments, further, "extractors.small.size=32"])
    assert list(csv.reader((tmp_path / "dcgan_chest_phantoms_64.csv").open())) == rows
    study.main([*arguments, "--halves", "3"])
    assert "random: 0 of 3 halves called bad, 0 beyond" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        study.main([*arguments[:-4], "--only", "randon"])
    assert "there is no randon" in capsys.readouterr().err
