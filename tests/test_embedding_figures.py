"""Figures of embeddings: components and Gaussians with known answers, and sets that have no density."""

import io

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from scipy.stats import gaussian_kde

from experiments.figures.embeddings import gaussian_samples, pairs_figure, project, scatter_figure
from lightning_modules.metrics.score import TooFewImagesError

pytestmark = pytest.mark.usefixtures("drawn")


def normal(count, dimensions, seed):
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def along(directions, spreads, count, seed):
    """Embeddings that vary in planted directions, uncorrelated and by exactly these standard deviations."""
    values = normal(count, len(spreads), seed)
    values = torch.linalg.qr(values - values.mean(dim=0)).Q * count**0.5  # orthogonal to 1, so still of mean 0
    return values * torch.tensor(spreads, dtype=torch.float64) @ directions


@pytest.fixture(scope="module")
def directions():
    return torch.linalg.qr(normal(40, 40, 9)).Q[:5]


def loadings(found, centred):
    """Least-squares directions of a set's components."""
    return torch.linalg.lstsq(found, centred).solution


def test_planted_directions_are_found_in_order(directions):
    real, generated = along(directions[:3], (5.0, 2.0, 1.0), 300, 0), along(directions[:3], (5.0, 2.0, 1.0), 200, 1)
    found = project(real + 7.0, generated + 7.0)
    assert found.explained == pytest.approx((25 / 30, 4 / 30, 1 / 30))
    assert found.real.std(dim=0, correction=0).tolist() == pytest.approx([5.0, 2.0, 1.0])
    cosines = loadings(found.real, real) @ directions[:3].T
    torch.testing.assert_close(cosines.abs(), torch.eye(3, dtype=torch.float64), atol=1e-9, rtol=0)


def test_sets_count_alike_whatever_their_size(directions):
    real, generated = along(directions[:1], (3.0,), 1000, 0), along(directions[1:2], (4.0,), 20, 1)
    found = project(real, generated)
    assert found.explained == pytest.approx((16 / 25, 9 / 25, 0.0), abs=1e-12)
    assert found.real[:, 0].abs().max() < 1e-9 < found.generated[:, 0].abs().max()  # what only generated ones vary in


def test_the_distance_of_means_is_a_component(directions):
    real = along(directions[:2], (1.0, 0.5), 100, 0)
    found = project(real, real + 20.0 * directions[3])
    assert found.explained[0] == pytest.approx(100.0 / 101.25)
    assert float((found.real[:, 0] - found.generated[:, 0]).abs().mean()) == pytest.approx(20.0)


@pytest.mark.parametrize("sizes", [(60, 50, 240), (12, 9, 40), (2, 2, 3)])
def test_components_are_those_of_a_full_decomposition(sizes):
    many, few, dimensions = sizes
    scale = 0.7 ** torch.arange(dimensions)
    real, generated = normal(many, dimensions, 0) * scale, normal(few, dimensions, 1) * scale + 0.1
    centre = (real.mean(dim=0) + generated.mean(dim=0)) / 2
    covariance = sum((x - centre).T @ (x - centre) / (2 * len(x)) for x in (real, generated))
    values, vectors = torch.linalg.eigh(covariance)
    found = project(real, generated)
    assert found.explained == pytest.approx((values / values.sum()).flip(0)[:3].tolist(), rel=1e-6, abs=1e-12)
    expected = (real - centre) @ vectors[:, -2:].flip(1)
    torch.testing.assert_close(found.real[:, :2].abs(), expected.abs(), atol=1e-4, rtol=1e-4)


def test_a_projection_has_one_sign():
    real, generated = normal(50, 8, 0).float(), normal(50, 8, 1).float()
    found, again, back = project(real, generated), project(real, generated), project(generated, real)
    assert torch.equal(found.real, again.real) and torch.equal(found.generated, again.generated)
    torch.testing.assert_close(found.real, back.generated)
    centred = torch.cat([real, generated]).double()
    largest = loadings(torch.cat([found.real, found.generated]), centred - centred.mean(dim=0))
    assert (torch.take_along_dim(largest, largest.abs().argmax(dim=1, keepdim=True), dim=1) > 0).all()


