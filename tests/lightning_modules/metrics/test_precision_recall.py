import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torch_fidelity.metric_prc import prc_features_to_metric

from lightning_modules.metrics.precision_recall import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    precision_recall,
)
from lightning_modules.metrics.score import TooFewImagesError


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


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_copies_lie_inside_whatever_the_offset(offset):
    """Half of the real images are there twice: their balls have radius 0 and only a distance of 0 lies in them."""
    random = torch.Generator().manual_seed(0)
    once = torch.randn(20, 240, generator=random) + offset
    real = torch.cat([once, once])
    assert precision_recall(real, once[:7].repeat(3, 1), k=1) == pytest.approx((1.0, 7 / 20))
    assert precision_recall(real, once + 1e-2, k=1) == (0.0, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_equals_prdc_and_torch_fidelity(seed):
    random = np.random.default_rng(seed)
    real, generated = random.normal(size=(300, 20)), random.normal(0.2, 0.9, size=(200, 20))
    a, b = torch.from_numpy(real), torch.from_numpy(generated)
    for k in (3, 5):
        expected = compute_prdc(real, generated, nearest_k=k)
        assert precision_recall(a, b, k) == pytest.approx((expected["precision"], expected["recall"]), abs=1e-12)
        assert density_coverage(a, b, k) == pytest.approx((expected["density"], expected["coverage"]), abs=1e-12)
    fidelity = prc_features_to_metric(
        b, a, prc_neighborhood=3, prc_batch_size=10_000, save_cpu_ram=False, verbose=False
    )
    assert precision_recall(a, b) == pytest.approx((fidelity["precision"], fidelity["recall"]))


def test_density_and_coverage_of_equal_distributions():
    """Naeem 2020, lemma 1 and 2: density 1, coverage 1 - 2^-k."""
    random = torch.Generator().manual_seed(0)
    density, coverage = density_coverage(*torch.randn(2, 2000, 4, generator=random), k=2)
    assert density == pytest.approx(1.0, abs=0.06)
    assert coverage == pytest.approx(0.75, abs=0.03)
    points = torch.randn(50, 4, generator=random)
    assert density_coverage(points, points) == (1.0, 1.0)
    assert density_coverage(points, points + 100) == (0.0, 0.0)


def test_an_outlier_hardly_counts_for_density():
    """Its huge ball makes everything recalled; only real images have balls in density and coverage."""
    random = torch.Generator().manual_seed(0)
    real = torch.randn(200, 4, generator=random)
    generated = torch.cat([real[:20] * 0.01 + 30.0, torch.full((5, 4), -400.0)])
    assert precision_recall(real, generated)[1] == 0.0
    assert precision_recall(real, torch.cat([generated, torch.full((1, 4), -100.0)]))[1] == 1.0
    assert density_coverage(real, generated) == (0.0, 0.0)


def test_instruments_name_and_refuse():
    random = torch.Generator().manual_seed(0)
    real, generated = torch.randn(30, 4, generator=random), torch.randn(20, 4, generator=random)
    precision, recall = precision_recall(real, generated)
    assert PrecisionRecall().measure(real, generated) == {"precision": precision, "recall": recall}
    density, coverage = density_coverage(real, generated)
    assert DensityCoverage().measure(real, generated) == {"density": density, "coverage": coverage}
    assert PrecisionRecall().at_most == DensityCoverage().at_most == 5_000
    with pytest.raises(TooFewImagesError, match="PrecisionRecall needs at least 4 images"):
        PrecisionRecall().measure(real, generated[:3])
    with pytest.raises(TooFewImagesError, match="DensityCoverage needs at least 6 images"):
        DensityCoverage().measure(real, generated[:5])
    with pytest.raises(ValueError, match="5 neighbours need at least 6 points, got 5 and 20"):
        density_coverage(real[:5], generated)
    with pytest.raises(ValueError, match="k=0"):
        PrecisionRecall(k=0)


def test_balls_that_are_points_are_said():
    """Many copies of each image: no generated image but an equal one lies in such a ball."""
    random = torch.Generator().manual_seed(0)
    points, others = torch.randn(2, 10, 4, generator=random)
    copies = torch.cat([points.repeat_interleave(4, dim=0), others[:5]])
    said = "of 45 {} images equal 3 others: their balls have radius 0 and hold nothing else"
    assert PrecisionRecall().warnings(copies, others) == [f"40 {said.format('real')}"]
    assert PrecisionRecall().warnings(others, copies) == [f"40 {said.format('generated')}"]
    assert DensityCoverage(k=3).warnings(copies, copies) == [f"40 {said.format('real')}"]
    assert DensityCoverage(k=4).warnings(copies, copies) == DensityCoverage(k=3).warnings(others, copies) == []
    assert DensityCoverage(k=1).warnings(copies, others)[0].startswith("40 of 45 real images equal another one: ")
