"""d', the area under the ROC curve, and diversity."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from lightning_modules.metrics.diversity import diversity
from lightning_modules.metrics.separation import auc, d_prime


def test_d_prime_is_the_distance_in_standard_deviations():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(200_000, generator=generator), torch.randn(200_000, generator=generator)
    assert d_prime(3.0 * a + 7.0, 3.0 * b + 1.0) == pytest.approx(2.0, abs=0.02)
    assert d_prime(b, b) == 0.0 and d_prime(a, b + 1) == pytest.approx(-1.0, abs=0.02)


def test_d_prime_ignores_shift_and_scale():
    a, b = torch.randn(50), torch.randn(50) - 2
    assert d_prime(1e3 * a - 5e3, 1e3 * b - 5e3) == pytest.approx(d_prime(a, b), rel=1e-3)


def test_d_prime_of_constant_scores_is_finite():
    ones = torch.ones(4)
    assert d_prime(ones, ones) == 0.0 and 1e3 < d_prime(ones, -ones) < float("inf")
    with pytest.raises(ValueError, match="at least 2"):
        d_prime(ones[:1], ones)


def test_diversity_is_the_mean_difference_of_pairs():
    images = torch.zeros(3, 1, 2, 2)
    images[1], images[2] = 1.0, -1.0
    assert diversity(images) == pytest.approx((1 + 1 + 2) / 3)
    assert diversity(images[:1].expand(5, 1, 2, 2)) == 0.0
    with pytest.raises(ValueError, match="at least 2"):
        diversity(images[:1])


def test_auc_is_scikit_learns_with_ties():
    random = torch.Generator().manual_seed(0)
    higher, lower = torch.randint(3, 12, (50,), generator=random), torch.randint(0, 10, (30,), generator=random)
    expected = roc_auc_score([1] * 50 + [0] * 30, torch.cat([higher, lower]))
    assert auc(higher, lower) == pytest.approx(expected, abs=1e-12)
    assert auc(lower, higher) == pytest.approx(1 - expected, abs=1e-12)
    assert auc(higher, higher) == 0.5 and auc(lower + 20, lower) == 1.0
    with pytest.raises(ValueError, match="at least 1 score of each, got 50 and 0"):
        auc(higher, lower[:0])


@pytest.mark.parametrize("where", [0, 1])
def test_a_judge_that_has_diverged_is_not_perfect(where):
    scores = [torch.zeros(10), torch.ones(10)]
    scores[where][3:5] = torch.nan
    with pytest.raises(ValueError, match="2 of 20 scores are NaN: what gave them has diverged"):
        auc(*scores)
