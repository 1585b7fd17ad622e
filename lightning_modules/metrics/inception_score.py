"""Inception score (Salimans, Goodfellow, Zaremba, Cheung, Radford and Chen 2016, arXiv:1606.03498, section 4)."""

import math

import torch
from torch import Tensor

from lightning_modules.metrics.features import InceptionProbabilities, Precision
from lightning_modules.metrics.score import DistributionScore


def inception_score(probabilities: Tensor) -> float:
    """Return exp of the mean divergence of an image's class probabilities from those of all images together.

    The paper takes the mean over ten parts of 5,000 images; here all images are one part, and the spread is left to
    whoever resamples them. Fewer images make it smaller.

    Args:
        probabilities: (N, K), rows that add up to 1.

    Returns:
        From 1, where all images look the same to the classifier, to the smaller of N and K.

    Raises:
        ValueError: If rows are no probabilities.
    """
    p = probabilities.cpu().double()
    if not (bool((p >= 0).all()) and torch.allclose(p.sum(dim=1), torch.ones(len(p)).double(), atol=1e-3)):
        raise ValueError("expected probabilities (N, K), with rows that add up to 1")
    q = p.mean(dim=0)
    divergence = torch.xlogy(p, p).sum(dim=1) - torch.xlogy(p, q).sum(dim=1)
    return float(divergence.mean().exp())


class InceptionScore(DistributionScore):
    """Inception score of the generated images.

    On medical images it says little in absolute terms: the classes are those of photographs. Real images of the same
    kind get a value as well, which is the one to reach.

    Args:
        weights: Local path of the reference Inception weights; None = torch's hub cache, downloaded on first use.
        precision: Of the convolutions; see ``InceptionV3``.
    """

    better = "as real"
    bounds = (1.0, math.inf)
    steady_from = 5_000  # the paper's number; the score of fewer images is smaller

    def __init__(self, weights: str | None = None, precision: Precision = "float32") -> None:
        self.reads = InceptionProbabilities(weights, precision)

    def measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``inception_score`` of the generated images."""
        self.check(real, generated)
        return {"inception_score": inception_score(generated)}
