"""Mutual information of points and a discrete label, by nearest neighbours (Ross 2014, PLoS ONE 9(2):e87357)."""

import math

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.score import TooFewImagesError


def mutual_information(points: Tensor, labels: Tensor, k: int = 3) -> float:
    """Return how much a point tells of its label, in nats: I = psi(N) - <psi(N_x)> + <psi(k)> - <psi(m)> (equation 2).

    Distances are the largest difference in any coordinate (max norm), without scaling: bring coordinates of different
    units to one scale first. The estimate scatters around 0 for labels that are independent of the points; it is cut
    to what is possible, 0 to the labels' entropy (ln 2 for two labels of equal number).

    Args:
        points: (N, d), of any d.
        labels: (N,), whole numbers; each must occur more than k times.
        k: Neighbour of the own label that gives the radius.

    Raises:
        TooFewImagesError: If a label occurs too rarely.
        ValueError: If shapes do not fit, or a point is not finite.
    """
    from scipy.special import digamma

    if points.ndim != 2 or labels.shape != points.shape[:1]:
        raise ValueError(f"expected points (N, d) and labels (N,), got {tuple(points.shape)}, {tuple(labels.shape)}")
    classes, counts = labels.unique(return_counts=True)
    total, mean = len(points), 0.0
    for label, count in zip(classes, counts.tolist(), strict=True):
        own, other = neighbours(points[labels == label], points[labels != label], k)
        mean += float(np.sum(digamma(own) - digamma(own + other) - digamma(count))) / total
    return min(max(0.0, float(digamma(total)) + mean), label_entropy(*counts.tolist()))


def label_entropy(*counts: int) -> float:
    """Return the entropy in nats of labels that occur so often: the most that points can tell of them."""
    shares = [count / sum(counts) for count in counts]
    return -sum(share * math.log(share) for share in shares)


def neighbours(points: Tensor, others: Tensor, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Count neighbours within each point's distance to the k-th nearest of its own set, in the max norm.

    Points at exactly that distance count: there are more than k of the own set where distances are equal, as between
    copies. Without ties the sum of both counts is Ross's m.

    Args:
        points: (N, d), N above k.
        others: (M, d), points of the other sets.
        k: Neighbour of the own set that gives the distance.

    Returns:
        How many of the own set, without the point itself, and how many others; both (N,) of whole numbers.

    Raises:
        TooFewImagesError: If there are too few points.
        ValueError: If a point is not finite.
    """
    from scipy.spatial import cKDTree

    if len(points) <= k:
        raise TooFewImagesError(f"{k} neighbours need at least {k + 1} points of each set, got {len(points)}")
    if not (points.isfinite().all() and others.isfinite().all()):
        raise ValueError("a point to find neighbours of is not finite")
    here, there = (_on_cpu(given) for given in (points, others))
    tree = cKDTree(here)
    nearest = min(k + 2, len(here))  # itself, k, and one more that tells ties
    distances = tree.query(here, k=nearest, p=np.inf)[0]
    radii = distances[:, k]
    own = np.full(len(here), k)
    tied = distances[:, -1] <= radii if nearest == k + 2 else np.zeros(len(here), dtype=bool)
    if tied.any():
        own[tied] = tree.query_ball_point(here[tied], radii[tied], p=np.inf, return_length=True) - 1
    if not len(there):
        return own, np.zeros(len(here), dtype=own.dtype)
    return own, cKDTree(there).query_ball_point(here, radii, p=np.inf, return_length=True)


def _on_cpu(points: Tensor) -> np.ndarray:
    return points.detach().to("cpu", torch.float64).numpy()
