"""Frechet distance between two feature distributions (Heusel 2017, arXiv:1706.08500, eq. 6; Dowson and Landau 1982).

It is called "fid" only where the features are Inception-v3's with the reference weights; see ``features.py``. Fewer
images make it larger (Chong and Forsyth 2020, arXiv:1911.07023): compare equal counts only, or take its limit.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.score import DistributionScore

SMALLEST = 0.2  # share of the generated images in the smallest set of ``frechet_infinity``'s line


@dataclass(frozen=True)
class GaussianStatistics:
    """Mean (D,) and covariance (D, D), float64 on the CPU, of ``count`` feature vectors."""

    mean: Tensor
    covariance: Tensor
    count: int

    @cached_property
    def root(self) -> Tensor:
        """R (D, rank) with R R^T = covariance, computed once: real images are compared with again and again."""
        with single_thread():
            return _factor(self.covariance)


class FeatureSums:
    """Streaming sums of features, in float64; sums of several processes are added.

    Args:
        dimensions: Length of a feature vector.
        device: Where the sums are kept.
    """

    def __init__(self, dimensions: int, device: torch.device | str = "cpu") -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.total = torch.zeros(dimensions, dtype=torch.float64, device=device)
        self.outer = torch.zeros(dimensions, dimensions, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Add features (N, D)."""
        features = features.to(self.total)
        self.count += len(features)
        self.total += features.sum(dim=0)
        self.outer += features.T @ features

    def statistics(self) -> GaussianStatistics:
        """Return mean and unbiased covariance.

        Raises:
            ValueError: If fewer than two feature vectors were added.
        """
        count = int(self.count)
        if count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {count}")
        mean = self.total / count
        covariance = (self.outer - count * torch.outer(mean, mean)) / (count - 1)
        return GaussianStatistics(mean.cpu(), covariance.cpu(), count)


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """Return |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    With S_a = R R^T the trace of the root is the sum of the roots of the eigenvalues of the symmetric R^T S_b R, which
    needs no matrix square root and no complex numbers.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of different lengths: {len(a.mean)} and {len(b.mean)}")
    with single_thread():
        return _distance(a, b)


def frechet_distance_of(real: Tensor, generated: Tensor) -> float:
    """Return the Frechet distance of two sets of features, by the cheaper of two exact routes.

    With centred features A (N, D) and B (M, D) the covariances are A^T A / (N - 1) and B^T B / (M - 1), and the trace
    of the root of their product is the sum of the singular values of A B^T / ((N - 1) (M - 1))^(1/2). That matrix is
    (N, M): where there are few images it is smaller than a covariance (D, D).

    Args:
        real: Features (N, D), N at least 2.
        generated: Features (M, D), M at least 2.

    Raises:
        ValueError: If there are fewer than two images in a set, or features of different lengths.
    """
    if real.shape[1] != generated.shape[1]:
        raise ValueError(f"features of different lengths: {real.shape[1]} and {generated.shape[1]}")
    if min(len(real), len(generated)) < 2:
        raise ValueError(f"a covariance needs at least 2 images, got {len(real)} and {len(generated)}")
    if len(real) * len(generated) <= real.shape[1] ** 2:
        return _by_cross_gram(real.cpu().double(), generated.cpu().double())
    return frechet_distance(_statistics(real), _statistics(generated))


def frechet_infinity(real: Tensor, generated: Tensor, points: int = 5) -> float:
    """Return what the Frechet distance would be with infinitely many generated images.

    Chong and Forsyth 2020 (arXiv:1911.07023, section 3 and algorithm 1): the distance of N generated images is a
    straight line in 1 / N; its intercept is wanted. They draw 15 sets of sizes evenly spaced between a tenth and all
    images; here the sets are nested parts of one random order and evenly spaced in 1 / N, where a line needs fewer
    points. All real images are used every time: their own finite number still counts.

    Args:
        real: Features (N, D).
        generated: Features (M, D).
        points: Sizes on the line, at least 2; the smallest is a fifth of the generated images. Below D images the line
            bends.

    Returns:
        The intercept. It may be slightly negative where the distributions are equal.

    Raises:
        ValueError: If the smallest set would have fewer than two images, or features are of different lengths.
    """
    count = len(generated)
    if int(SMALLEST * count) < 2:
        raise ValueError(f"the smallest of {points} sets would have {int(SMALLEST * count)} of {count} images, not 2")
    if real.shape[1] != generated.shape[1]:
        raise ValueError(f"features of different lengths: {real.shape[1]} and {generated.shape[1]}")
    sizes = sorted({round(count / inverse) for inverse in np.linspace(1.0, 1.0 / SMALLEST, points)})
    order = torch.from_numpy(np.random.default_rng(0).permutation(count))
    if len(real) * count <= real.shape[1] ** 2:
        distances = [frechet_distance_of(real, generated[order[:size]]) for size in sizes]
    else:
        distances = _distances_of_parts(_statistics(real), generated[order], sizes)
    _, intercept = np.polyfit(1.0 / np.array(sizes), distances, 1)
    return float(intercept)


class Frechet(DistributionScore):
    """Frechet distance of two sets of features."""

    better = "lower"
    bounds = (0.0, math.inf)

    def enough(self, dimensions: int) -> int:
        """Return twice the length of a vector: with fewer images than dimensions covariances are singular.

        Then the distance says more about the number of images than about the images.
        """
        return 2 * dimensions

    def measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``frechet``."""
        self.check(real, generated)
        return {"frechet": frechet_distance_of(real, generated)}


