import math

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from torch.special import ndtr

from lightning_modules.metrics.score import TooFewImagesError
from lightning_modules.metrics.separation import auc
from lightning_modules.metrics.two_sample import ClassifierAUC, classifier_auc


def normal(*counts, d=8, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=random) for n in counts]


@pytest.mark.parametrize("shift", [0.3, 1.0, 2.0])
def test_a_shift_of_normal_data_has_a_closed_form(shift):
    """The best classifier's area is Phi(d' / sqrt 2)."""
    real, generated = normal(1500, 1000)
    generated[:, 0] += shift
    exact = float(ndtr(torch.tensor(shift / math.sqrt(2))))
    assert classifier_auc(real, generated) == pytest.approx(exact, abs=0.025)


def test_agrees_with_linear_discriminant_analysis():
    real, generated = normal(600, 500)
    generated = generated * 0.9 + 0.2
    x, y = torch.cat([real, generated]).numpy(), np.repeat([0, 1], [600, 500])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = torch.from_numpy(
        cross_val_predict(LinearDiscriminantAnalysis(), x, y, cv=folds, method="decision_function")
    )
    assert classifier_auc(real, generated) == pytest.approx(auc(scores[600:], scores[:600]), abs=0.01)


@pytest.mark.parametrize("d, n, m", [(8, 60, 40), (300, 80, 80), (30, 12, 12)])
def test_equal_distributions_cannot_be_told_apart(d, n, m):
    """Also with more features than images, where a classifier fits its own images perfectly."""
    found = [classifier_auc(*normal(n, m, d=d, seed=seed)) for seed in range(10)]
    assert abs(np.mean(found) - 0.5) < 3 * np.std(found) / 10**0.5


def test_scale_and_sides_do_not_matter_and_the_value_repeats():
    real, generated = normal(100, 120)
    generated += 0.3
    found = classifier_auc(real, generated)
    assert found == classifier_auc(real, generated)
    assert classifier_auc(real * 1e4 + 7, generated * 1e4 + 7) == pytest.approx(found, abs=1e-3)
    assert classifier_auc(real, real + 100) == 1.0


def test_a_difference_among_many_features_is_seen():
    real, generated = normal(300, 300, d=400)
    assert classifier_auc(real, generated + 0.3) > 0.95


def test_instrument_names_and_refuses():
    real, generated = normal(30, 20)
    assert ClassifierAUC().measure(real, generated) == {"classifier_auc": classifier_auc(real, generated)}
    with pytest.raises(TooFewImagesError, match="ClassifierAUC needs at least 5 images"):
        ClassifierAUC().measure(real, generated[:4])
    with pytest.raises(ValueError, match="at least 5 images, got 30 and 4"):
        classifier_auc(real, generated[:4])
    with pytest.raises(ValueError, match="different lengths: 8 and 3"):
        classifier_auc(real, generated[:, :3])


def test_copies_pull_the_area_below_a_half_and_are_told():
    real = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    assert classifier_auc(real, real.clone()) < 0.4
    (said,) = ClassifierAUC().warnings(real, torch.cat([real[:20], real[:30] + 1]))
    assert said.startswith("20 of 50 generated images equal real ones") and said.endswith("falls below 0.5")
    assert ClassifierAUC().warnings(real, real + 1) == []
