"""Power spectra: upsampling leaves traces at high frequencies (Durall, Keuper and Keuper 2020, arXiv:2003.01826)."""

import math

import torch
from torch import Tensor

from lightning_modules.metrics.features import FeatureExtractor
from lightning_modules.metrics.score import DistributionScore

RINGS = 64
# Power per frequency of rounding values of [-1, 1] to 16 bits, (2 / 65,535)^2 / 12: below lies nothing but rounding.
_ROUNDING = 8e-11


def radial_spectrum(images: Tensor) -> Tensor:
    """Return the power spectral density of each image in decibels, averaged over rings of equal frequency.

    The azimuthal integral of Durall 2020 (equation 3), as a mean. Frequencies are in cycles per pixel along either
    axis, so that images need not be square, and rings reach from the first beyond 0 to 0.5, which is a wave of two
    pixels; the corners beyond are left out. The mean of the image is left out too: it is brightness, not texture.

    Args:
        images: (N, C, H, W), at least 4 pixels a side. The channels' powers are averaged.

    Returns:
        (N, R), R = 64, or half of the shorter side if that is less.

    Raises:
        ValueError: If the images are smaller.
    """
    height, width = images.shape[2:]
    if min(height, width) < 4:
        raise ValueError(f"a spectrum needs at least 4 pixels a side, got {height}x{width}")
    rings = min(RINGS, min(height, width) // 2)
    power = torch.fft.rfft2(images.double(), norm="ortho").abs().square().mean(dim=1).flatten(1)
    vertical = torch.fft.fftfreq(height, device=images.device, dtype=torch.float64)
    horizontal = torch.fft.rfftfreq(width, device=images.device, dtype=torch.float64)
    # Of a pair of frequencies that differ in sign only one is computed, except on the first and the last column.
    pairs = torch.where((horizontal == 0) | (horizontal == 0.5), 1.0, 2.0).double().expand(height, -1).flatten()
    ring = (torch.hypot(vertical[:, None], horizontal) * 2 * rings).round().long().clamp(max=rings + 1).flatten()
    counts = pairs.new_zeros(rings + 2).index_add(0, ring, pairs)
    mean = power.new_zeros(len(power), rings + 2).index_add(1, ring, power * pairs)[:, 1:-1] / counts[1:-1]
    return 10.0 * (mean + _ROUNDING).log10()


def spectral_distance(real: Tensor, generated: Tensor) -> float:
    """Return the root mean square difference of two sets' mean spectra, in decibels.

    Args:
        real: Spectra (N, R) in decibels.
        generated: Spectra (M, R) in decibels.
    """
    return float((real.double().mean(dim=0) - generated.double().mean(dim=0)).square().mean().sqrt())


class RadialSpectrum(FeatureExtractor):
    """Power spectrum of each image over 64 rings of equal frequency, or fewer for images below 128 pixels."""

    score_name = "radial_spectrum"
    dimensions = RINGS

    def identity(self) -> dict[str, str]:
        """Return name, "none" for the weights, and preprocessing."""
        return {
            "extractor": "radial_spectrum",
            "weights_sha256": "none",
            "preprocessing": f"own resolution, mean power of channels, at most {RINGS} rings up to 0.5 cycles per "
            "pixel, decibels",
        }

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to spectra (N, R) in decibels."""
        return radial_spectrum(images).float()


class SpectralDistance(DistributionScore):
    """Difference of the mean power spectra of two sets of images, in decibels."""

    better = "lower"
    bounds = (0.0, math.inf)
    steady_from = 50  # images' spectra differ by some 5 dB, so that the mean of fewer is off by about 1 dB

    def __init__(self) -> None:
        self.reads = RadialSpectrum()

    def measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``spectral_distance``."""
        self.check(real, generated)
        return {"spectral_distance": spectral_distance(real, generated)}