class FrechetSingleRoot(DistributionScore):
    """Equation 4.1 of Sahakyan 2024 as it is printed: |m_a - m_b|^2 + tr(S_a + S_b - (S_a S_b)^(1/2)).

    Without the factor 2 before the root it is no distance: for equal distributions it is tr S, not 0. Only numbers of
    that paper can be compared with it.
    """

    better = "lower"
    bounds = (0.0, math.inf)

    def enough(self, dimensions: int) -> int:
        """Return the same as the Frechet distance."""
        return 2 * dimensions

    def measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``frechet_single_root``."""
        self.check(real, generated)
        a, b = real.double(), generated.double()
        others = (a.mean(dim=0) - b.mean(dim=0)).square().sum() + a.var(dim=0).sum() + b.var(dim=0).sum()
        # The distance is others - 2 tr(root), and this is others - tr(root).
        return {"frechet_single_root": (float(others) + frechet_distance_of(real, generated)) / 2.0}


class FrechetInfinity(DistributionScore):
    """Frechet distance extrapolated to infinitely many generated images, so that other counts can be compared.

    Args:
        points: Sizes of sets through which the line is laid.
    """

    better = "lower"
    at_least = 20  # the smallest set on the line is a fifth

    def __init__(self, points: int = 5) -> None:
        if points < 2:
            raise ValueError(f"points={points}: a line needs at least 2")
        self.points = points

    def enough(self, dimensions: int) -> int:
        """Return ten times the length of a vector: the smallest set, a fifth, then has twice as many images."""
        return 10 * dimensions

    def measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``frechet_infinity``."""
        self.check(real, generated)
        return {"frechet_infinity": frechet_infinity(real, generated, self.points)}


def _statistics(features: Tensor) -> GaussianStatistics:
    sums = FeatureSums(features.shape[1])
    sums.add(features)
    return sums.statistics()


def _distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    trace_of_root = torch.linalg.eigvalsh(a.root.T @ b.covariance @ a.root).clamp(min=0.0).sqrt().sum()
    return _sum_of_terms(a.mean - b.mean, a.covariance.trace() + b.covariance.trace(), trace_of_root)


def _distances_of_parts(real: GaussianStatistics, generated: Tensor, sizes: list[int]) -> list[float]:
    """Return the distances of the first images, so many at a time; the real root and the sums are taken once."""
    distances, sums = [], FeatureSums(generated.shape[1])
    with single_thread():
        for start, stop in zip((0, *sizes), sizes, strict=False):
            sums.add(generated[start:stop])
            distances.append(_distance(real, sums.statistics()))
    return distances


def _by_cross_gram(real: Tensor, generated: Tensor) -> float:
    """Return the distance from features, without covariances."""
    difference = real.mean(dim=0) - generated.mean(dim=0)
    a = (real - real.mean(dim=0)) / (len(real) - 1) ** 0.5
    b = (generated - generated.mean(dim=0)) / (len(generated) - 1) ** 0.5
    with single_thread():
        trace_of_root = torch.linalg.svdvals(a @ b.T).sum()
    return _sum_of_terms(difference, a.square().sum() + b.square().sum(), trace_of_root)


def _sum_of_terms(difference: Tensor, traces: Tensor, trace_of_root: Tensor) -> float:
    # Rounding makes equal distributions slightly negative.
    return max(0.0, float(difference.square().sum() + traces - 2.0 * trace_of_root))


def _factor(covariance: Tensor) -> Tensor:
    """Return R with R R^T = covariance: Cholesky's, or eigenvectors where fewer images than dimensions forbid it.

    Of these only those that are more than rounding: with few images R is narrow, and what follows is cheap.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(covariance)
    counts = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, counts] * values[counts].sqrt()


@contextmanager
def single_thread() -> Iterator[None]:
    """Run LAPACK on one thread: with more its threads spin, 58 s instead of 2.6 s at 2048 dimensions on 2 cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
