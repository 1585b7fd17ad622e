import numpy as np
import pytest
import torch

from lightning_modules.metrics.precision_recall import precision_recall


def by_definition(real, generated, k):
    """Kynkaanniemi 2019, equations 1 to 3, one pair at a time."""

    def share(queries, points):
        radii = [np.sort([np.linalg.norm(p - q) for q in points])[k] for p in points]
        inside = [any(np.linalg.norm(x - p) <= r for p, r in zip(points, radii, strict=True)) for x in queries]
        return np.mean(inside)

    return share(generated, real), share(real, generated)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 3])
def test_equals_the_definition(seed, k):
    random = np.random.default_rng(seed)
    real, generated = random.normal(size=(40, 5)), random.normal(1.0, 1.0, size=(30, 5))
    found = precision_recall(torch.from_numpy(real).float(), torch.from_numpy(generated).float(), k)
    expected = by_definition(real.astype(np.float32), generated.astype(np.float32), k)
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0 < expected[0] < 1 and 0 < expected[1] < 1  # both sides of the balls were seen


def test_blocks_do_not_change_the_result():
    torch.manual_seed(0)
    real, generated = torch.randn(50, 4), torch.randn(33, 4) + 0.5
    assert len({precision_recall(real, generated, block=block) for block in (1, 7, 50, 1024)}) == 1


def test_equal_sets_are_perfect_and_distant_ones_worthless():
    points = torch.randn(20, 6)
    assert precision_recall(points, points) == (1.0, 1.0)
    assert precision_recall(points, points + 100.0) == (0.0, 0.0)


def test_one_of_two_clusters_is_precise_and_recalls_half():
    torch.manual_seed(0)
    left, right = torch.randn(30, 3) * 0.01, torch.randn(30, 3) * 0.01 + 10.0
    precision, recall = precision_recall(torch.cat([left, right]), left)
    assert precision == 1.0 and recall == 0.5
    precision, recall = precision_recall(left, torch.cat([left, right]))
    assert precision == 0.5 and recall == 1.0


def test_points_on_a_line_by_hand():
    """With k = 1 the balls around 0, 1 and 3 reach 1, 1 and 2: together from -1 to 5."""
    real, generated = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[-1.5], [-1.0], [5.0], [5.5]])
    precision, recall = precision_recall(real, generated, k=1)
    assert precision == 0.5 and recall == 0.0


def test_copies_of_one_image_have_no_manifold_but_themselves():
    torch.manual_seed(0)
    real = torch.randn(20, 4)
    assert precision_recall(real, real[:1].expand(10, 4)) == pytest.approx((1.0, 1 / 20))


def test_too_few_points_or_other_features_are_refused():
    with pytest.raises(ValueError, match="at least 4 points, got 3 and 9"):
        precision_recall(torch.randn(3, 2), torch.randn(9, 2))
    with pytest.raises(ValueError, match="different lengths: 2 and 3"):
        precision_recall(torch.randn(9, 2), torch.randn(9, 3))
