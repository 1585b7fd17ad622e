"""Diversity by structural similarity: how alike are two images of one set?

Odena, Olah and Shlens 2017 (arXiv:1610.09585, section 4.2) took the multi-scale structural similarity of Wang,
Simoncelli and Bovik 2003 between pairs of generated images as a sign of collapse; Karras 2018 (arXiv:1710.10196, table
1) over 10,000 of them.
"""

from bisect import bisect_right

from torch import Tensor

from lightning_modules.metrics.features import FeatureExtractor
from lightning_modules.metrics.score import DistributionScore

# Wang 2003, section 3.2: the weights of the scales, from fine to coarse; and the side of its Gaussian window.
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW = 11
# Pixels from which so many scales are taken: the coarsest must hold the window; torchmetrics asks for 99 instead of 88.
SMALLEST = (11, 22, 44, 99, 176)


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the multi-scale structural similarity of pairs of images, 1 if they are equal.

    All five scales need 176 pixels a side. Of smaller images only the first ones are taken, as many as hold the window,
    and their weights are divided by their sum.

    Args:
        a: (N, C, H, W) in [-1, 1], at least 11 pixels a side.
        b: Of the same shape.

    Returns:
        (N,), at most 1. As torchmetrics has it, negative terms count as 0 and the coarsest scale is mirrored at its edges.

    Raises:
        ValueError: If the images are smaller than the window.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measure

    scales = _scales(min(a.shape[2:]))
    weights = tuple(weight / sum(WEIGHTS[:scales]) for weight in WEIGHTS[:scales])
    return measure(a, b, data_range=2.0, kernel_size=WINDOW, betas=weights, reduction="none")


class NeighbourSimilarity(FeatureExtractor):
    """Similarity of each image to the next one of its batch, and of the last to the first.

    A batch of N images is N pairs, and each image is in two of them: batches must be drawn at random, and of the same
    size in all sets.
    """

    score_name = "neighbour_similarity"
    dimensions = 1

    def identity(self) -> dict[str, str]:
        """Return name, "none" for the weights, and preprocessing."""
        return {
            "extractor": "ms_ssim_of_neighbours",
            "weights_sha256": "none",
            "preprocessing": "own resolution; 5 scales from 176 pixels on the shorter side, 4 from 99, 3 from 44, 2 "
            "from 22, else 1, weights divided by their sum",
        }

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W), N at least 2, to similarities (N, 1)."""
        if len(images) < 2:
            raise ValueError("a single image has no neighbour; give batches of at least 2")
        return ms_ssim(images, images.roll(-1, dims=0)).reshape(-1, 1)


class Diversity(DistributionScore):
    """Mean structural similarity of pairs of generated images: above real images' where a generator repeats itself."""

    better = "as real"
    at_most = 2_000

    def __init__(self) -> None:
        self.reads = NeighbourSimilarity()

    def enough(self, dimensions: int) -> int:
        """Return 100: similarities of pairs spread widely, and with fewer a collapse in part is not seen.

        Args:
            dimensions: Length of a vector; of no influence.
        """
        return 100

    def measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``ms_ssim`` of the generated images."""
        self.check(real, generated)
        return {"ms_ssim": float(generated.double().mean())}


def _scales(side: int) -> int:
    if side < WINDOW:
        raise ValueError(f"structural similarity needs at least {WINDOW} pixels a side, got {side}")
    return bisect_right(SMALLEST, side)
