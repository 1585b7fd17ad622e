"""Which generated images lie outside the real ones, by their moments? Korkinof 2021 names it as future work."""

import math

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.agreement import standardise
from lightning_modules.metrics.score import TooFewImagesError


def outside_support(real: Tensor, generated: Tensor, quantile: float = 0.99, k: int = 3) -> Tensor:
    """Return which generated images are farther from the real ones than real images are from each other.

    An image's distance is that to its k-th nearest real image (to the k-th nearest other one, if it is real itself),
    Euclidean in moments that are scaled by the real images' median and interquartile range. An image lies outside if
    its distance is above the quantile of the real images' own distances: a fresh real image does so with a
    probability of about 1 - quantile.

    Args:
        real: Moments (N, D).
        generated: Moments (M, D).
        quantile: Share of real images that count as inside.
        k: Neighbour that the distance is measured to; 1 would let one odd real image excuse its like.

    Returns:
        (M,) bool, on the CPU; True = outside.

    Raises:
        TooFewImagesError: If the real images are too few for the quantile.
        ValueError: If an argument is out of range, or a moment is not finite.
    """
    from scipy.spatial import cKDTree

    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile={quantile}: must lie between 0 and 1")
    needed = max(k + 1, math.ceil(round(quantile / (1.0 - quantile), 6)))
    if len(real) < needed:
        raise TooFewImagesError(f"the quantile {quantile:g} needs at least {needed} real images, got {len(real)}")
    for vectors in (real, generated):
        if not vectors.isfinite().all():
            raise ValueError("a moment is not finite")
    there, here = (standardise(points, real).cpu().numpy() for points in (real, generated))
    tree = cKDTree(there)
    usual = np.sort(tree.query(there, k=[k + 1])[0][:, 0])  # the nearest is the image itself
    # The rank that a fresh image, as one of N + 1, exceeds with the wished probability.
    limit = usual[math.ceil(round(quantile * (len(usual) + 1), 6)) - 1]
    return torch.from_numpy(tree.query(here, k=[k])[0][:, 0] > limit)
