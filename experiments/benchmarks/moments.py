"""Moments of stored images against numpy and scipy: ``python -m experiments.benchmarks.moments``. One core."""

import numpy as np
import torch

from experiments.benchmarks.timing import rates, repeated, show
from lightning_modules.metrics.agreement import MomentAgreement
from lightning_modules.metrics.moments import moments, moments_of_levels

SIZE = 1024


def like_a_mammogram(levels: int, dtype: type) -> np.ndarray:
    """Return an image (H, W) of which two fifths are black and the rest has a skewed histogram."""
    image: np.ndarray = (
        np.random.default_rng(0).gamma(4.0, levels / 16.0, (SIZE, SIZE)).clip(0, levels - 1).astype(dtype)
    )
    image[:, : 2 * SIZE // 5] = 0
    return image


def compare(name: str, image: np.ndarray, top: int) -> None:
    """Measure and print the ways to get the moments of one image whose largest value is ``top``."""
    from scipy import stats

    def with_scipy() -> None:
        pixels = image.reshape(-1) / (top / 2.0) - 1.0
        variance = pixels.var()
        (pixels.mean(), variance, stats.skew(pixels), stats.kurtosis(pixels), stats.moment(pixels, 5) / variance**2.5)

    def with_numpy() -> None:
        pixels = image.reshape(-1) / (top / 2.0) - 1.0
        centred = pixels - pixels.mean()
        [(centred**power).mean() for power in (2, 3, 4, 5)]

    scaled = torch.from_numpy((image / (top / 2.0) - 1.0).astype(np.float32))[None, None]
    found = rates(
        {
            "scipy.stats": repeated(with_scipy, 1, 1),
            "numpy, powers": repeated(with_numpy, 1, 1),
            "Mirage, float32 images": repeated(lambda: moments(scaled), 20, 1),
            "Mirage, stored levels": repeated(lambda: moments_of_levels(image, (0, top)), 40, 1),
        }
    )
    show(f"Moments of {SIZE}x{SIZE}, {name}, one core", found, "images/s")


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    compare("8 bits", like_a_mammogram(256, np.uint8), 255)
    compare("12 bits in 16", like_a_mammogram(4096, np.uint16), 4095)
    compare("16 bits, every level", np.random.default_rng(0).integers(0, 65536, (SIZE, SIZE), dtype=np.uint16), 65535)
    random = torch.Generator().manual_seed(0)
    real, generated = torch.randn(2, 5000, 5, generator=random)
    score = MomentAgreement()
    found = rates({"Mirage": repeated(lambda: score.measure(real, generated), 1, 1)}, rounds=3)
    show("Agreement of moments, 5,000 and 5,000 images", found, "per second")


if __name__ == "__main__":
    main()
