"""Distances between feature vectors, exact where it matters: copies are at distance 0."""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 1024
HELD = 2**23  # distances in memory at a time: 64 MiB in float64, whatever the number of training images

# Float64 products of vectors of thousands of numbers are wrong by some 1e-14 of the squared norms, and float32 vectors
# say nothing about differences of 1e-6 of their size. What lies between is taken off, so that equal vectors get 0.
_ROUNDING = 1e-12


def squared_distances(queries: Tensor, points: Tensor, block: int = BLOCK) -> Iterator[Tensor]:
    """Yield squared Euclidean distances, for some queries at a time, on the CPU.

    They come from float64 products of matrices around the points' mean, and are rounded to float32: so a distance that
    equals another does so whatever block it was computed in.

    Args:
        queries: (N, D).
        points: (M, D).
        block: Queries at a time; fewer where there are more than 8,192 points.

    Yields:
        (B, M) float32, B at most ``block``.

    Raises:
        ValueError: If vectors are of different lengths.
    """
    if queries.shape[1] != points.shape[1]:
        raise ValueError(f"features of different lengths: {queries.shape[1]} and {points.shape[1]}")
    points = points.cpu().double()
    centre = points.mean(dim=0)
    points = points - centre
    norms = points.square().sum(dim=1) * (1.0 - _ROUNDING)
    for rows in queries.split(max(1, min(block, HELD // len(points)))):
        rows = rows.cpu().double() - centre
        products = torch.addmm(norms, rows, points.T, alpha=-2.0)
        products += rows.square().sum(dim=1, keepdim=True) * (1.0 - _ROUNDING)
        yield products.clamp_(min=0.0).float()


def nearest(queries: Tensor, points: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Return each query's distance (N,) to the nearest point, float64, and which one that is (N,).

    Args:
        queries: (N, D).
        points: (M, D), M at least 1.
        block: Queries at a time.
    """
    found = [distances.min(dim=1) for distances in squared_distances(queries, points, block)]
    return torch.cat([f.values for f in found]).double().sqrt(), torch.cat([f.indices for f in found])


def neighbour_radii(points: Tensor, k: int, block: int = BLOCK) -> Tensor:
    """Return the squared distance (N,) of each point to its k-th nearest neighbour among the others.

    Args:
        points: (N, D), N above k.
        k: 1 for the nearest.
        block: Points at a time.
    """
    # The point itself is one of the k + 1 nearest.
    return torch.cat(
        [
            distances.topk(k + 1, dim=1, largest=False).values.amax(dim=1)
            for distances in squared_distances(points, points, block)
        ]
    )
