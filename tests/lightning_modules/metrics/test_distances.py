import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from lightning_modules.metrics import distances
from lightning_modules.metrics.distances import nearest, neighbour_radii, squared_distances
from lightning_modules.metrics.precision_recall import precision_recall


def all_distances(queries, points, block=1024):
    return torch.cat(list(squared_distances(queries, points, block)))


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("d", [3, 2048])
def test_copies_are_at_distance_zero_and_others_are_right(offset, d):
    """Products of matrices without a centre, or in float32, lose both."""
    random = torch.Generator().manual_seed(0)
    points = torch.randn(60, d, generator=random) + offset
    queries = torch.cat([points[:20], torch.randn(30, d, generator=random) + offset])
    found = all_distances(queries, points, 16)
    exact = (queries.double()[:, None] - points.double()[None]).square().sum(dim=2)
    assert (found[range(20), range(20)] == 0).all()
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-9 * d)
    assert found.dtype == torch.float32


def test_near_copies_are_not_copies():
    random = torch.Generator().manual_seed(0)
    points = torch.randn(50, 240, generator=random) * 100 + 1e3
    near = points + torch.randn(50, 240, generator=random) * 1e-2
    exact = (near.double() - points.double()).norm(dim=1)
    found, which = nearest(near, points)
    assert which.tolist() == list(range(50))
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=0.0)


def test_blocks_and_company_do_not_change_a_bit():
    random = torch.Generator().manual_seed(0)
    queries, points = torch.randn(70, 240, generator=random), torch.randn(50, 240, generator=random)
    whole = all_distances(queries, points)
    for block in (1, 7, 33):
        assert torch.equal(all_distances(queries, points, block), whole)


def test_many_points_are_taken_with_few_queries_at_a_time(monkeypatch):
    monkeypatch.setattr(distances, "HELD", 100)
    queries, points = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0))
    assert [len(rows) for rows in squared_distances(queries, points)] == [3] * 10
    assert precision_recall(queries, points) == precision_recall(queries, points, block=2)
    monkeypatch.undo()
    assert len(list(squared_distances(queries, points))) == 1


def test_neighbours_are_scikit_learns():
    random = np.random.default_rng(0)
    queries, points = random.normal(size=(40, 8)), random.normal(size=(60, 8))
    expected, which = NearestNeighbors(n_neighbors=1).fit(points).kneighbors(queries)
    found, indices = nearest(torch.from_numpy(queries), torch.from_numpy(points), 16)
    np.testing.assert_allclose(found, expected[:, 0], rtol=1e-6)
    assert indices.tolist() == which[:, 0].tolist()
    radii = NearestNeighbors(n_neighbors=4).fit(points).kneighbors(points)[0][:, 3]
    np.testing.assert_allclose(neighbour_radii(torch.from_numpy(points), 3).sqrt(), radii, rtol=1e-6)


def test_other_features_are_refused():
    with pytest.raises(ValueError, match="different lengths: 2 and 3"):
        list(squared_distances(torch.randn(9, 2), torch.randn(9, 3)))
