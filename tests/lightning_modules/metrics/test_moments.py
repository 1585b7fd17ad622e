import numpy as np
import pytest
import torch
from scipy import stats

from lightning_modules.metrics.moments import NAMES, Moments, moments, moments_of_levels

RANGES = {np.uint8: (0, 255), np.uint16: (0, 65535), np.int8: (-128, 127), np.int16: (-32768, 32767)}


def by_scipy(values):
    """The five moments of each image, by scipy in float64."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    central = [stats.moment(rows, order, axis=1) for order in (2, 5)]
    return np.stack(
        [
            rows.mean(axis=1),
            central[0],
            stats.skew(rows, axis=1),
            stats.kurtosis(rows, axis=1, fisher=False),
            central[1] / central[0] ** 2.5,
        ],
        axis=1,
    )


def stored_images(dtype, seed=0):
    low, high = RANGES[dtype]
    draws = np.random.default_rng(seed).gamma(2.0, 0.08, (3, 2, 37, 53)).clip(0, 1)
    return np.rint(low + draws * (high - low)).astype(dtype)


@pytest.mark.parametrize("dtype", RANGES)
def test_stored_levels_equal_scipy(dtype):
    stored, (low, high) = stored_images(dtype), RANGES[dtype]
    scaled = (stored.astype(np.float64) - low) / (high - low) * 2 - 1
    np.testing.assert_allclose(moments_of_levels(stored, (low, high)).numpy(), by_scipy(scaled), rtol=1e-9)


@pytest.mark.parametrize("dtype", RANGES)
def test_levels_equal_floats(dtype):
    stored, (low, high) = stored_images(dtype), RANGES[dtype]
    scaled = torch.from_numpy((stored.astype(np.float64) - low) / (high - low) * 2 - 1)
    torch.testing.assert_close(moments_of_levels(stored, (low, high)), moments(scaled), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(Moments()(scaled.float()), moments(scaled).float(), rtol=1e-5, atol=1e-5)


def test_a_large_image_is_summed_in_blocks_without_loss():
    image = torch.from_numpy(np.random.default_rng(0).gamma(2.0, 0.1, (1, 1, 517, 401))).float()
    np.testing.assert_allclose(moments(image).numpy(), by_scipy(image.numpy()), rtol=1e-9)


def test_a_small_spread_far_from_zero_keeps_its_digits():
    """12-bit values at the upper end of 16 bits, whose float32 powers would have lost everything."""
    stored = (65000 + np.random.default_rng(0).integers(0, 3, (1, 1, 200, 200))).astype(np.uint16)
    found = moments_of_levels(stored, (0, 65535))
    np.testing.assert_allclose(found[:, 2:].numpy(), by_scipy(stored)[:, 2:], rtol=1e-9)


def test_two_levels_have_the_closed_form():
    """A share p of ones among zeros: variance p q, and with d = q - p: d / s, (1 - 3 s^2) / s^2 (s^2 = p q)."""
    image = torch.zeros(1, 1, 10, 10)
    image[..., 0, :3] = 1.0
    p = 0.03
    variance = p * (1 - p)
    fifth = p * (1 - p) * ((1 - p) ** 4 - p**4)
    expected = [p, variance, (1 - 2 * p) / variance**0.5, 1 / variance - 3, fifth / variance**2.5]
    assert moments(image)[0].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("value", [0, 25, 255])
def test_a_constant_image_has_no_shape(value):
    expected = [value / 255 * 2 - 1, 0, 0, 0, 0]
    image = torch.full((1, 1, 300, 300), value / 255 * 2 - 1)
    assert moments(image)[0].tolist() == pytest.approx(expected)
    assert moments(image)[0, 1:].tolist() == [0, 0, 0, 0]
    found = moments_of_levels(np.full((9, 8), value, np.uint8), (0, 255))
    assert found[0].tolist() == pytest.approx(expected)


def test_layout_in_memory_and_byte_order_do_not_matter():
    stored = stored_images(np.uint16)
    expected = moments_of_levels(stored, (0, 65535))
    turned = np.ascontiguousarray(stored.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    turned.setflags(write=False)
    for same in (turned, stored.astype(">u2"), stored[:, :, ::-1]):
        assert torch.equal(moments_of_levels(same, (0, 65535)), expected)
    assert torch.equal(moments_of_levels(stored[0, 0], (0, 65535)), moments_of_levels(stored[:1, :1], (0, 65535)))


def test_the_range_scales_mean_and_variance_only():
    stored = stored_images(np.uint16) // 16
    narrow, wide = moments_of_levels(stored, (0, 4095)), moments_of_levels(stored, (0, 65535))
    torch.testing.assert_close(narrow[:, 2:], wide[:, 2:], rtol=1e-9, atol=0)
    torch.testing.assert_close(narrow[:, 1], wide[:, 1] * (65535 / 4095) ** 2, rtol=1e-9, atol=0)


def test_the_extractor_says_what_it_is():
    extractor = Moments()
    found = extractor(torch.rand(4, 1, 20, 30))
    assert found.shape == (4, extractor.dimensions) == (4, len(NAMES)) and found.dtype == torch.float32
    assert extractor.score_name == "moments" and set(extractor.identity()) >= {"extractor", "weights_sha256"}


def test_other_arrays_and_ranges_are_refused():
    with pytest.raises(ValueError, match="8- or 16-bit integers"):
        moments_of_levels(np.zeros((4, 4), np.float32), (0, 1))
    with pytest.raises(ValueError, match="8- or 16-bit integers"):
        moments_of_levels(np.zeros((3, 4, 4), np.uint8), (0, 255))
    with pytest.raises(ValueError, match=r"values 0 .. 4096 lie outside value_range=0..4095"):
        moments_of_levels(np.array([[0, 4096]], np.uint16), (0, 4095))
    with pytest.raises(ValueError, match="is not a range"):
        moments_of_levels(np.zeros((4, 4), np.uint8), (255, 0))
    with pytest.raises(ValueError, match="at least one image"):
        moments(torch.zeros(0, 1, 4, 4))
    with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
        Moments()(torch.full((1, 1, 4, 4), 2.0))
