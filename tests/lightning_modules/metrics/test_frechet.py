"""The Frechet distance against closed forms, scipy and torchmetrics."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from lightning_modules.metrics.frechet import (
    FeatureSums,
    Frechet,
    FrechetInfinity,
    FrechetSingleRoot,
    GaussianStatistics,
    _by_cross_gram,
    frechet_distance,
    frechet_distance_of,
    frechet_infinity,
)
from lightning_modules.metrics.score import TooFewImagesError


def statistics(features):
    sums = FeatureSums(features.shape[1])
    sums.add(features)
    return sums.statistics()


def correlated(n, d, seed):
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=random, dtype=torch.float64)
    return torch.randn(n, d, generator=random, dtype=torch.float64) @ mix + torch.randn(d, generator=random)


def by_scipy(a, b):
    root = sqrtm((a.covariance @ b.covariance).numpy())
    traces = np.trace(a.covariance.numpy() + b.covariance.numpy() - 2 * np.real(root))
    return float((a.mean - b.mean).square().sum()) + float(traces)


def test_statistics_are_mean_and_unbiased_covariance():
    features = correlated(50, 6, 0)
    sums = FeatureSums(6)
    for part in features.split(7):
        sums.add(part)
    found = sums.statistics()
    torch.testing.assert_close(found.mean, features.mean(dim=0))
    torch.testing.assert_close(found.covariance, torch.from_numpy(np.cov(features.numpy(), rowvar=False)))
    assert found.count == 50


def test_statistics_survive_large_means():
    features = correlated(500, 4, 0)
    torch.testing.assert_close(
        statistics(features + 1e5).covariance, statistics(features).covariance, rtol=1e-4, atol=1e-3
    )


def test_distance_to_itself_is_zero_and_symmetric():
    a, b = statistics(correlated(300, 10, 0)), statistics(correlated(200, 10, 1))
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_shift_of_the_mean_adds_its_square():
    a = statistics(correlated(300, 5, 0))
    shifted = GaussianStatistics(a.mean + 2.0, a.covariance, a.count)
    assert frechet_distance(a, shifted) == pytest.approx(20.0, rel=1e-6)


def test_diagonal_gaussians_have_a_closed_form():
    d1, d2 = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 1.0, 16.0]).double()
    zero = torch.zeros(3, dtype=torch.float64)
    distance = frechet_distance(GaussianStatistics(zero, d1.diag(), 9), GaussianStatistics(zero, d2.diag(), 9))
    assert distance == pytest.approx(float((d1.sqrt() - d2.sqrt()).square().sum()))


@pytest.mark.parametrize("n, m, d", [(500, 400, 32), (2000, 1500, 100)])
def test_distance_equals_scipys_matrix_root(n, m, d):
    a, b = statistics(correlated(n, d, 0)), statistics(correlated(m, d, 1))
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-6)


def test_fewer_images_than_dimensions():
    """Both covariances are singular; their product's root is that of the small Gram matrix of centred features."""
    x, y = correlated(20, 64, 0), correlated(30, 64, 1)
    a, b = statistics(x), statistics(y)
    left, right = (x - x.mean(0)) / 19**0.5, (y - y.mean(0)) / 29**0.5
    nuclear = float(torch.linalg.svdvals(left @ right.T).sum())
    expected = float((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()) - 2 * nuclear
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


class Flatten(nn.Module):
    num_features = 48

    def forward(self, images):
        return images.flatten(1)


def test_distance_equals_torchmetrics_on_the_same_features():
    torch.manual_seed(0)
    real, fake = torch.rand(200, 3, 4, 4), torch.rand(150, 3, 4, 4) ** 2
    oracle = FrechetInceptionDistance(feature=Flatten(), normalize=True, input_img_size=(3, 4, 4)).set_dtype(
        torch.float64
    )
    oracle.update(real, real=True)
    oracle.update(fake, real=False)
    ours = frechet_distance(statistics(real.flatten(1)), statistics(fake.flatten(1)))
    assert ours == pytest.approx(float(oracle.compute()), rel=1e-4)


def test_distance_grows_with_the_shift():
    a = correlated(400, 8, 0)
    distances = [frechet_distance(statistics(a), statistics(a + shift)) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert distances == sorted(distances)
    assert distances[1] > 0.1


def test_one_image_and_other_lengths_are_refused():
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        statistics(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="different lengths: 3 and 4"):
        frechet_distance(statistics(torch.randn(9, 3)), statistics(torch.randn(9, 4)))


@pytest.mark.parametrize("n, m, d", [(60, 50, 48), (300, 90, 20)])
def test_both_exact_routes_agree(n, m, d):
    a, b = correlated(n, d, 0), correlated(m, d, 1)
    by_covariance = frechet_distance(statistics(a), statistics(b))
    assert _by_cross_gram(a, b) == pytest.approx(by_covariance, rel=1e-8)
    assert frechet_distance_of(a, b) == pytest.approx(by_covariance, rel=1e-8)


@pytest.mark.parametrize("n, m, d", [(20, 30, 64), (8, 90, 64), (2, 2, 5)])
def test_few_images_take_the_small_matrix(n, m, d, monkeypatch):
    a, b = correlated(n, d, 0), correlated(m, d, 1)
    by_covariance = frechet_distance(statistics(a), statistics(b))
    monkeypatch.setattr("lightning_modules.metrics.frechet._factor", None)
    assert frechet_distance_of(a, b) == pytest.approx(by_covariance, rel=1e-6)
    assert frechet_distance_of(a, a) == pytest.approx(0.0, abs=1e-9)


def test_infinity_undoes_the_growth_with_fewer_images():
    """The limit is measured against a standard normal whose covariance is all but known; the bias of 400 is not."""
    random = torch.Generator().manual_seed(0)
    real = torch.randn(60_000, 16, generator=random)
    shifted = torch.randn(40, 400, 16, generator=random) + 0.5
    limits = [frechet_infinity(real, generated) for generated in shifted]
    plain = [frechet_distance_of(real, generated) for generated in shifted]
    exact = 16 * 0.25
    standard_error = np.std(limits) / 40**0.5
    assert abs(np.mean(limits) - exact) < 3 * standard_error + 0.01
    assert np.mean(plain) - exact > 0.15


@pytest.mark.parametrize("d", [6, 100])
def test_infinity_is_the_intercept_of_a_line(d):
    real, generated = correlated(90, d, 0), correlated(80, d, 1)
    order = torch.from_numpy(np.random.default_rng(0).permutation(80))
    pairs = [(1 / n, frechet_distance_of(real, generated[order[:n]])) for n in (16, 80)]
    (x1, y1), (x0, y0) = pairs
    expected = y0 - x0 * (y1 - y0) / (x1 - x0)
    assert frechet_infinity(real, generated, points=2) == pytest.approx(expected, rel=1e-8)


def test_instruments_name_and_refuse():
    a, b = correlated(60, 5, 0), correlated(40, 5, 1)
    assert Frechet().measure(a, b) == {"frechet": pytest.approx(frechet_distance(statistics(a), statistics(b)))}
    assert FrechetInfinity().measure(a, b) == {"frechet_infinity": frechet_infinity(a, b)}
    assert (Frechet().enough(240), FrechetInfinity().enough(240)) == (480, 2400)
    with pytest.raises(TooFewImagesError, match="at least 2 images of each set, got 1"):
        Frechet().measure(a, b[:1])
    with pytest.raises(TooFewImagesError, match="at least 20 images of each set, got 19"):
        FrechetInfinity().measure(a, b[:19])
    with pytest.raises(ValueError, match="points=1"):
        FrechetInfinity(points=1)
    with pytest.raises(ValueError, match=r"smallest of 5 sets would have 1 of 9"):
        frechet_infinity(a, b[:9])
    for function in (frechet_distance_of, frechet_infinity):
        with pytest.raises(ValueError, match="different lengths: 5 and 4"):
            function(a, b[:, :4])
    with pytest.raises(ValueError, match="at least 2 images, got 60 and 1"):
        frechet_distance_of(a, b[:1])


def test_the_formula_with_one_root_is_the_printed_one():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(300, 5)), random.normal(0.3, 1.5, size=(200, 5))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    shift = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    expected = shift + np.trace(np.cov(a.T) + np.cov(b.T) - root)
    found = FrechetSingleRoot().measure(torch.from_numpy(a), torch.from_numpy(b))
    assert found == {"frechet_single_root": pytest.approx(expected, rel=1e-6)}
    itself = FrechetSingleRoot().measure(torch.from_numpy(a), torch.from_numpy(a))["frechet_single_root"]
    assert itself == pytest.approx(np.trace(np.cov(a.T)), rel=1e-6)  # no distance