def test_samples_have_the_mean_and_the_covariance():
    features = normal(50, 4, 0) @ normal(4, 4, 1) + 10.0
    samples = gaussian_samples(features.float(), 200_000, seed=3)
    assert samples.dtype == torch.float64 and samples.shape == (200_000, 4)
    covariance = features.T.cov()
    error = (samples.T.cov() - covariance).abs().max() / covariance.abs().max()
    assert error < 0.015  # a variance's standard error is sqrt(2 / 200,000) = 0.3 %
    torch.testing.assert_close(samples.mean(dim=0), features.mean(dim=0), atol=0.05, rtol=0)
    kurtosis = ((samples - samples.mean(dim=0)) / samples.std(dim=0)).pow(4).mean(dim=0)
    torch.testing.assert_close(kurtosis, torch.full_like(kurtosis, 3.0), atol=0.1, rtol=0)


def test_samples_of_few_images_stay_where_images_differ():
    features = normal(6, 30, 0)
    samples = gaussian_samples(features, 100, seed=0)
    centred = samples - features.mean(dim=0)
    assert torch.linalg.matrix_rank(centred) == 5
    basis = torch.linalg.qr((features - features.mean(dim=0)).T[:, :5]).Q
    torch.testing.assert_close(centred @ basis @ basis.T, centred)
    assert torch.equal(gaussian_samples(features, 100, seed=0), samples)
    assert not torch.equal(gaussian_samples(features, 100, seed=1), samples)


def test_samples_of_copies_are_copies():
    features = torch.full((9, 5), 2.5)
    torch.testing.assert_close(gaussian_samples(features, 4, seed=0), torch.full((4, 5), 2.5, dtype=torch.float64))


def test_samples_of_components_are_components_of_samples():
    """The projection of the embeddings' Gaussian is the Gaussian of the projected embeddings."""
    features, directions = normal(40, 6, 0), torch.linalg.qr(normal(6, 3, 1)).Q
    short = gaussian_samples(features @ directions, 100_000, seed=0)
    long = gaussian_samples(features, 100_000, seed=1) @ directions
    torch.testing.assert_close(short.mean(dim=0), long.mean(dim=0), atol=0.03, rtol=0)
    torch.testing.assert_close(short.T.cov(), long.T.cov(), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("real", "generated", "said"),
    [
        (normal(1, 5, 0), normal(9, 5, 1), "at least 2 images of each set, got 1 and 9"),
        (normal(9, 5, 0), normal(9, 6, 1), r"shapes \(9, 5\) and \(9, 6\)"),
        (normal(9, 2, 0), normal(9, 2, 1), "features of 2 numbers have no 3 components"),
        (normal(9, 5, 0), normal(9, 5, 1) / 0.0, "not finite"),
    ],
)
def test_what_has_no_components_is_refused(real, generated, said):
    with pytest.raises(ValueError, match=said):
        project(real, generated)


def test_one_image_has_no_gaussian():
    with pytest.raises(TooFewImagesError, match="got 1"):
        gaussian_samples(normal(1, 5, 0), 3, seed=0)


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    return buffer.getvalue()


def points_in(axes):
    return sum(len(found.get_offsets()) for found in axes.collections if type(found) is PathCollection)


def test_figures_show_the_gaussians_and_the_embeddings():
    real, generated = normal(80, 12, 0), 0.5 * normal(60, 12, 1).exp()
    scatter, pairs = scatter_figure(real, generated, seed=0), pairs_figure(real, generated, seed=0)
    png(scatter)
    assert [place.get_suptitle()[:7] for place in scatter.subfigs] == ["samples", "the emb"]
    assert len(scatter.axes) == 6 and sum(axes.axison for axes in pairs.axes) == 12
    solid, flat, density = scatter.subfigs[1].axes
    assert points_in(flat) == 140 and points_in(density) == 0 and len(solid.collections[0].get_offsets()) == 140
    share = project(real, generated).explained[1]
    assert flat.get_ylabel() == f"component 2 ({100 * share:.0f} %)"
    assert [axes.get_xlim() for axes in scatter.subfigs[0].axes] == [axes.get_xlim() for axes in (solid, flat, density)]
    np.testing.assert_allclose(np.sort(flat.collections[0].get_offsets()[:, 0]), sorted_components(real, generated))


