"""Edges: detectors against values worked out by hand, and that borders are no edges."""

import io
from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage

from experiments.figures.edges import edge_figure, simple_edges, sobel_edges

pytestmark = pytest.mark.usefixtures("drawn")

DETECTORS = (simple_edges, sobel_edges)


def noise(count=2, size=(80, 64), seed=0):
    return torch.rand(count, 1, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def step(height=8, width=10):
    image = -torch.ones(1, 1, height, width)
    image[..., width // 2 :] = 1.0
    return image


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("value", [-1.0, -0.3, 0.5, 1.0])
def test_a_constant_has_no_edges_not_even_at_the_border(detector, value):
    assert not detector(torch.full((2, 1, 9, 7), value)).any()


@pytest.mark.parametrize("detector", DETECTORS)
def test_edges_are_in_range_and_as_large_as_the_images(detector):
    edges = detector(noise())
    assert edges.shape == (2, 1, 80, 64) and edges.dtype == torch.float32
    assert 0.0 <= float(edges.min()) and float(edges.max()) <= 1.0
    assert torch.equal(edges[:1], detector(noise()[:1]))  # no image knows of its neighbours in the batch


def test_sobel_of_a_step():
    edges = sobel_edges(step())
    expected = torch.zeros(8, 10)
    expected[:, 4:6] = 4 / 20**0.5
    torch.testing.assert_close(edges[0, 0], expected)
    torch.testing.assert_close(sobel_edges(step().mT), edges.mT)


def test_sobel_of_a_ramp():
    slope = 0.05
    ramp = (slope * torch.arange(12.0) - 0.5).expand(1, 1, 9, 12)
    edges = sobel_edges(ramp)
    torch.testing.assert_close(edges[..., 1:-1], torch.full((1, 1, 9, 10), 4 * slope / 20**0.5))
    torch.testing.assert_close(edges[..., 0], torch.full((1, 1, 9), 2 * slope / 20**0.5))  # half the slope is known


def test_the_largest_sobel_magnitude_is_one():
    patches = torch.tensor(list(product([-1.0, 1.0], repeat=9))).reshape(-1, 1, 3, 3)
    assert float(sobel_edges(patches)[..., 1, 1].max()) == pytest.approx(1.0)


def test_simple_edges_mark_the_brighter_side_of_a_step():
    edges = simple_edges(step() * 0.1)  # 114.75 and 140.25: 115 and 140 of 255
    expected = torch.zeros(8, 10)
    expected[:, 5] = 3 * 25 / 255
    torch.testing.assert_close(edges[0, 0], expected)


def test_simple_edges_are_the_laplacian_of_eight_neighbours():
    images = noise() * 0.05
    levels = np.rint((images[:, 0].numpy().astype(np.float64) + 1) * 127.5)
    kernel = np.full((3, 3), -1.0)
    kernel[1, 1] = 8.0
    expected = [ndimage.correlate(image, kernel, mode="nearest").clip(0, 255) / 255 for image in levels]
    np.testing.assert_allclose(simple_edges(images)[:, 0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("detector", DETECTORS)
def test_what_is_no_grey_image_is_refused(detector):
    with pytest.raises(ValueError, match=r"grey images .* got shape \(2, 3, 8, 8\)"):
        detector(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"got shape \(8, 8\)"):
        detector(torch.zeros(8, 8))
    with pytest.raises(ValueError, match=r"at least one, got shape \(0, 1, 8, 8\)"):
        detector(torch.zeros(0, 1, 8, 8))
    with pytest.raises(ValueError, match=r"in \[-1, 1\], got 0 .. 255"):
        detector(torch.arange(256.0).reshape(1, 1, 16, 16))


def test_a_detector_has_one_scale_for_real_and_generated():
    real, generated = noise(3), noise(5, (64, 64), seed=1) * 0.1
    figure = edge_figure(real, generated, count=4)
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    grid = np.array(figure.axes, dtype=object).reshape(6, 3)  # as many columns as the smaller set has images
    for first in (1, 2):
        assert grid[first, 0].images[0].get_clim() == grid[first + 3, 2].images[0].get_clim()
    black = np.percentile(torch.cat([simple_edges(x[:3]).flatten() for x in (real, generated)]), 99.5)
    assert grid[1, 0].images[0].get_clim() == pytest.approx((0.0, black))
    assert grid[0, 0].images[0].get_clim() == (-1.0, 1.0)
    assert [axes.get_ylabel().split("\n")[0] for axes in grid[:, 0]] == ["real"] * 3 + ["generated"] * 3
    np.testing.assert_array_equal(grid[5, 1].images[0].get_array(), sobel_edges(generated)[1, 0])


def test_images_without_edges_are_drawn():
    figure = edge_figure(torch.zeros(2, 1, 16, 12), torch.ones(2, 1, 16, 12))
    assert figure.axes[2].images[0].get_clim() == (0.0, 1.0)
    with pytest.raises(ValueError, match="at least one"):
        edge_figure(torch.zeros(2, 1, 16, 12), torch.zeros(0, 1, 16, 12))
