"""Kernel distance (Binkowski, Sutherland, Arbel and Gretton 2018, arXiv:1801.01401).

It is called "KID" only where the features are Inception-v3's with the reference weights; see ``features.py``.
"""

import torch
from torch import Tensor

from lightning_modules.metrics.score import DistributionScore


def kernel_distance(real: Tensor, generated: Tensor, block: int = 1024) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy with the kernel (x.y / D + 1)^3.

    Gretton 2012 (JMLR 13, equation 3) with the kernel of Binkowski 2018 (section 4), on all images at once: the paper's
    mean over random subsets estimates the same number with more variance. The reference values are usually given times
    1,000.

    Args:
        real: Features (N, D), N at least 2.
        generated: Features (M, D), M at least 2.
        block: Rows of the kernel matrix that are held at a time.

    Returns:
        The estimate, around 0 for equal distributions, where it is negative half of the time.

    Raises:
        ValueError: If there are fewer than two images in a set, or features of different lengths.
    """
    if real.shape[1] != generated.shape[1]:
        raise ValueError(f"features of different lengths: {real.shape[1]} and {generated.shape[1]}")
    if min(len(real), len(generated)) < 2:
        raise ValueError(f"pairs need at least 2 images of each set, got {len(real)} and {len(generated)}")
    scale = real.shape[1] ** -0.5
    x, y = real.cpu().double() * scale, generated.cpu().double() * scale
    across = sum(_kernel(rows, y).sum() for rows in x.split(block)) / (len(x) * len(y))
    return float(_mean_within(x, block) + _mean_within(y, block) - 2.0 * across)


class KernelDistance(DistributionScore):
    """Kernel distance of two sets of features: unbiased, so that it needs fewer images than the Frechet distance."""

    better = "lower"
    steady_from = 100  # right on average at any size, but with fewer the spread hides differences that are seen
    at_most = 5_000  # the work grows with the square, and a part of the images gives the same on average

    def measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``kernel_distance``."""
        self.check(real, generated)
        return {"kernel_distance": kernel_distance(real, generated)}


def _mean_within(points: Tensor, block: int) -> Tensor:
    """Return the mean kernel of two different points; of the symmetric matrix only one half is computed."""
    total = torch.zeros((), dtype=points.dtype)
    for start in range(0, len(points), block):
        kernel = _kernel(points[start : start + block], points[start:])
        square = kernel[:, : len(kernel)]
        total += 2.0 * kernel.sum() - square.sum() - square.trace()
    return total / (len(points) * (len(points) - 1))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    root = (a @ b.T).add_(1.0)
    return root.square().mul_(root)
