import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from datamodules.batches.augmentation import PRESETS, Augmentation, augment

EVERYTHING = Augmentation(flip_lr=0.5, max_rotation_degrees=20, max_shift=0.1, max_zoom=0.2)


def noise(n=8, channels=1, height=16, width=16, seed=0):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def disc(height, width, radius, row=None, column=None):
    """An image with a soft-edged disc of 1 on a background of -1."""
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    row, column = (height - 1) / 2 if row is None else row, (width - 1) / 2 if column is None else column
    distance = ((y - row) ** 2 + (x - column) ** 2).sqrt()
    return (radius + 0.5 - distance).clamp(0, 1).mul(2).sub(1).expand(1, 1, height, width)


def centres(images):
    """Centre of mass above the background (N, 2), as row and column."""
    mass = images[:, 0].double() + 1
    _, height, width = mass.shape
    total = mass.sum(dim=(1, 2))
    rows = (mass.sum(dim=2) * torch.arange(height)).sum(dim=1) / total
    columns = (mass.sum(dim=1) * torch.arange(width)).sum(dim=1) / total
    return torch.stack([rows, columns], dim=1)


def test_same_seed_same_image_and_other_seed_another():
    images = noise(1).expand(20, 1, 16, 16)
    first, mirrored = augment(images, EVERYTHING, range(20))
    again, mirrored_again = augment(images, EVERYTHING, range(20))
    assert torch.equal(first, again) and np.array_equal(mirrored, mirrored_again)
    assert len({image.numpy().tobytes() for image in first}) == 20


def test_an_image_does_not_depend_on_its_batch():
    images, seeds = noise(6), [3, 1, 4, 1, 5, 2**63]
    together, mirrored = augment(images, EVERYTHING, seeds)
    for i in range(6):
        alone, alone_mirrored = augment(images[i : i + 1], EVERYTHING, seeds[i : i + 1])
        assert torch.equal(alone[0], together[i]) and alone_mirrored[0] == mirrored[i]
    backwards, _ = augment(images.flip(0), EVERYTHING, seeds[::-1])
    assert torch.equal(backwards.flip(0), together)


