"""Frechet distance between two feature distributions (Heusel 2017, arXiv:1706.08500, eq. 6; Dowson and Landau 1982).

It is called "fid" only where the features are Inception-v3's with the reference weights; see ``features.py``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianStatistics:
    """Mean (D,) and covariance (D, D), float64 on the CPU, of ``count`` feature vectors."""

    mean: Tensor
    covariance: Tensor
    count: int


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
    with _single_thread():
        root = _factor(a.covariance)
        eigenvalues = torch.linalg.eigvalsh(root.T @ b.covariance @ root)
    trace_of_root = eigenvalues.clamp(min=0.0).sqrt().sum()
    difference = (a.mean - b.mean).square().sum()
    distance = difference + a.covariance.trace() + b.covariance.trace() - 2.0 * trace_of_root
    return max(0.0, float(distance))  # rounding makes equal distributions slightly negative


def _factor(covariance: Tensor) -> Tensor:
    """Return R with R R^T = covariance: Cholesky, or the eigenvectors where fewer images than dimensions forbid it."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0.0).sqrt()


@contextmanager
def _single_thread() -> Iterator[None]:
    """Run LAPACK on one thread: with more its threads spin, 58 s instead of 2.6 s at 2048 dimensions on 2 cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
