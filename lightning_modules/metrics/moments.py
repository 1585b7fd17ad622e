"""The first five moments of an image's pixels (Korkinof 2021, Radiology: Artificial Intelligence 3(2):e190181).

Each image becomes five numbers: mean, variance, and the third to fifth standardised central moments. They see grey
levels, not where these lie in the image.
"""

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.features import FeatureExtractor

NAMES = ("mean", "variance", "skewness", "kurtosis", "hyperskewness")
_BLOCK = 2**16  # pixels; in float64 they stay in a processor's cache, which is 6 times as fast as a megapixel at once


def moments(images: Tensor) -> Tensor:
    """Return the five moments of each image, over all its pixels and channels.

    With m_k the mean of (x - mean)^k: mean, m_2, m_3 / m_2^1.5, m_4 / m_2^2 (Pearson's kurtosis, 3 for a normal
    distribution; the paper does not say whether it takes 3 off) and m_5 / m_2^2.5. The last three of a constant image
    are 0; no other image has a kurtosis below 1.

    Args:
        images: (N, C, H, W), of any range.

    Returns:
        (N, 5) float64, on the images' device.
    """
    if images.ndim != 4 or not images[0:1].numel():
        raise ValueError(f"expected at least one image (N, C, H, W), got shape {tuple(images.shape)}")
    return torch.stack([_moments_of_pixels(image.flatten()) for image in images])


def moments_of_levels(stored: np.ndarray, value_range: tuple[float, float]) -> Tensor:
    """Return the five moments of images as they are stored, without making floats of their pixels.

    An image of 8 or 16 bits is its histogram, which is exact and quick. The moments are those of ``moments`` after
    scaling to [-1, 1], to 1e-9.

    Args:
        stored: (N, C, H, W) or one image (H, W); uint8, uint16, int8 or int16.
        value_range: Stored values that become -1 and 1.

    Returns:
        (N, 5) float64, N = 1 for (H, W).

    Raises:
        ValueError: If the array is no such images, or values lie outside the range.
    """
    if stored.ndim not in (2, 4) or stored.dtype.kind not in "iu" or stored.itemsize > 2 or not stored.size:
        raise ValueError(f"expected 8- or 16-bit integers (N, C, H, W) or (H, W), got {stored.dtype} {stored.shape}")
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range={low:g}..{high:g}: is not a range")
    images = stored[None] if stored.ndim == 2 else stored
    return torch.stack([_moments_of_histogram(*_histogram(image), low, high) for image in images])


class Moments(FeatureExtractor):
    """The five moments as vectors, so that an evaluation can keep them like features. At the images' own resolution."""

    score_name = "moments"
    dimensions = len(NAMES)

    def identity(self) -> dict[str, str]:
        """Return name, and what is done to an image; there are no weights."""
        return {
            "extractor": "moments",
            "weights_sha256": "none",
            "preprocessing": "all pixels and channels, own resolution, float64; Pearson's kurtosis",
        }

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [-1, 1] to moments (N, 5), computed in float64 and returned as float32."""
        return moments(images).float()


def _moments_of_pixels(pixels: Tensor) -> Tensor:
    """Return the moments (5,) of pixels (P,)."""
    first, blocks = pixels[0].double(), pixels.split(_BLOCK)
    # Measured from a pixel, a constant image has a variance of exactly 0.
    mean = first + torch.stack([(block.double() - first).sum() for block in blocks]).sum() / len(pixels)
    sums = torch.stack([_power_sums(block.double() - mean) for block in blocks]).sum(dim=0)
    return _standardised(mean, sums / len(pixels))


def _power_sums(centred: Tensor) -> Tensor:
    """Return the sums (4,) of the second to fifth powers."""
    square = centred.square()
    cube = square * centred
    return torch.stack([square.sum(), cube.sum(), square.dot(square), cube.dot(square)])


def _histogram(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all levels from the lowest to the highest and how often each occurs, both (L,) float64."""
    bits, unsigned = 8 * image.itemsize, f"u{image.itemsize}"
    codes = np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("=")).reshape(-1).view(unsigned)
    lowest = 0
    if image.dtype.kind == "i":  # flipping the sign's bit sorts the codes as the levels
        lowest = -(2 ** (bits - 1))
        codes = codes ^ codes.dtype.type(-lowest)
    # torch counts 1.4 to 2 times as fast as numpy, which makes 64-bit integers of all pixels first.
    counts = torch.bincount(torch.from_numpy(codes.astype(np.uint8 if bits == 8 else np.int32))).numpy()
    first = int((counts > 0).argmax())
    return np.arange(first, len(counts), dtype=np.float64) + lowest, counts[first:].astype(np.float64)


def _moments_of_histogram(levels: np.ndarray, counts: np.ndarray, low: float, high: float) -> Tensor:
    if levels[0] < low or levels[-1] > high:
        raise ValueError(
            f"values {levels[0]:g} .. {levels[-1]:g} lie outside value_range={low:g}..{high:g}; "
            "give the range that the images are stored in"
        )
    scale, pixels = 2.0 / (high - low), counts.sum()
    mean = counts @ levels / pixels
    centred = (levels - mean) * scale
    square = centred * centred
    even = counts * square
    sums = [even.sum(), even @ centred, even @ square, (even * centred) @ square]
    scaled_mean = torch.tensor((mean - low) * scale - 1.0, dtype=torch.float64)
    return _standardised(scaled_mean, torch.tensor(sums, dtype=torch.float64) / pixels)


def _standardised(mean: Tensor, central: Tensor) -> Tensor:
    """Return the moments (5,) from the mean and the central moments m_2 .. m_5 (4,)."""
    variance = central[0]
    if variance == 0:
        return torch.cat([mean[None], torch.zeros_like(central)])
    powers = torch.tensor([1.5, 2.0, 2.5], dtype=torch.float64, device=central.device)
    return torch.cat([mean[None], variance[None], central[1:] / variance**powers])
