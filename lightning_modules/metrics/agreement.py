"""Do the moments of real and generated images agree? (Korkinof 2021, Radiology: Artificial Intelligence 3(2):e190181).

The paper's Table 1 gives 60-78 % for pairs of moments. Its definition is in a supplement (Appendix E3) that was not at
hand; the agreement here is Mirage's own and cannot be compared with these percentages. Numbers of neighbours (Table 2)
follow the text.

Copies among the images make nearest neighbours nearer than they are. For intervals draw images without replacement
(subsets): two bootstrap samples of one distribution agree to 0.7 instead of 1.0.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.moments import NAMES, Moments
from lightning_modules.metrics.mutual_information import label_entropy, mutual_information, neighbours
from lightning_modules.metrics.score import DistributionScore


def agreement(real: Tensor, generated: Tensor, k: int = 3) -> Tensor:
    """Return 1 - I((M_i, M_j); label) / H(label) for each pair of moments, and for M_i alone on the diagonal.

    It is 1 where a pair of moments tells nothing of whether an image is real, 0 where it tells all. H is the entropy of
    the label real or generated: ln 2 for sets of equal size. With unequal sizes 1 and 0 mean the same, values between
    them differ a little, so compare only equal ratios.

    Each moment is brought to one scale by the median and interquartile range of both sets together.

    Args:
        real: Moments (N, D), N above k.
        generated: Moments (M, D), M above k.
        k: Neighbour of the estimator (``mutual_information``).

    Returns:
        (D, D) float64, symmetric, in [0, 1].

    Raises:
        TooFewImagesError: If a set has k images or fewer.
    """
    both = torch.cat([real, generated]).double()
    scaled = standardise(both, both)
    label = torch.arange(len(both), device=both.device) >= len(real)
    entropy, size = label_entropy(len(real), len(generated)), both.shape[1]
    found = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(i, size):
            columns = [i] if i == j else [i, j]
            told = mutual_information(scaled[:, columns], label, k)
            found[i, j] = found[j, i] = 1.0 - told / entropy
    return found


def neighbours_within(real: Tensor, generated: Tensor, k: int = 3) -> Tensor:
    """Return the mean number of neighbours within the distance to the k-th nearest of the own set, for each moment.

    2 k is expected for two draws from one distribution, k for sets that lie apart (Table 2, k = 3: 6 and 3). Where
    sizes differ, neighbours in the other set count N / M times, which keeps both expectations.

    It sees whether the sets cover the same values, not how densely: a ball that holds k images of density p holds
    about k q / p of density q, and the mean of q / p over p is 1 wherever p reaches. Hence (value - k) / k is the
    overlap of the supports; read the mutual information beside it.

    Args:
        real: Moments (N, D), N above k.
        generated: Moments (M, D), M above k.
        k: Neighbour of the own set that gives the distance.

    Returns:
        (D,) float64.

    Raises:
        TooFewImagesError: If a set has k images or fewer.
    """
    means = []
    for column in range(real.shape[1]):
        ours, theirs = real[:, [column]], generated[:, [column]]
        total = 0.0
        for one, other in ((ours, theirs), (theirs, ours)):
            # Of the own set those nearer than the k-th are k by definition; copies at the same distance are not more.
            total += k * len(one) + float(neighbours(one, other, k)[1].sum()) * len(one) / len(other)
        means.append(total / (len(real) + len(generated)))
    return torch.tensor(means, dtype=torch.float64)


def standardise(points: Tensor, reference: Tensor) -> Tensor:
    """Subtract the reference's median and divide by its interquartile range, in each coordinate.

    The moments of a few odd images are huge; mean and standard deviation would follow them. A coordinate of which half
    the reference's values are equal is divided by the standard deviation, one that never varies is only shifted.

    Args:
        points: (N, D).
        reference: (M, D).

    Returns:
        (N, D) float64.
    """
    reference = reference.double()
    low, median, high = reference.quantile(torch.tensor([0.25, 0.5, 0.75]).to(reference), dim=0)
    spread, deviation = high - low, reference.std(dim=0, correction=0)
    scale = torch.where(spread > 0, spread, torch.where(deviation > 0, deviation, 1.0))
    return (points.double() - median) / scale


@dataclass(frozen=True)
class Contours:
    """Kernel densities of one pair of moments over one grid.

    Attributes:
        x: Places of the grid in the first moment (G,).
        y: Places in the second moment (G,).
        real: Density (G, G) of the real images, indexed [y, x].
        generated: Density (G, G) of the generated images.
        coverage: Share of the area inside the real 97th-percentile contour that lies inside the generated one.
    """

    x: np.ndarray
    y: np.ndarray
    real: np.ndarray
    generated: np.ndarray
    coverage: float


def contour_coverage(real: Tensor, generated: Tensor, pair: tuple[int, int], percentile: float = 97.0) -> Contours:
    """Estimate the densities of a pair of moments and how much of the real contour the generated one covers (figure 6).

    The p-th percentile contour encloses the densest p % of a distribution (highest density region, Hyndman 1996). The
    paper does not say what its percentiles are of; those of the density over a grid would depend on the grid's size.
    The densities are those of ``scipy.stats.gaussian_kde`` with Scott's rule, each set with its own covariance.

    Args:
        real: Moments (N, D).
        generated: Moments (M, D).
        pair: Two columns.
        percentile: Of both contours.

    Raises:
        ValueError: If a moment of the pair is the same in all real images: the contour would have no area.
    """
    ours, theirs = (points[:, list(pair)].detach().to("cpu", torch.float64).numpy() for points in (real, generated))
    if (np.ptp(ours, axis=0) == 0).any():
        raise ValueError(f"columns {pair}: a moment is the same in all {len(ours)} real images, which gives no contour")
    kernels = [_scott_kernel(points) for points in (ours, theirs)]
    margin = 4.0 * np.sqrt(np.max([np.diag(kernel) for kernel in kernels], axis=0))
    both = np.concatenate([ours, theirs])
    low, high = both.min(axis=0) - margin, both.max(axis=0) + margin
    of_real, of_generated = (
        _density(points, kernel, low, high) for points, kernel in zip((ours, theirs), kernels, strict=True)
    )
    inside, covered = (density >= density_levels(density, percentile)[0] for density in (of_real, of_generated))
    x, y = np.linspace(low, high, _GRID).T
    return Contours(x, y, of_real, of_generated, float((inside & covered).sum() / inside.sum()))


def density_levels(density: np.ndarray, *percentiles: float) -> list[float]:
    """Return the densities on the contours that enclose the densest so many percent of a distribution on a grid."""
    falling = np.sort(density, axis=None)[::-1]
    enclosed = np.cumsum(falling)
    return [float(falling[np.searchsorted(enclosed, p / 100.0 * enclosed[-1])]) for p in percentiles]


_GRID = 512  # places per axis
_NARROWEST = 1.2  # standard deviation of a kernel in places: at the grid's highest frequency it then is below 0.001


def _scott_kernel(points: np.ndarray) -> np.ndarray:
    """Return the covariance (2, 2) of the kernel: Scott's factor N^(-1/6) for two dimensions, squared."""
    return np.cov(points.T) * len(points) ** (-1.0 / 3.0)


