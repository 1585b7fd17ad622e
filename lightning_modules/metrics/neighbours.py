"""Nearest neighbours in pixels: does a generator repeat its training images?"""

from collections.abc import Iterable

import torch
from torch import Tensor


def nearest_images(queries: Tensor, images: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return each query's nearest image and how far it is.

    The distance is the root mean square difference of pixels: it finds copies, not resemblance. Images that differ by a
    shift are far apart.

    Args:
        queries: (N, C, H, W).
        images: Batches (M, C, H, W), on any device; read once.

    Returns:
        Distances (N,) in the unit of the pixels, and the nearest images (N, C, H, W).

    Raises:
        ValueError: If there is no image, or a query is not finite.
    """
    if not torch.isfinite(queries).all():
        raise ValueError("an image to find neighbours of is not finite")
    found, neighbours = torch.full((len(queries),), torch.inf, device=queries.device), torch.empty_like(queries)
    flat = queries.flatten(1).float()
    for batch in images:
        batch = batch.to(queries.device)
        # cdist by products of matrices loses what is left of nearly equal images; those are the ones that matter.
        distances = torch.cdist(flat, batch.flatten(1).float(), compute_mode="donot_use_mm_for_euclid_dist")
        closest, which = distances.min(dim=1)
        nearer = closest < found
        found = torch.where(nearer, closest, found)
        neighbours[nearer] = batch[which[nearer]].to(neighbours.dtype)
    if not torch.isfinite(found).all():
        raise ValueError("there is no image to compare with")
    return found / flat.shape[1] ** 0.5, neighbours
