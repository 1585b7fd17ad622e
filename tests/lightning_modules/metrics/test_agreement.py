import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde, multivariate_normal

from lightning_modules.metrics.agreement import (
    MomentAgreement,
    MomentNeighbours,
    agreement,
    contour_coverage,
    density_levels,
    neighbours_within,
    standardise,
)
from lightning_modules.metrics.moments import NAMES, Moments
from lightning_modules.metrics.score import TooFewImagesError


def draw(count, seed, dimensions=5):
    """Correlated, skewed vectors, as moments are."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(99))
    return (torch.randn(count, dimensions, generator=random) @ mixing * 0.3).exp()


def test_one_distribution_agrees_and_disjoint_ones_do_not():
    real, generated = draw(1000, 0), draw(1000, 1)
    assert agreement(real, generated).min() > 0.95
    assert agreement(real, generated + 1e4).max() == 0.0
    assert agreement(real, -generated).max() < 1e-6


def test_it_is_symmetric_and_blind_to_order():
    real, generated = draw(300, 0), draw(300, 1) * 1.5
    found = agreement(real, generated)
    assert torch.equal(found, found.T) and 0 < found.min() and found.max() < 1
    torch.testing.assert_close(agreement(generated, real), found)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(agreement(real[order], generated[order.flip(0)]), found)


def test_the_unit_of_a_moment_does_not_matter():
    real, generated = draw(300, 0).double(), draw(300, 1).double() * 1.5
    unit, zero = torch.tensor([1.0, 1e-3, 1e5, 7.0, 1e-6]), torch.tensor([3.0, 0.0, 1e4, -1.0, 0.0])
    torch.testing.assert_close(agreement(real * unit + zero, generated * unit + zero), agreement(real, generated))


def test_a_pair_tells_what_neither_moment_tells_alone():
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1000, generator=random)
    noise = 0.1 * torch.randn(2, 1000, generator=random)
    real, generated = torch.stack([x, x + noise[0]], dim=1), torch.stack([y, -y + noise[1]], dim=1)
    found = agreement(real, generated)
    assert found.diagonal().min() > 0.9 and found[0, 1] < 0.2


@pytest.mark.parametrize("counts", [(900, 300), (300, 900)])
def test_unequal_sets_keep_both_ends_of_the_scale(counts):
    real, generated = draw(counts[0], 0), draw(counts[1], 1)
    assert agreement(real, generated).min() > 0.93
    assert agreement(real, generated + 1e4).max() < 1e-9
    assert neighbours_within(real, generated).numpy() == pytest.approx(6.0, abs=0.25)
    assert neighbours_within(real, generated + 1e4).tolist() == [3.0] * 5


def test_neighbours_are_six_for_one_distribution_and_three_for_disjoint_ones():
    found = [neighbours_within(draw(500, seed), draw(500, 100 + seed)) for seed in range(10)]
    assert torch.stack(found).mean() == pytest.approx(6.0, abs=0.03)
    assert neighbours_within(draw(500, 0), draw(500, 1) + 1e4).tolist() == [3.0] * 5


def test_neighbours_measure_the_overlap_of_supports():
    """Uniform on [0, 1] and on [0.4, 1.4]: 60 % of each lies in the other, whatever the density."""
    random = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 4000, 1, generator=random)
    assert neighbours_within(one, other + 0.4).item() == pytest.approx(3 + 3 * 0.6, abs=0.05)
    assert neighbours_within(one, other**2).item() == pytest.approx(6.0, abs=0.1)


def test_copies_of_one_image_are_not_many_neighbours_of_their_own():
    real, generated = draw(300, 0), draw(1, 1).expand(300, 5) + 1e4
    assert neighbours_within(real, generated).tolist() == [3.0] * 5


def test_subsets_keep_the_agreement_and_bootstrap_samples_do_not():
    real, generated = draw(1000, 0), draw(1000, 1)
    random = torch.Generator().manual_seed(0)
    half = torch.randperm(1000, generator=random)[:500]
    assert agreement(real[half], generated[half]).mean() > 0.97
    drawn = torch.randint(1000, (2, 1000), generator=random)
    assert agreement(real[drawn[0]], generated[drawn[1]]).mean() < 0.8  # why the module warns of them


def test_scaling_is_robust_and_defined_without_spread():
    points = torch.tensor([[0.0, 1.0, 5.0], [1.0, 1.0, 5.0], [2.0, 1.0, 5.0], [3.0, 1.0, 5.0], [1e9, 6.0, 5.0]])
    scaled = standardise(points, points)
    assert scaled[:4, 0].tolist() == [-1.0, -0.5, 0.0, 0.5]  # median 2, quartiles 1 and 3
    assert scaled[:, 1].tolist() == pytest.approx([0, 0, 0, 0, 2.5])  # standard deviation 2
    assert scaled[:, 2].tolist() == [0.0] * 5


@pytest.mark.parametrize("seed", range(3))
def test_density_is_scipys(seed):
    """To 0.1 % of the peak, for two sets of different size and correlation."""
    real, generated = draw(300, seed), draw(200, 10 + seed) * torch.tensor([1.0, 0.5, 1.0, 1.0, 1.0])
    found = contour_coverage(real, generated, (0, 1))
    places = np.stack(np.meshgrid(found.x[::20], found.y[::20]))
    for points, density in ((real, found.real), (generated, found.generated)):
        expected = gaussian_kde(points[:, :2].double().numpy().T)(places.reshape(2, -1)).reshape(places.shape[1:])
        assert np.abs(density[::20, ::20] - expected).max() < 1e-3 * density.max()
    cell = (found.x[1] - found.x[0]) * (found.y[1] - found.y[0])
    assert found.real.sum() * cell == pytest.approx(1.0, abs=1e-6)


def test_a_contour_encloses_its_percentile():
    """Of a normal distribution, p % lie within the ellipse of squared radius -2 ln(1 - p)."""
    x = np.linspace(-6, 6, 400)
    density = multivariate_normal(cov=[[1.0, 0.5], [0.5, 1.0]]).pdf(np.stack(np.meshgrid(x, x), axis=-1))
    found = density_levels(density, 50.0, 95.0, 97.0, 99.9)
    assert found == pytest.approx([density.max() * share for share in (0.5, 0.05, 0.03, 0.001)], rel=0.02)


def test_coverage_of_equal_disjoint_collapsed_and_wider_sets():
    real = draw(1000, 0)
    centre = real.median(dim=0).values
    assert contour_coverage(real, real, (0, 1)).coverage == 1.0
    assert contour_coverage(real, draw(1000, 1), (0, 1)).coverage > 0.85
    assert contour_coverage(real, real + 1e3, (0, 1)).coverage == 0.0
    collapsed, wider = centre + 0.3 * (real - centre), centre + 2.0 * (real - centre)
    assert contour_coverage(real, collapsed, (0, 1)).coverage < 0.3
    assert contour_coverage(real, wider, (0, 1)).coverage > 0.97
    assert contour_coverage(real, centre.expand(1000, 5), (0, 1)).coverage < 0.01


def test_a_moment_that_never_varies_has_no_contour():
    real = draw(100, 0)
    real[:, 1] = 2.0
    with pytest.raises(ValueError, match="the same in all 100 real images"):
        contour_coverage(real, real, (0, 1))


def test_the_instrument_names_its_numbers():
    score, real = MomentAgreement(), draw(500, 0)
    found, shifted = score.measure(real, draw(500, 1)), score.measure(real, draw(500, 1) * 1.3)
    singles = {f"moment_agreement_{name}" for name in NAMES}
    assert set(found) == {"moment_agreement", *singles}
    neighbours = MomentNeighbours().measure(real, draw(500, 1))
    assert neighbours == {"moment_neighbours": float(neighbours_within(real, draw(500, 1)).mean())}
    assert all(type(value) is float for value in found.values())
    assert shifted["moment_agreement"] < found["moment_agreement"] - 0.02
    table = agreement(real, draw(500, 1) * 1.3)
    assert shifted["moment_agreement"] == pytest.approx(np.mean([table[i, j] for i in range(5) for j in range(i, 5)]))
    assert shifted["moment_agreement_skewness"] == float(table[2, 2])
    assert isinstance(score.reads, Moments) and score.enough(5) >= score.at_least


def test_small_broken_or_other_sets_are_refused():
    score = MomentAgreement()
    with pytest.raises(TooFewImagesError, match="at least 50 images of each set, got 49"):
        score.measure(draw(200, 0), draw(49, 1))
    with pytest.raises(ValueError, match="not finite"):
        score.measure(draw(50, 0), torch.full((50, 5), torch.nan))
    with pytest.raises(TooFewImagesError, match="got 3"):
        agreement(draw(3, 0), draw(50, 1))


def test_points_on_a_line_do_not_ring_across_the_grid():
    """Skewness and kurtosis of real generators lie nearly on a line, far narrower than a place of the grid."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(500, 1, generator=random).double().exp()
    line = torch.cat([x, 8 * x + 0.002 * torch.randn(500, 1, generator=random).double()], dim=1)
    wide = torch.randn(500, 2, generator=random).double() * torch.tensor([3.0, 200.0])
    found = contour_coverage(wide, line, (0, 1))
    cell = np.diff(found.x)[0] * np.diff(found.y)[0]
    assert found.generated.sum() * cell == pytest.approx(1.0, abs=1e-3)
    inside = found.generated >= density_levels(found.generated, 99.99)[0]
    x, y = np.meshgrid(found.x, found.y)
    assert np.abs(y - 8 * x)[inside].max() < 20 * np.diff(found.y)[0] + 8 * 20 * np.diff(found.x)[0]
