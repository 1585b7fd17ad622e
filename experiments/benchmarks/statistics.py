"""The Frechet distance against scipy's matrix square root: ``python -m experiments.benchmarks.statistics``."""

import numpy as np
import torch

from experiments.benchmarks.timing import rates, show
from lightning_modules.metrics.frechet import FeatureSums, GaussianStatistics, frechet_distance, frechet_distance_of

DIMENSIONS, IMAGES = 2048, 5000


def features_of(seed: int, images: int) -> torch.Tensor:
    """Return random features whose dimensions are correlated and of different spread, as a network's are."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(DIMENSIONS, DIMENSIONS, generator=random) / DIMENSIONS**0.5
    return torch.randn(images, DIMENSIONS, generator=random) @ mix + 0.1 * seed


def statistics_of(features: torch.Tensor) -> GaussianStatistics:
    """Return mean and covariance."""
    sums = FeatureSums(DIMENSIONS)
    sums.add(features)
    return sums.statistics()


def by_scipy(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """Return the distance as the peers compute it."""
    from scipy.linalg import sqrtm

    root = np.real(sqrtm((a.covariance @ b.covariance).numpy()))
    traces = a.covariance.trace() + b.covariance.trace() - 2 * np.trace(root)
    return float((a.mean - b.mean).square().sum() + traces)


def main() -> None:
    """Measure and print."""
    a, b = statistics_of(features_of(0, IMAGES)), statistics_of(features_of(1, IMAGES))
    found: dict[str, float] = {}

    def with_scipy() -> int:
        found["scipy"] = by_scipy(a, b)
        return 1

    def ours() -> int:
        found["Mirage"] = frechet_distance(a, b)
        return 1

    measured = rates({"scipy.linalg.sqrtm": with_scipy, "Mirage": ours}, rounds=3)
    show(f"Frechet distance, {DIMENSIONS} dimensions, full rank ({IMAGES:,} images)", measured, "per second")
    print(f"  distances: scipy {found['scipy']:.10g}, Mirage {found['Mirage']:.10g}")

    few, fewer = features_of(0, 500), features_of(1, 400)

    def from_covariances() -> int:
        found["covariances"] = frechet_distance(statistics_of(few), statistics_of(fewer))
        return 1

    def from_features() -> int:
        found["features"] = frechet_distance_of(few, fewer)
        return 1

    measured = rates({"from covariances": from_covariances, "Mirage, from features": from_features}, rounds=1)
    show(f"Frechet distance, {DIMENSIONS} dimensions, 500 and 400 images", measured, "per second")
    print(f"  distances: {found['covariances']:.10g}, {found['features']:.10g}")


if __name__ == "__main__":
    main()
