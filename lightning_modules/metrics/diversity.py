"""How much images differ from each other: does a generator make one image or many?"""

import torch
from torch import Tensor


def diversity(images: Tensor) -> float:
    """Return the mean root-mean-square difference between two images, over all pairs, in the unit of the pixels.

    Args:
        images: (N, C, H, W), N at least 2.
    """
    if len(images) < 2:
        raise ValueError(f"differences need at least 2 images, got {len(images)}")
    flat = images.flatten(1).float()
    return float(torch.pdist(flat).mean()) / flat.shape[1] ** 0.5
