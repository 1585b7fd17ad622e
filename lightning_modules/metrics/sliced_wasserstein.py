"""Sliced Wasserstein distance of patches (Karras, Aila, Laine and Lehtinen 2018, arXiv:1710.10196, section 5)."""

import math
import zlib

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.metrics.features import FeatureExtractor
from lightning_modules.metrics.score import DistributionScore

PATCH = 7
PATCHES = 32  # per image and level
COARSEST = 16


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Return what each halving of the resolution loses, from fine to coarse, and last the coarsest images.

    Burt and Adelson 1983, with their filter of 1, 4, 6, 4, 1 sixteenths and mirrored edges. Enlarged again and added
    up, the levels are the images.

    Args:
        images: (N, C, H, W), at least 16 pixels a side.

    Returns:
        Levels (N, C, H / 2^i, W / 2^i), rounded up, until the shorter side would fall below 16 pixels.
    """
    levels = []
    while min(images.shape[2:]) >= 2 * COARSEST:
        smaller = _blur(images)[:, :, ::2, ::2]
        levels.append(images - enlarge(smaller, images.shape[2:]))
        images = smaller
    return [*levels, images]


def enlarge(images: Tensor, size: torch.Size) -> Tensor:
    """Return images (N, C, ceil(H / 2), ceil(W / 2)) at twice the resolution: zeros between the pixels, and the filter.

    Args:
        images: A level of a pyramid.
        size: H and W.
    """
    larger = images.new_zeros(*images.shape[:2], *size)
    larger[:, :, ::2, ::2] = images
    return 4.0 * _blur(larger)


def sliced_wasserstein(real: Tensor, generated: Tensor, directions: int = 64, seed: int = 0) -> float:
    """Return the mean Wasserstein-1 distance of two sets of descriptors along random directions.

    Karras 2018, section 5. Each set of descriptors is brought to mean 0 and standard deviation 1 first, over all of its
    descriptors and their elements. Sets may be of different sizes.

    Args:
        real: Descriptors (N, D).
        generated: Descriptors (M, D).
        directions: Number of them. The paper takes 512.
        seed: Of the directions.
    """
    if real.shape[1] != generated.shape[1]:
        raise ValueError(f"descriptors of different lengths: {real.shape[1]} and {generated.shape[1]}")
    drawn = np.random.default_rng(seed).standard_normal((directions, real.shape[1]))
    axes = torch.from_numpy(drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).float()
    # numpy sorts these several times faster than torch.
    a, b = (np.sort((axes @ _standardised(x).T).numpy(), axis=1) for x in (real, generated))
    # Between two neighbouring steps of either distribution function both quantiles are constant.
    steps = np.union1d(np.arange(1, len(real) + 1) / len(real), np.arange(1, len(generated) + 1) / len(generated))
    widths = np.diff(steps, prepend=0.0)
    middles = steps - widths / 2
    gaps = np.abs(a[:, (middles * len(real)).astype(int)] - b[:, (middles * len(generated)).astype(int)])
    return float((gaps @ widths).mean())


class LaplacianPatches(FeatureExtractor):
    """32 patches of 7x7 pixels from each level of an image's Laplacian pyramid, at random places.

    The places follow from the image itself, so that an image always gives the same vector. The paper takes 128 patches
    per level of far more images; 32 are 1,568 numbers per level, 7,840 per image of 256x256 pixels.
    """

    score_name = "laplacian_patches"
    dimensions = PATCHES * PATCH**2  # per level

    def identity(self) -> dict[str, str]:
        """Return name, "none" for the weights, and preprocessing."""
        return {
            "extractor": "laplacian_patches",
            "weights_sha256": "none",
            "preprocessing": f"mean over channels, own resolution, levels down to {COARSEST} pixels, {PATCHES} patches "
            f"of {PATCH}x{PATCH} per level",
        }

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W), at least 16 pixels a side, to patches (N, L 1568), level by level."""
        if min(images.shape[2:]) < COARSEST:
            raise ValueError(f"needs at least {COARSEST} pixels a side, got {tuple(images.shape[2:])}")
        images = images.mean(dim=1, keepdim=True)
        randoms = [np.random.default_rng(zlib.crc32(image.numpy().tobytes())) for image in images.cpu()]
        rows = torch.arange(len(images), device=images.device)[:, None]
        vectors = []
        for level in laplacian_pyramid(images):
            windows = level[:, 0].unfold(1, PATCH, 1).unfold(2, PATCH, 1)
            places = np.stack([random.integers(windows.shape[1:3], size=(PATCHES, 2)) for random in randoms])
            top, left = torch.from_numpy(places).to(images.device).unbind(dim=2)
            vectors.append(windows[rows, top, left].flatten(1))
        return torch.cat(vectors, dim=1)


class SlicedWasserstein(DistributionScore):
    """Sliced Wasserstein distance of patches, times 1,000 as in the paper, averaged over the pyramid's levels."""

    better = "lower"
    bounds = (0.0, math.inf)
    steady_from = 100  # 3,200 patches, of which those of one image resemble each other
    at_most = 2_000

    def __init__(self) -> None:
        self.reads = LaplacianPatches()

    def measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``sliced_wasserstein``."""
        self.check(real, generated)
        levels = real.shape[1] // LaplacianPatches.dimensions
        sets = [[x.reshape(-1, PATCH**2) for x in vectors.chunk(levels, dim=1)] for vectors in (real, generated)]
        distances = [sliced_wasserstein(a, b, seed=level) for level, (a, b) in enumerate(zip(*sets, strict=True))]
        return {"sliced_wasserstein": 1_000.0 * float(np.mean(distances))}


def _standardised(descriptors: Tensor) -> Tensor:
    centred = descriptors.cpu().double()
    centred = centred - centred.mean()
    deviation = centred.norm() / centred.numel() ** 0.5
    return centred.div_(deviation.clamp(min=1e-12)).float()  # blank images have none


def _blur(images: Tensor) -> Tensor:
    """Filter every channel with 1, 4, 6, 4, 1 sixteenths along both axes."""
    x = F.pad(images, (2, 2, 2, 2), mode="reflect")
    for _ in range(4):  # adding neighbours four times gives these weights, faster than a convolution
        x = x[:, :, 1:] + x[:, :, :-1]
        x = x[..., 1:] + x[..., :-1]
    return x / 256.0
