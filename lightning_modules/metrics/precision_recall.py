"""How much of one set looks like the other, and how much of the other is reached: by balls around neighbours."""

import math

import torch
from torch import Tensor

from lightning_modules.metrics.distances import BLOCK, neighbour_radii, squared_distances
from lightning_modules.metrics.score import DistributionScore


def precision_recall(real: Tensor, generated: Tensor, k: int = 3, block: int = BLOCK) -> tuple[float, float]:
    """Return the share of generated images that look real, and of real images that could have been generated.

    Improved precision and recall (Kynkaanniemi, Karras, Laine, Lehtinen and Aila 2019, arXiv:1904.06991). A manifold is
    the union of balls around its points, each reaching to its point's k-th nearest neighbour (section 2, equations 1 to
    3). Both numbers rise with fewer points, so compare only equal counts.

    Args:
        real: Features (N, D), N above k.
        generated: Features (M, D), M above k.
        k: Neighbour that gives the radius (section 2: 3).
        block: Rows of distances that are held at a time.

    Raises:
        ValueError: If there are too few points, or features of different lengths.
    """
    _check_counts(real, generated, k, k + 1)
    reach_of_real = neighbour_radii(real, k, block)
    reach_of_generated = neighbour_radii(generated, k, block)
    precise, recalled = 0, torch.zeros(len(real), dtype=torch.bool)
    for distances in squared_distances(generated, real, block):
        reach, reach_of_generated = reach_of_generated.tensor_split([len(distances)])
        precise += int((distances <= reach_of_real).any(dim=1).sum())
        recalled |= (distances <= reach[:, None]).any(dim=0)
    return precise / len(generated), float(recalled.double().mean())


def density_coverage(real: Tensor, generated: Tensor, k: int = 5, block: int = BLOCK) -> tuple[float, float]:
    """Return how densely the generated images lie among the real ones, and the share of real ones with one nearby.

    Naeem, Oh, Uh, Choi and Yoo 2020 (arXiv:2002.09797, equations 4 and 6). Only real images have balls, so that an
    outlier among the generated ones counts for little. For equal distributions density is 1 on average and coverage
    1 - 2^-k if the sets are large and equally large.

    Args:
        real: Features (N, D), N above k.
        generated: Features (M, D).
        k: Neighbour that gives the radius (section 3.3: 5).
        block: Rows of distances that are held at a time.

    Returns:
        Density, at least 0 and possibly above 1, and coverage.

    Raises:
        ValueError: If there are too few points, or features of different lengths.
    """
    inside, covered = _within_reach(real, generated, k, block)
    return inside / (k * len(generated)), float(covered.double().mean())


def reached(real: Tensor, generated: Tensor, k: int = 5, block: int = BLOCK) -> Tensor:
    """Return which real images (N,) have a generated one nearby, bool: their share is the coverage.

    Args:
        real: Features (N, D), N above k.
        generated: Features (M, D).
        k: Neighbour that gives the radius.
        block: Rows of distances that are held at a time.

    Raises:
        ValueError: If there are too few points, or features of different lengths.
    """
    return _within_reach(real, generated, k, block)[1]


def _within_reach(real: Tensor, generated: Tensor, k: int, block: int) -> tuple[int, Tensor]:
    """Return how often a generated image lies in a real one's ball, and which real images (N,) have one in theirs."""
    _check_counts(real, generated, k, 1)
    reach = neighbour_radii(real, k, block)
    inside, covered = 0, torch.zeros(len(real), dtype=torch.bool)
    for distances in squared_distances(generated, real, block):
        within = distances < reach
        inside += int(within.sum())
        covered |= within.any(dim=0)
    return inside, covered


class _Neighbourhood(DistributionScore):
    better = "higher"
    bounds = (0.0, math.inf)
    steady_from = 250  # a share of fewer images has a standard error above 3 %
    at_most = 5_000  # the work grows with the square; the numbers depend on the count and need a fixed one anyway

    def __init__(self, k: int) -> None:
        if k < 1:
            raise ValueError(f"k={k}: must be at least 1")
        self.k, self.at_least = k, k + 1

    def warnings(self, real: Tensor, generated: Tensor) -> list[str]:
        """Say how many real images have balls that are points."""
        return self._points(real, "real")

    def _points(self, vectors: Tensor, name: str) -> list[str]:
        points = int((neighbour_radii(vectors, self.k) == 0).sum())
        if not points:
            return []
        same = f"{self.k} others" if self.k > 1 else "another one"
        return [
            f"{points} of {len(vectors)} {name} images equal {same}: their balls have radius 0 and hold nothing else"
        ]


class PrecisionRecall(_Neighbourhood):
    """Improved precision and recall.

    Args:
        k: Neighbour that gives the radius of a ball.
    """

    bounds = (0.0, 1.0)

    def __init__(self, k: int = 3) -> None:
        super().__init__(k)

    def measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``precision`` and ``recall``."""
        self.check(real, generated)
        precision, recall = precision_recall(real, generated, self.k)
        return {"precision": precision, "recall": recall}

    def warnings(self, real: Tensor, generated: Tensor) -> list[str]:
        """Say how many real and generated images have balls that are points."""
        return self._points(real, "real") + self._points(generated, "generated")


class DensityCoverage(_Neighbourhood):
    """Density and coverage.

    Args:
        k: Neighbour that gives the radius of a ball.
    """

    def __init__(self, k: int = 5) -> None:
        super().__init__(k)

    def measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``density`` and ``coverage``."""
        self.check(real, generated)
        density, coverage = density_coverage(real, generated, self.k)
        return {"density": density, "coverage": coverage}


def _check_counts(real: Tensor, generated: Tensor, k: int, least_generated: int) -> None:
    if len(real) <= k or len(generated) < least_generated:
        raise ValueError(f"{k} neighbours need at least {k + 1} points, got {len(real)} and {len(generated)}")
    if real.shape[1] != generated.shape[1]:
        raise ValueError(f"features of different lengths: {real.shape[1]} and {generated.shape[1]}")
