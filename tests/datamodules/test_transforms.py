import numpy as np
import pytest

from datamodules.batches.transforms import resize


def test_shrinking_by_whole_numbers_averages_boxes():
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    np.testing.assert_allclose(resize(image, 2, 2)[0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_allclose(resize(image, 4, 2)[0, 0], [0.5, 2.5])


@pytest.mark.parametrize("size", [(3, 5), (10, 10), (7, 4)])
def test_any_size_keeps_mean_and_range(size):
    image = np.random.default_rng(0).random((2, 8, 8), dtype=np.float32)
    small = resize(image, *size)
    assert small.shape == (2, *size) and small.dtype == np.float32
    assert small.min() >= image.min() - 1e-6 and small.max() <= image.max() + 1e-6
    np.testing.assert_allclose(resize(np.full((1, 9, 9), 3.0, np.float32), *size), 3.0, rtol=1e-6)


def test_same_size_is_untouched():
    image = np.random.default_rng(0).random((1, 8, 8), dtype=np.float32)
    assert resize(image, 8, 8) is image


def test_shrinking_by_any_ratio_is_the_mean_of_the_covered_area():
    image = np.random.default_rng(0).random((1, 7, 11), dtype=np.float32)
    fine = image.repeat(5, axis=1).repeat(4, axis=2)  # 35 x 44: whole multiples of 5 x 4
    np.testing.assert_allclose(resize(image, 5, 4), resize(fine, 5, 4), rtol=1e-5)
    np.testing.assert_allclose(resize(image, 5, 4).mean(), image.mean(), rtol=1e-5)


def test_stage_by_stage_is_the_same_as_at_once():
    image = np.random.default_rng(0).random((1, 40, 32), dtype=np.float32)
    np.testing.assert_allclose(resize(resize(resize(image, 20, 16), 10, 8), 5, 4), resize(image, 5, 4), rtol=1e-5)
