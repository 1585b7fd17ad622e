import numpy as np
import pytest
import torch

from lightning_modules.metrics.score import TooFewImagesError
from lightning_modules.metrics.spectrum import RadialSpectrum, SpectralDistance, radial_spectrum, spectral_distance


def by_definition(image, rings):
    """All frequencies of the full transform, one at a time."""
    height, width = image.shape[1:]
    power = (np.abs(np.fft.fft2(image)) ** 2).mean(axis=0) / (height * width)
    sums, counts = np.zeros(rings + 1), np.zeros(rings + 1)
    for y, fy in enumerate(np.fft.fftfreq(height)):
        for x, fx in enumerate(np.fft.fftfreq(width)):
            ring = int(np.rint(np.hypot(fy, fx) * 2 * rings))
            if ring <= rings:
                sums[ring] += power[y, x]
                counts[ring] += 1
    return 10 * np.log10(sums[1:] / counts[1:] + 8e-11)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 20, 16), (3, 17, 24), (1, 9, 4)])
def test_equals_the_definition(shape):
    images = noise(2, *shape)
    expected = [by_definition(image.double().numpy(), min(shape[1:]) // 2) for image in images]
    np.testing.assert_allclose(radial_spectrum(images), expected, atol=1e-9)


@pytest.mark.parametrize("height, width", [(256, 256), (128, 160), (64, 48)])
def test_white_noise_is_flat_at_its_variance_whatever_the_size(height, width):
    spectra = RadialSpectrum()(noise(20, 1, height, width))
    assert spectra.shape == (20, min(64, min(height, width) // 2)) and spectra.dtype == torch.float32
    power = (10 ** (spectra.double() / 10)).mean(dim=0)
    assert power.mean() == pytest.approx(0.01, rel=0.02)
    np.testing.assert_allclose(power, 0.01, rtol=0.45)  # the first ring has 8 frequencies only


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("cycles", [0.125, 0.25, 0.5])
def test_a_wave_lands_in_its_ring_along_either_axis(axis, cycles):
    shape = [1, 1, 96, 64]
    wave = torch.cos(2 * torch.pi * cycles * torch.arange(shape[axis])).reshape(
        [-1 if i == axis else 1 for i in range(4)]
    )
    assert int(radial_spectrum(wave.expand(shape)).argmax()) + 1 == round(cycles * 64)


def test_brightness_and_sign_do_not_count():
    images = noise(3, 1, 32, 32)
    torch.testing.assert_close(radial_spectrum(images + 0.5), radial_spectrum(-images))
    assert torch.isfinite(radial_spectrum(torch.ones(2, 1, 32, 32))).all()


def test_gain_is_its_decibels_and_blur_and_checkerboards_are_seen():
    images = noise(60, 1, 64, 64)
    real, other = RadialSpectrum()(images[:30]), RadialSpectrum()(images[30:])
    assert spectral_distance(real, RadialSpectrum()(images[:30] * 2)) == pytest.approx(20 * np.log10(2), rel=1e-4)
    assert spectral_distance(real, real) == 0.0
    floor = SpectralDistance().measure(real, other)["spectral_distance"]
    blurred = torch.nn.functional.avg_pool2d(images[30:], 3, stride=1, padding=1)
    board = images[30:].clone()
    board[:, :, ::2, ::2] += 0.1
    for failure in (blurred, board):
        assert spectral_distance(real, RadialSpectrum()(failure)) > 3 * floor
    assert spectral_distance(real, other[:7]) == pytest.approx(spectral_distance(other[:7], real))


def test_too_small_and_too_few_are_refused():
    with pytest.raises(ValueError, match="at least 4 pixels a side, got 3x9"):
        RadialSpectrum()(torch.zeros(2, 1, 3, 9))
    with pytest.raises(TooFewImagesError, match="SpectralDistance needs at least 2"):
        SpectralDistance().measure(torch.zeros(5, 8), torch.zeros(1, 8))
    assert isinstance(SpectralDistance().reads, RadialSpectrum)
