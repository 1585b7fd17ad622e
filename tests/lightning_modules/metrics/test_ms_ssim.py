import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as oracle

from datamodules.phantom_drawings import chest_xray
from lightning_modules.metrics.ms_ssim import WEIGHTS, Diversity, PairSimilarity, ms_ssim
from lightning_modules.metrics.score import TooFewImagesError


def drawings(count, size, first=0):
    return torch.stack([torch.from_numpy(chest_xray.draw(i + first, size, size))[None] for i in range(count)]) * 2 - 1


def by_definition(a, b, scales):
    """Wang 2003, equations 3 to 7, for one channel, with C1 and C2 for values in [-1, 1]; windows inside the image."""
    a, b = a.double().numpy()[0], b.double().numpy()[0]
    weights, value = np.array(WEIGHTS[:scales]) / sum(WEIGHTS[:scales]), 1.0

    def blur(x):
        return gaussian_filter(x, 1.5, truncate=3.5)[5:-5, 5:-5]

    for scale in range(scales):
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
        structure = (2 * cov + 0.06**2) / (var_a + var_b + 0.06**2)
        luminance = (2 * mean_a * mean_b + 0.02**2) / (mean_a**2 + mean_b**2 + 0.02**2)
        last = scale == scales - 1
        value *= max(0.0, (structure * luminance if last else structure).mean()) ** weights[scale]
        a, b = (x.reshape(len(x) // 2, 2, -1, 2).mean(axis=(1, 3)) if not last else x for x in (a, b))
    return value


@pytest.mark.parametrize("size, scales", [(16, 1), (32, 2), (64, 3), (88, 4), (176, 5)])
def test_equals_the_definition(size, scales):
    images = drawings(2, size)
    noisy = images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    expected = [by_definition(a, b, scales) for a, b in zip(images, noisy, strict=True)]
    assert 0.1 < min(expected) and max(expected) < 0.999
    np.testing.assert_allclose(ms_ssim(images, noisy), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 11, 30), (1, 21, 21), (3, 40, 33), (1, 44, 60), (2, 90, 88), (1, 176, 180)])
def test_any_shape_and_equal_images_are_equal(shape):
    images = torch.rand(3, *shape) * 2 - 1
    torch.testing.assert_close(ms_ssim(images, images), torch.ones(3).double())
    torch.testing.assert_close(ms_ssim(images, images.flip(0)), ms_ssim(images.flip(0), images))


@pytest.mark.parametrize("shape", [(1, 192, 192), (3, 176, 240)])
def test_agrees_with_torchmetrics(shape):
    """It mirrors the edges of the coarsest scale, where windows here stay inside."""
    random = torch.Generator().manual_seed(0)
    a = torch.nn.functional.interpolate(torch.rand(2, shape[0], 24, 24, generator=random) * 2 - 1, shape[1:])
    b = (a + 0.5 * torch.randn(a.shape, generator=random)).clamp(-1, 1)
    expected = oracle(a, b, data_range=2.0, reduction="none")
    assert 0.5 < expected.min() and expected.max() < 0.96
    torch.testing.assert_close(ms_ssim(a, b).float(), expected, rtol=0.0, atol=0.01)


def test_each_image_is_in_one_pair():
    images = drawings(5, 48)
    found = PairSimilarity()(images)
    one, other = (float(ms_ssim(images[i : i + 1], images[i + 1 : i + 2])) for i in (0, 2))
    assert found.shape == (5, 1) and found.dtype == torch.float32
    assert found[:, 0].tolist() == pytest.approx([one, one, other, other, float("nan")], abs=1e-5, nan_ok=True)
    torch.testing.assert_close(PairSimilarity()(images[:4]), found[:4])


def test_pairs_are_independent():
    """400 sets of 20 images: the standard error by the spread within a set is the spread of the means of sets."""
    random, net = torch.Generator().manual_seed(0), PairSimilarity()
    pattern = torch.rand(16, 16, generator=random) * 2 - 1
    # Contrast differs from image to image, so that one image makes all its pairs alike or unlike.
    contrast = torch.rand(400, 20, 1, 1, 1, generator=random)
    pairs = torch.stack([net(images)[::2, 0] for images in contrast * pattern]).double()
    reported = (pairs.var(dim=1).mean() / pairs.shape[1]).sqrt()
    assert float(pairs.mean(dim=1).std() / reported) == pytest.approx(1.0, abs=0.1)


def test_repetition_is_seen():
    various, net = drawings(24, 48)[::2], PairSimilarity()  # of twelve patients
    collapsed = various[:1] + 0.02 * torch.randn(12, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    (usual,), (repeated,) = (
        Diversity().measure(net(various)[::2], net(x.clamp(-1, 1))[::2]).values() for x in (various, collapsed)
    )
    assert repeated > usual + 0.05


def test_too_small_and_too_few_are_refused():
    with pytest.raises(ValueError, match="at least 11 pixels a side, got 10"):
        PairSimilarity()(torch.zeros(2, 1, 10, 40))
    with pytest.raises(ValueError, match="batches of at least 2"):
        PairSimilarity()(torch.zeros(1, 1, 40, 40))
    with pytest.raises(ValueError, match="different shapes"):
        ms_ssim(torch.zeros(2, 1, 20, 20), torch.zeros(2, 1, 20, 21))
    values = torch.tensor([[0.2], [0.4]])
    assert Diversity().measure(values, values) == {"ms_ssim": pytest.approx(0.3)}
    assert isinstance(Diversity().reads, PairSimilarity)
    with pytest.raises(TooFewImagesError, match="Diversity needs at least 2 pairs of each set, got 1"):
        Diversity().measure(values, values[:1])
