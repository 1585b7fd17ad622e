"""The Frechet distance against scipy's matrix square root: ``python -m experiments.benchmarks.statistics``."""

import numpy as np
import torch

from experiments.benchmarks.timing import rates, show
from lightning_modules.metrics.frechet import FeatureSums, GaussianStatistics, frechet_distance

DIMENSIONS, IMAGES = 1024, 2000


def statistics_of(seed: int) -> GaussianStatistics:
    """Return statistics of random features."""
    sums = FeatureSums(DIMENSIONS)
    sums.add(torch.randn(IMAGES, DIMENSIONS, generator=torch.Generator().manual_seed(seed)))
    return sums.statistics()


def main() -> None:
    """Measure and print."""
    from scipy.linalg import sqrtm

    a, b = statistics_of(0), statistics_of(1)

    def with_scipy() -> int:
        root = np.real(sqrtm((a.covariance @ b.covariance).numpy()))
        float((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * np.trace(root))
        return 1

    def ours() -> int:
        frechet_distance(a, b)
        return 1

    found = rates({"scipy.linalg.sqrtm": with_scipy, "Mirage": ours}, rounds=3)
    show(f"Frechet distance, {DIMENSIONS} dimensions, full rank", found, "per second")


if __name__ == "__main__":
    main()
