import numpy as np
import pytest

from datamodules.transforms import resize


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
