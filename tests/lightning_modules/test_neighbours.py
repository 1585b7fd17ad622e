import pytest
import torch

from lightning_modules.metrics.neighbours import nearest_images


def test_copies_are_found_whatever_the_batches():
    images = torch.randn(20, 1, 5, 4)
    queries = images[[17, 3]] + 1e-3
    for size in (1, 7, 20):
        distances, neighbours = nearest_images(queries, images.split(size))
        assert torch.equal(neighbours, images[[17, 3]])
        torch.testing.assert_close(distances, torch.full((2,), 1e-3), rtol=1e-3, atol=1e-6)


def test_distance_is_the_root_mean_square_difference():
    query, image = torch.randn(2, 1, 3, 6, 6)
    distance, _ = nearest_images(query[None, 0:1], [image[None, 0:1]])
    assert float(distance) == pytest.approx(float((query[0] - image[0]).square().mean().sqrt()), rel=1e-5)


def test_nothing_to_compare_with_is_an_error():
    with pytest.raises(ValueError, match="no image"):
        nearest_images(torch.zeros(1, 1, 2, 2), [])
