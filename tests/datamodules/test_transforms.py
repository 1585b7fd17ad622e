import numpy as np
import pytest
import torch

from datamodules.transforms import Augmentation, augment, resize


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_shrinking_by_whole_numbers_averages_boxes():
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    np.testing.assert_allclose(resize(image, 2, 2)[0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_allclose(resize(image, 4, 2)[0, 0], [0.5, 2.5])


@pytest.mark.parametrize("size", [(3, 5), (10, 10), (7, 4)])
def test_any_size_keeps_mean_and_range(size):
    image = np.random.default_rng(0).random((2, 8, 8), dtype=np.float32)
    small = resize(image, *size)
    assert small.shape == (2, *size) and small.dtype == np.float32
    assert small.min() >= image.min() - 1e-6 and small.max() <= image.max() + 1e-6
    np.testing.assert_allclose(resize(np.full((1, 9, 9), 3.0, np.float32), *size), 3.0, rtol=1e-6)


def test_same_size_is_untouched():
    image = np.random.default_rng(0).random((1, 8, 8), dtype=np.float32)
    assert resize(image, 8, 8) is image


def test_flip_mirrors_each_image_or_leaves_it():
    images = torch.rand(64, 1, 6, 5) * 2 - 1
    flipped = augment(images, Augmentation(flip_lr=0.5), generator())
    mirrored = [torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(flipped, images, strict=True)]
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(flipped, images, strict=True)]
    assert all(m or s for m, s in zip(mirrored, same, strict=True))
    assert 16 < sum(mirrored) < 48


def test_shift_moves_by_at_most_its_share_and_fills_with_background():
    images = torch.full((32, 1, 20, 20), -1.0)
    images[:, :, 10, 10] = 1.0
    moved = augment(images, Augmentation(max_shift=0.2), generator())
    assert float(moved.min()) >= -1.0001
    rows = ((moved[:, 0] + 1).sum(dim=2) * torch.arange(20)).sum(dim=1) / (moved[:, 0] + 1).sum(dim=(1, 2))
    assert 1.0 < float((rows - 10).abs().max()) <= 4.001


def test_rotation_is_rigid_on_other_shapes_than_squares():
    """A disc in the middle of a 3:1 image stays a disc."""
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(90.0), indexing="ij")
    disc = ((y - 14.5) ** 2 + (x - 44.5) ** 2 < 100).float() * 2 - 1
    turned = augment(disc.expand(8, 1, 30, 90), Augmentation(max_rotation_degrees=45), generator())
    assert float((turned - disc).abs().mean()) < 0.02


def test_augmentation_is_a_function_of_its_generator():
    images = torch.rand(4, 1, 8, 8)
    settings = Augmentation(flip_lr=0.5, max_rotation_degrees=10, max_shift=0.1)
    assert torch.equal(augment(images, settings, generator(1)), augment(images, settings, generator(1)))
    assert not torch.equal(augment(images, settings, generator(1)), augment(images, settings, generator(2)))


@pytest.mark.parametrize("arguments", [{"flip_lr": 2}, {"max_rotation_degrees": -1}, {"max_shift": 0.9}])
def test_impossible_augmentations_are_refused(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name}="):
        Augmentation(**arguments)


def test_augmentation_is_off_by_default():
    assert not Augmentation().active
