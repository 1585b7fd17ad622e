"""Diversity by structural similarity: how alike are two images of one set?

Odena, Olah and Shlens 2017 (arXiv:1610.09585, section 4.2) took the multi-scale structural similarity of Wang,
Simoncelli and Bovik 2003 between pairs of generated images as a sign of collapse; Karras 2018 (arXiv:1710.10196, table
1) over 10,000 of them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.metrics.features import FeatureExtractor
from lightning_modules.metrics.score import DistributionScore

# Wang 2003, section 3.2: the weights of the scales, from fine to coarse. The window is a Gaussian of 1.5 pixels, 11
# wide; the constants are those for values in [-1, 1].
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, DEVIATION = 11, 1.5
LUMINANCE, CONTRAST = (0.01 * 2.0) ** 2, (0.03 * 2.0) ** 2


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the multi-scale structural similarity of pairs of images, 1 if they are equal.

    Wang 2003, equations 3 to 7. All five scales need 176 pixels a side. Of smaller images only the first ones are
    taken, as many as hold the window, and their weights are divided by their sum.

    Args:
        a: (N, C, H, W) in [-1, 1], at least 11 pixels a side. Channels are averaged at each scale.
        b: Of the same shape.

    Returns:
        (N,) float64, at most 1. A scale on which the images are opposite counts as 0.

    Raises:
        ValueError: If the images are smaller than the window, or of different shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"images of different shapes: {tuple(a.shape)} and {tuple(b.shape)}")
    scales = _scales(min(a.shape[2:]))
    value = a.new_ones(len(a), dtype=torch.float64)
    for scale in range(scales):
        if scale:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        similarity = _similarity(a, b, luminance=scale == scales - 1).flatten(1).double().mean(dim=1)
        value *= similarity.clamp(min=0.0) ** (WEIGHTS[scale] / sum(WEIGHTS[:scales]))
    return value


class PairSimilarity(FeatureExtractor):
    """Similarity of images 2i and 2i + 1 of a batch, in the rows of both.

    Pairs share no image, so that similarities of images drawn at random are independent.
    """

    score_name = "pair_similarity"
    dimensions = 1

    def identity(self) -> dict[str, str]:
        """Return name, "none" for the weights, and preprocessing."""
        return {
            "extractor": "ms_ssim_of_disjoint_pairs",
            "weights_sha256": "none",
            "preprocessing": "own resolution; 5 scales from 176 pixels on the shorter side, 4 from 88, 3 from 44, 2 "
            "from 22, else 1, weights divided by their sum",
        }

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W), N at least 2, to similarities (N, 1); the last of an odd number gets NaN."""
        if len(images) < 2:
            raise ValueError("a single image makes no pair; give batches of at least 2")
        found = images.new_full((len(images), 1), torch.nan)
        similarities = ms_ssim(images[:-1:2], images[1::2]).float()
        found[: 2 * len(similarities), 0] = similarities.repeat_interleave(2)
        return found


class Diversity(DistributionScore):
    """Mean structural similarity of pairs of generated images: above real images' where a generator repeats itself.

    Each image is in one pair at most. The pair is what is resampled, and real pairs share no patient, so that the
    deviation over halves is the standard error of the mean, and halves of real images share neither images nor
    patients. (With each image in two pairs, the error was 1.2 to 1.3 times the reported one.)
    """

    better = "as real"
    unit = "pair"
    bounds = (-1.0, 1.0)
    steady_from = 100  # similarities of pairs spread widely, and with fewer a collapse in part is not seen
    at_most = 2_000

    def __init__(self) -> None:
        self.reads = PairSimilarity()

    def measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``ms_ssim`` of the generated images.

        Args:
            real: Similarities (N, 1), one per pair; they say how many there are, no more.
            generated: Similarities (M, 1), one per pair.

        Raises:
            TooFewImagesError: If a set has fewer than ``at_least`` pairs.
        """
        self.check(real, generated)
        return {"ms_ssim": float(generated.double().mean())}


def _similarity(a: Tensor, b: Tensor, luminance: bool) -> Tensor:
    """Return contrast times structure, times luminance if it is wanted, at each place where the window fits."""
    mean_a, mean_b = _window(a), _window(b)
    variances = _window(a * a + b * b) - mean_a**2 - mean_b**2
    covariance = _window(a * b) - mean_a * mean_b
    similarity = (2.0 * covariance + CONTRAST) / (variances + CONTRAST)
    if luminance:
        similarity *= (2.0 * mean_a * mean_b + LUMINANCE) / (mean_a**2 + mean_b**2 + LUMINANCE)
    return similarity


def _window(x: Tensor) -> Tensor:
    """Average (N, C, H, W) over the Gaussian window: sums of shifted images are faster than a convolution."""
    weights = torch.exp(-((torch.arange(WINDOW) - WINDOW // 2) ** 2) / (2.0 * DEVIATION**2))
    for dim in (2, 3):
        length = x.shape[dim] - WINDOW + 1
        total = torch.zeros_like(x.narrow(dim, 0, length))
        for start, weight in enumerate((weights / weights.sum()).tolist()):
            total.add_(x.narrow(dim, start, length), alpha=weight)
        x = total
    return x


def _scales(side: int) -> int:
    """Return how many scales hold the window, each of half the side of the one before."""
    if side < WINDOW:
        raise ValueError(f"structural similarity needs at least {WINDOW} pixels a side, got {side}")
    return min(len(WEIGHTS), (side // WINDOW).bit_length())
