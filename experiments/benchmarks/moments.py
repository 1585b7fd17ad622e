"""Moments of stored images against numpy and scipy: ``python -m experiments.benchmarks.moments``. One core."""

import numpy as np
import torch

from experiments.benchmarks.timing import rates, repeated, show
from lightning_modules.metrics.agreement import MomentAgreement
from lightning_modules.metrics.moments import moments, moments_of_levels

SIZE = 1024


def like_a_mammogram(levels: int, dtype: type) -> np.ndarray:
    """Return an image (H, W) of which two fifths are black and the rest has a skewed histogram."""
    image = np.random.default_rng(0).gamma(4.0, levels / 16.0, (SIZE, SIZE)).clip(0, levels - 1).astype(dtype)
    image[:, : 2 * SIZE // 5] = 0
    return image


def main() -> None:
    """Measure and print."""
    from scipy import stats

    torch.set_num_threads(1)
    noise = np.random.default_rng(0).integers(0, 65536, (SIZE, SIZE), dtype=np.uint16)
    for name, image, top in (
        ("8 bits", like_a_mammogram(256, np.uint8), 255),
        ("12 bits in 16", like_a_mammogram(4096, np.uint16), 4095),
        ("16 bits, every level", noise, 65535),
    ):

        def with_scipy(image: np.ndarray = image, top: int = top) -> tuple[float, ...]:
            pixels = image.reshape(-1) / (top / 2.0) - 1.0
            variance = pixels.var()
            fifth = stats.moment(pixels, 5) / variance**2.5
            return pixels.mean(), variance, stats.skew(pixels), stats.kurtosis(pixels, fisher=False), fifth

        def with_numpy(image: np.ndarray = image, top: int = top) -> list[float]:
            pixels = image.reshape(-1) / (top / 2.0) - 1.0
            centred = pixels - pixels.mean()
            return [(centred**power).mean() for power in (2, 3, 4, 5)]

        def ours(image: np.ndarray = image, top: int = top) -> torch.Tensor:
            return moments_of_levels(image, (0, top))

        scaled = torch.from_numpy((image / (top / 2.0) - 1.0).astype(np.float32))[None, None]
        found = rates(
            {
                "scipy.stats": repeated(with_scipy, 1, 1),
                "numpy, powers": repeated(with_numpy, 1, 1),
                "Mirage, float32 images": repeated(lambda scaled=scaled: moments(scaled), 20, 20),
                "Mirage, stored levels": repeated(ours, 40, 40),
            }
        )
        show(f"Moments of {SIZE}x{SIZE}, {name}, one core", found, "images/s")

    random = torch.Generator().manual_seed(0)
    real, generated = torch.randn(2, 5000, 5, generator=random)
    score = MomentAgreement()
    found = rates({"Mirage": repeated(lambda: score.measure(real, generated), 1, 1)}, rounds=3)
    show("Agreement of moments, 5,000 and 5,000 images", found, "per second")


if __name__ == "__main__":
    main()