def _density(points: np.ndarray, kernel: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the kernel density (G, G), indexed [y, x], by convolving a histogram: seconds less than point by point.

    The grid's border must be some kernel widths away from the points, since the convolution is periodic.
    """
    step = (high - low) / (_GRID - 1)
    kernel = _resolved(kernel, step)
    place = (points - low) / step
    cell = np.floor(place).astype(np.int64).clip(0, _GRID - 2)
    share = place - cell
    counts = np.zeros(_GRID * _GRID)
    for right in (0, 1):  # each point is shared by the four places around it
        for up in (0, 1):
            weights = (share[:, 0] if right else 1 - share[:, 0]) * (share[:, 1] if up else 1 - share[:, 1])
            index = (cell[:, 1] + up) * _GRID + cell[:, 0] + right
            counts += np.bincount(index, weights, minlength=_GRID * _GRID)
    u = 2.0 * np.pi * np.fft.rfftfreq(_GRID, step[0])
    v = 2.0 * np.pi * np.fft.fftfreq(_GRID, step[1])[:, None]
    smooth = np.exp(-0.5 * (kernel[0, 0] * u * u + 2.0 * kernel[0, 1] * u * v + kernel[1, 1] * v * v))
    density = np.fft.irfft2(np.fft.rfft2(counts.reshape(_GRID, _GRID)) * smooth, s=(_GRID, _GRID))
    return density.clip(min=0.0) / (len(points) * step.prod())


def _resolved(kernel: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return a kernel (2, 2) that is nowhere narrower than a grid of such steps can show: others ring across it.

    Skewness, kurtosis and hyperskewness lie nearly on a line, and so do their kernels.
    """
    widths, axes = np.linalg.eigh(kernel / np.outer(step, step))
    return (axes * widths.clip(min=_NARROWEST**2)) @ axes.T * np.outer(step, step)


class MomentAgreement(DistributionScore):
    """Agreement of moments, by itself and in pairs.

    For equal distributions the agreement of a single moment scatters by 0.04 with 50 images of each set, by 0.01 with
    1,000; and as values above 1 are cut, it lies below 1 by as much.
    """

    better = "higher"
    bounds = (0.0, 1.0)
    steady_from = 1_000  # the agreement of a single moment then scatters by 0.01 or less
    reads = Moments()
    at_least = 50
    at_most = 5_000  # a second

    def measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return the mean of the 15 agreements, and those of single moments.

        Args:
            real: Moments (N, 5).
            generated: Moments (M, 5).
        """
        self.check(real, generated)
        found = agreement(real, generated)
        upper = found[tuple(torch.triu_indices(*found.shape))]
        single = zip(NAMES, found.diagonal().tolist(), strict=True)
        return {
            "moment_agreement": float(upper.mean()),
            **{f"moment_agreement_{name}": value for name, value in single},
        }


class MomentNeighbours(DistributionScore):
    """Mean number of neighbours over the five moments (``neighbours_within``), of 6."""

    better = "higher"
    bounds = (3.0, math.inf)
    steady_from = 200  # it then scatters by 0.05
    reads = Moments()
    at_least = 50
    at_most = 5_000

    def measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``moment_neighbours``.

        Args:
            real: Moments (N, 5).
            generated: Moments (M, 5).
        """
        self.check(real, generated)
        return {"moment_neighbours": float(neighbours_within(real, generated).mean())}
