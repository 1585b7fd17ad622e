import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.feature_selection import mutual_info_classif

from lightning_modules.metrics.mutual_information import label_entropy, mutual_information, neighbours
from lightning_modules.metrics.score import TooFewImagesError


def two_gaussians(shift, count=4000, dimensions=1, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    points = random.normal(size=(count, dimensions))
    points[:, 0] += shift * labels
    return torch.from_numpy(points), torch.from_numpy(labels)


def integrated(shift):
    """I = H(mixture) - H(normal) for two unit normals of equal number, whose means differ by ``shift``."""

    def mixture(x):
        return 0.5 * norm.pdf(x) + 0.5 * norm.pdf(x, shift)

    entropy = quad(lambda x: -mixture(x) * math.log(mixture(x)), -8, shift + 8)[0]
    return entropy - 0.5 * math.log(2 * math.pi * math.e)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("k", [3, 5])
def test_agrees_with_scikit_learn(shift, k):
    """To 1e-5: scikit-learn adds noise of 1e-10, which now and then swaps two neighbours."""
    points, labels = two_gaussians(shift, 1000)
    expected = mutual_info_classif(points.numpy(), labels.numpy(), n_neighbors=k, random_state=0)[0]
    assert mutual_information(points, labels, k) == pytest.approx(expected, abs=1e-5)


def test_agrees_with_scikit_learn_for_unequal_classes():
    points, _ = two_gaussians(0.0, 900)
    labels = torch.arange(900) % 3 // 2
    points[labels == 1] += 1.0
    expected = mutual_info_classif(points.numpy(), labels.numpy(), n_neighbors=3, random_state=0)[0]
    assert mutual_information(points, labels) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0, 4.0])
def test_equals_the_integral_of_two_normals(shift, dimensions):
    points, labels = two_gaussians(shift, dimensions=dimensions)
    assert mutual_information(points, labels) == pytest.approx(integrated(shift), abs=0.025)


def test_disjoint_labels_are_told_wholly():
    points, labels = two_gaussians(1000.0)
    assert mutual_information(points, labels) == math.log(2)
    assert mutual_information(points[:, [0, 0]], labels) == math.log(2)
    uneven = torch.arange(400) < 100
    assert mutual_information(uneven.double()[:, None], uneven) == pytest.approx(label_entropy(100, 300))


def test_it_is_never_negative_nor_more_than_the_labels_hold():
    found = [mutual_information(*two_gaussians(0.0, 60, seed=seed)) for seed in range(20)]
    assert min(found) == 0.0 and 0.0 < max(found) < math.log(2)


def test_equal_values_tell_what_their_counts_tell():
    """Discrete points have a closed form: labels 0 and 1 take the value a in 3 and 1 of 4 cases."""
    points = torch.tensor([0.0, 0.0, 0.0, 1.0] * 100 + [1.0, 1.0, 1.0, 0.0] * 100)[:, None]
    labels = torch.arange(800) >= 400
    expected = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert mutual_information(points, labels) == pytest.approx(expected, abs=0.005)
    assert mutual_information(torch.zeros(800, 1), labels) == pytest.approx(0.0, abs=0.005)


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_neighbours_by_definition_with_many_ties(dimensions):
    random = torch.Generator().manual_seed(dimensions)
    here = torch.randint(0, 5, (80, dimensions), generator=random) / 7.0
    there = torch.randint(0, 5, (60, dimensions), generator=random) / 7.0
    own, other = neighbours(here, there)
    inside, across = torch.cdist(here, here, p=torch.inf), torch.cdist(here, there, p=torch.inf)
    radii = inside.sort(dim=1).values[:, 3:4]
    assert own.tolist() == ((inside <= radii).sum(dim=1) - 1).tolist()
    assert other.tolist() == (across <= radii).sum(dim=1).tolist()
    assert own.max() > 3


def test_order_of_points_and_names_of_labels_do_not_matter():
    points, labels = two_gaussians(1.0, 300, dimensions=2)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    found = mutual_information(points, labels)
    assert mutual_information(points[order], labels[order]) == pytest.approx(found, abs=1e-12)
    assert mutual_information(points, 7 - labels) == pytest.approx(found, abs=1e-12)


def test_too_few_or_broken_points_are_refused():
    points, labels = two_gaussians(0.0, 7)
    with pytest.raises(TooFewImagesError, match="at least 4 points of each set, got 3"):
        mutual_information(points, labels)
    with pytest.raises(ValueError, match="not finite"):
        mutual_information(torch.full((20, 1), math.nan), torch.arange(20) % 2)
    with pytest.raises(ValueError, match=r"points \(N, d\) and labels \(N,\)"):
        mutual_information(torch.zeros(20), torch.arange(20) % 2)