@pytest.mark.parametrize("size", [(4, 4), (5, 4), (80, 64), (1, 1), (2, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_type_and_range_are_kept(size, channels):
    images = noise(16, channels, *size).sign()
    moved, mirrored = augment(images, EVERYTHING, range(16))
    assert moved.shape == images.shape and moved.dtype == torch.float32 and type(moved) is torch.Tensor
    assert -1 <= float(moved.min()) and float(moved.max()) <= 1
    assert mirrored.shape == (16,) and mirrored.dtype == bool


def test_input_is_left_alone():
    images = noise()
    before = images.clone()
    augment(images, EVERYTHING, range(8))
    assert torch.equal(images, before)


def test_background_stays_background():
    images = torch.full((8, 1, 20, 20), -1.0)
    assert torch.equal(augment(images, EVERYTHING, range(8))[0], images)
    white, _ = augment(-images, Augmentation(max_shift=0.5), range(8))
    assert all(float(image.min()) == -1.0 for image in white), "what comes into view is not background"


def test_off_is_exactly_the_identity():
    images = noise()
    for settings in (Augmentation(), Augmentation("mammogram", 0, 0, 0, 0)):
        same, mirrored = augment(images, settings, range(8))
        assert torch.equal(same, images) and not mirrored.any()


def test_flip_is_an_exact_mirror_and_reported():
    images = noise(200, 2, 6, 5)
    flipped, mirrored = augment(images, Augmentation(flip_lr=0.5), range(200))
    assert torch.equal(flipped[mirrored], images[mirrored].flip(-1))
    assert torch.equal(flipped[~mirrored], images[~mirrored])
    assert 70 < mirrored.sum() < 130
    assert augment(images, Augmentation(flip_lr=1), range(200))[1].all()


def test_mirrored_is_reported_with_the_other_changes_on():
    """A disc on the left is on the right of those images, and of those alone, that are said to be mirrored."""
    images = disc(40, 40, 4, column=8).expand(50, 1, 40, 40)
    moved, mirrored = augment(images, Augmentation("mammogram"), range(50))
    assert np.array_equal((centres(moved)[:, 1] > 20).numpy(), mirrored) and 10 < mirrored.sum() < 40


def test_switching_the_flip_off_keeps_the_other_changes():
    images = disc(33, 33, 6, row=10).expand(20, 1, 33, 33)
    with_flip, mirrored = augment(images, Augmentation("mammogram"), range(20))
    without, _ = augment(images, Augmentation("mammogram", flip_lr=0), range(20))
    assert torch.equal(with_flip[~mirrored], without[~mirrored])


@pytest.mark.parametrize("degrees", [5, 30])
def test_rotation_stays_within_its_limit(degrees):
    image = torch.full((1, 1, 65, 65), -1.0)
    image[..., 31:34, 8:57] = 1.0
    moved, _ = augment(image.expand(60, 1, 65, 65), Augmentation(max_rotation_degrees=degrees), range(60))
    y, x = torch.meshgrid(torch.arange(65.0) - 32, torch.arange(65.0) - 32, indexing="ij")
    mass = moved[:, 0] + 1
    angles = 0.5 * torch.atan2(2 * (mass * x * y).sum(dim=(1, 2)), (mass * (x * x - y * y)).sum(dim=(1, 2)))
    angles = torch.rad2deg(angles)
    assert 0.85 * degrees < float(angles.abs().max()) < 1.02 * degrees
    assert float(angles.min()) < 0 < float(angles.max())


def test_rotation_is_rigid_on_other_shapes_than_squares():
    """A disc in the middle of a 3:1 image stays a disc."""
    images = disc(30, 90, 10).expand(8, 1, 30, 90)
    turned, _ = augment(images, Augmentation(max_rotation_degrees=45), range(8))
    assert float((turned - images).abs().mean()) < 0.01


def test_shift_stays_within_its_share_of_each_side():
    images = disc(40, 80, 3).expand(100, 1, 40, 80)
    moved, _ = augment(images, Augmentation(max_shift=0.1, max_zoom=0.2, max_rotation_degrees=45), range(100))
    rows, columns = (centres(moved) - centres(images)).abs().max(dim=0).values.tolist()
    assert 3.5 < rows < 4.05 and 7.0 < columns < 8.05


def test_zoom_stays_within_its_limit_and_keeps_shapes():
    image = disc(64, 64, 16)
    moved, _ = augment(image.expand(60, 1, 64, 64), Augmentation(max_zoom=0.2), range(60))
    mass = (moved[:, 0] + 1).double()
    sizes = (mass.sum(dim=(1, 2)) / (image + 1).sum()).sqrt()
    assert 0.79 < float(sizes.min()) < 0.85 and 1.15 < float(sizes.max()) < 1.21
    height, width = mass[:, :, 32].sum(dim=1), mass[:, 32, :].sum(dim=1)
    torch.testing.assert_close(height, width, rtol=0.005, atol=0)


def test_global_generators_are_not_touched():
    augment(noise(1), EVERYTHING, [0])  # imports
    numpy_before, torch_before = np.random.get_state(), torch.get_rng_state()
    augment(noise(), EVERYTHING, range(8))
    numpy_after = np.random.get_state()
    assert np.array_equal(numpy_before[1], numpy_after[1]) and numpy_before[2] == numpy_after[2]
    assert torch.equal(torch_before, torch.get_rng_state())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        np.random.seed(1)
        first, _ = augment(noise(), EVERYTHING, range(8))
        torch.manual_seed(2)
        np.random.seed(2)
        second, _ = augment(noise(), EVERYTHING, range(8))
    np.random.set_state(numpy_before)
    assert torch.equal(first, second)


def test_monai_is_imported_only_where_it_is_used():
    code = (
        "import sys, torch; from datamodules.batches.augmentation import Augmentation, augment\n"
        "images = torch.zeros(2, 1, 4, 4)\n"
        "augment(images, Augmentation(), [0, 1]); augment(images, Augmentation('kidney_ct', None, 0, 0, 0), [0, 1])\n"
        "assert 'monai' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_preset_but_mammogram_exchanges_left_and_right():
    assert PRESETS == {
        "off": (0, 0, 0, 0),
        "mammogram": (0.5, 5, 0.02, 0.05),
        "chest_xray": (0, 5, 0.03, 0.05),
        "kidney_ct": (0, 5, 0.03, 0.05),
    }


def test_values_that_are_given_replace_the_presets():
    assert not Augmentation().active and Augmentation("chest_xray").active
    assert Augmentation("mammogram", flip_lr=0).limits == (0, 5, 0.02, 0.05)
    assert Augmentation(max_zoom=0.1).limits == (0, 0, 0, 0.1) and Augmentation(max_zoom=0.1).active
    assert Augmentation("kidney_ct", max_rotation_degrees=2, max_shift=0).limits == (0, 2, 0, 0.05)


@pytest.mark.parametrize(
    "arguments",
    [
        {"flip_lr": 2},
        {"max_rotation_degrees": -1},
        {"max_shift": 0.9},
        {"max_zoom": 0.6},
        {"max_zoom": float("nan")},
        {"preset": "ct"},
    ],
)
def test_impossible_augmentations_are_refused(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name}="):
        Augmentation(**arguments)


def test_wrong_number_of_seeds_is_refused():
    for settings in (EVERYTHING, Augmentation()):
        with pytest.raises(ValueError, match="3 seeds"):
            augment(noise(4), settings, range(3))
    with pytest.raises(ValueError, match="shape"):
        augment(noise(4)[0], EVERYTHING, [0])


def test_empty_batch():
    empty, mirrored = augment(noise(0), EVERYTHING, [])
    assert empty.shape == (0, 1, 16, 16) and mirrored.shape == (0,)
