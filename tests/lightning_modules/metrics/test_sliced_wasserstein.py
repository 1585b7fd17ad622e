import numpy as np
import pytest
import torch
from scipy.ndimage import convolve
from scipy.stats import wasserstein_distance

from datamodules.phantom_drawings import kidney_ct
from lightning_modules.metrics.score import TooFewImagesError
from lightning_modules.metrics.sliced_wasserstein import (
    LaplacianPatches,
    SlicedWasserstein,
    enlarge,
    laplacian_pyramid,
    sliced_wasserstein,
)


def drawings(indices, size=32):
    return torch.stack([torch.from_numpy(kidney_ct.draw(i, size, size))[None] for i in indices]) * 2 - 1


def normal(*counts, d=49, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=random) for n in counts]


@pytest.mark.parametrize("n, m", [(60, 60), (60, 45), (7, 100), (1, 3)])
def test_equals_scipys_distance_along_each_direction(n, m):
    a, b = normal(n, m)
    b = b.exp()
    axes = np.random.default_rng(3).standard_normal((16, 49))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    a_standard, b_standard = ((x.numpy() - x.numpy().mean()) / x.numpy().std() for x in (a, b))
    expected = np.mean([wasserstein_distance(a_standard @ axis, b_standard @ axis) for axis in axes])
    assert sliced_wasserstein(a, b, directions=16, seed=3) == pytest.approx(expected, rel=1e-5)
    assert expected > 0.05


def test_zero_to_itself_symmetric_and_blind_to_gain():
    a, b = normal(200, 150)
    b = b.exp()
    assert sliced_wasserstein(a, a) == 0.0
    assert sliced_wasserstein(a, b) == pytest.approx(sliced_wasserstein(b, a), rel=1e-6)
    assert sliced_wasserstein(5 * a + 2, b) == pytest.approx(sliced_wasserstein(a, b), rel=1e-4)
    assert np.isfinite(sliced_wasserstein(torch.zeros(9, 49), a))
    with pytest.raises(ValueError, match="different lengths: 49 and 3"):
        sliced_wasserstein(a, b[:, :3])


@pytest.mark.parametrize("shape", [(32, 32), (64, 48), (70, 33), (16, 40)])
def test_pyramid_adds_up_to_the_images(shape):
    images = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    levels = laplacian_pyramid(images)
    assert len(levels) == 1 + int(np.log2(min(shape) // 16)) and min(levels[-1].shape[2:]) >= 16
    whole = levels[-1]
    for level in reversed(levels[:-1]):
        whole = enlarge(whole, level.shape[2:]) + level
    torch.testing.assert_close(whole, images)


def test_pyramid_filters_with_the_binomial():
    image = torch.randn(1, 1, 40, 34, generator=torch.Generator().manual_seed(0))
    weights = np.array([1, 4, 6, 4, 1]) / 16
    expected = convolve(image[0, 0].numpy(), np.outer(weights, weights), mode="mirror")[::2, ::2]
    np.testing.assert_allclose(laplacian_pyramid(image)[1][0, 0], expected, atol=1e-5)
    torch.testing.assert_close(laplacian_pyramid(torch.ones(1, 1, 64, 64))[0], torch.zeros(1, 1, 64, 64))


@pytest.mark.parametrize("shape, levels", [((1, 64, 64), 3), ((3, 33, 47), 2), ((1, 16, 20), 1)])
def test_vectors_are_patches_of_the_image_alone(shape, levels):
    images = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    net = LaplacianPatches()
    vectors = net(images)
    assert vectors.shape == (3, levels * net.dimensions)
    torch.testing.assert_close(net(images[1:2]), vectors[1:2])
    patch = vectors[0, :49].view(7, 7)
    fine = laplacian_pyramid(images.mean(dim=1, keepdim=True))[0][0, 0]
    places = (fine.unfold(0, 7, 1).unfold(1, 7, 1) - patch).abs().amax(dim=(2, 3))
    assert places.min() < 1e-6
    assert len({tuple(row.tolist()) for row in vectors[0].view(-1, 49)}) > 20 * levels


def test_blur_and_noise_are_seen():
    net = LaplacianPatches()
    real, other = drawings(range(0, 160, 2)), drawings(range(1, 161, 2))
    blurred = torch.nn.functional.avg_pool2d(other, 3, stride=1, padding=1)
    noisy = (other + 0.5 * torch.randn(other.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    floor, *failures = (
        SlicedWasserstein().measure(net(real), net(x))["sliced_wasserstein"] for x in (other, blurred, noisy)
    )
    assert min(failures) > 1.5 * floor > 0


def test_instrument_refuses_too_few_and_too_small():
    assert isinstance(SlicedWasserstein().reads, LaplacianPatches)
    with pytest.raises(TooFewImagesError, match="SlicedWasserstein needs at least 2"):
        SlicedWasserstein().measure(torch.randn(3, 1568), torch.randn(1, 1568))
    with pytest.raises(ValueError, match=r"at least 16 pixels a side, got \(15, 40\)"):
        LaplacianPatches()(torch.zeros(1, 1, 15, 40))