def sorted_components(real, generated):
    found = project(real, generated)
    return torch.cat([found.real, found.generated])[:, 0].sort().values.numpy()


def test_contours_are_those_of_the_kernel_density():
    """A slanted, narrow set: on a contour the density is the same, and the outermost encloses 95 % of it."""
    directions = torch.linalg.qr(normal(3, 3, 1)).Q
    real = normal(400, 3, 0) * torch.tensor([5.0, 0.2, 0.01], dtype=torch.float64) @ directions
    generated = real + 7.0 * (directions[0] + directions[1])
    figure = scatter_figure(real, generated, seed=0)
    density = gaussian_kde(project(real, generated).real[:, :2].numpy().T)
    filled, lines = figure.subfigs[1].axes[2].collections[:2]
    assert len(filled.get_paths()) == 1 and len(lines.get_paths()) == 4
    on_contours = [density(path.vertices.T) for path in lines.get_paths()]
    assert all(values.std() < 0.03 * values.mean() for values in on_contours)
    sample = density.resample(4000, seed=0)
    for values, enclosed in zip(on_contours, (0.95, 0.75, 0.5, 0.25), strict=True):
        assert float((density(sample) > values.mean()).mean()) == pytest.approx(enclosed, abs=0.025)


def on_a_line(count):
    return torch.linspace(-1, 1, count, dtype=torch.float64)[:, None] * normal(1, 12, 5)


@pytest.mark.parametrize(
    "generated",
    [
        normal(1, 12, 1).expand(40, 12),
        normal(1, 12, 1).expand(40, 12) + 1e-7 * normal(40, 12, 2),
        on_a_line(40),
        normal(3, 12, 3).repeat(10, 1),
        normal(2, 12, 3),
    ],
    ids=["one image", "one image and rounding", "a line", "three images", "two images"],
)
def test_collapsed_generators_are_drawn(generated):
    real = normal(50, 12, 0)
    scatter = scatter_figure(real, generated, seed=0)
    png(pairs_figure(real, generated, seed=0))
    density = scatter.subfigs[1].axes[2]
    narrow = torch.linalg.matrix_rank(generated - generated[0], atol=1e-3) < 2
    assert points_in(density) == (len(generated) if narrow else 0)


def test_one_image_is_a_vertical_line_on_the_diagonal():
    generated = normal(1, 12, 1).expand(40, 12)
    real = normal(50, 12, 0)
    first = pairs_figure(real, generated, seed=0).subfigs[1].axes[0]
    ours, theirs = first.lines
    assert len(ours.get_xdata()) == 300
    np.testing.assert_allclose(theirs.get_xdata(), float(project(real, generated).generated[0, 0]))


def test_figures_of_one_image_only_are_drawn():
    same = torch.ones(5, 4)
    assert project(same, same).explained == (0.0, 0.0, 0.0)
    png(scatter_figure(same, same, seed=0))
    pairs = pairs_figure(same, same, seed=0)
    assert len(pairs.axes[0].lines) == 2 and points_in(pairs.axes[3]) == 10


def test_a_seed_draws_one_figure():
    """Samples, what is drawn of many, and what lies on top."""
    real, generated = normal(2100, 4, 0), normal(50, 4, 1)
    first, again, other = (
        [place.axes[1].collections[0].get_offsets() for place in scatter_figure(real, generated, seed).subfigs]
        for seed in (0, 0, 1)
    )
    for row in range(2):
        np.testing.assert_array_equal(first[row], again[row])
        assert not np.array_equal(first[row], other[row])


def test_at_most_2000_of_a_set_are_drawn():
    figure = scatter_figure(normal(2500, 4, 0), normal(100, 4, 1), seed=0)
    assert [points_in(place.axes[1]) for place in figure.subfigs] == [2100, 2100]
