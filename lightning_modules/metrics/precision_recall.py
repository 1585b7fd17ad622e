"""Improved precision and recall (Kynkaanniemi, Karras, Laine, Lehtinen and Aila 2019, arXiv:1904.06991)."""

import torch
from torch import Tensor


def precision_recall(real: Tensor, generated: Tensor, k: int = 3, block: int = 1024) -> tuple[float, float]:
    """Return the share of generated images that look real, and of real images that could have been generated.

    A manifold is the union of balls around its points, each reaching to its point's k-th nearest neighbour (section 2,
    equations 1 to 3). Both numbers rise with fewer points, so compare only equal counts.

    Args:
        real: Features (N, D), N above k.
        generated: Features (M, D), M above k.
        k: Neighbour that gives the radius (section 2: 3).
        block: Rows of distances that are held at a time.

    Raises:
        ValueError: If there are too few points, or features of different lengths.
    """
    if min(len(real), len(generated)) <= k:
        raise ValueError(f"{k} neighbours need at least {k + 1} points, got {len(real)} and {len(generated)}")
    if real.shape[1] != generated.shape[1]:
        raise ValueError(f"features of different lengths: {real.shape[1]} and {generated.shape[1]}")
    real, generated = real.float(), generated.float()
    precision = _inside(generated, real, _radii(real, k, block), block)
    recall = _inside(real, generated, _radii(generated, k, block), block)
    return precision, recall


def _radii(points: Tensor, k: int, block: int) -> Tensor:
    """Return the distance (N,) of each point to its k-th nearest neighbour; the nearest of all is the point itself."""
    return torch.cat([_distances(rows, points).kthvalue(k + 1, dim=1).values for rows in points.split(block)])


def _inside(queries: Tensor, points: Tensor, radii: Tensor, block: int) -> float:
    """Return the share of the queries that lie in the ball of any point."""
    inside = [(_distances(rows, points) <= radii).any(dim=1) for rows in queries.split(block)]
    return float(torch.cat(inside).float().mean())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # By products of matrices equal points would not be at distance 0, and copies not inside balls of radius 0.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
