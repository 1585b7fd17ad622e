import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.kid import poly_mmd

from lightning_modules.metrics.kernel import KernelDistance, kernel_distance
from lightning_modules.metrics.score import TooFewImagesError


def by_definition(x, y):
    """Gretton 2012, equation 3: means over different points."""
    x, y = x.double().numpy(), y.double().numpy()
    xx, yy, xy = polynomial_kernel(x, degree=3), polynomial_kernel(y, degree=3), polynomial_kernel(x, y, degree=3)
    for kernel in (xx, yy):
        np.fill_diagonal(kernel, 0.0)
    n, m = len(x), len(y)
    return xx.sum() / (n * (n - 1)) + yy.sum() / (m * (m - 1)) - 2 * xy.mean()


@pytest.fixture
def sets():
    random = torch.Generator().manual_seed(0)
    return torch.randn(90, 12, generator=random), torch.rand(70, 12, generator=random) * 2


def test_equals_the_definition_with_scikit_learns_kernel(sets):
    real, generated = sets
    for block in (1, 7, 64, 1024):
        assert kernel_distance(real, generated, block) == pytest.approx(by_definition(real, generated), rel=1e-10)


def test_equals_torchmetrics_and_torch_fidelity_on_equal_counts(sets):
    real, generated = sets[0][:70].double(), sets[1].double()
    k11, k12, k22 = ((a @ b.T / 12 + 1) ** 3 for a, b in ((real, real), (real, generated), (generated, generated)))
    ours = kernel_distance(real, generated)
    assert ours == pytest.approx(float(poly_mmd(real, generated, 3, None, 1.0)), rel=1e-8)
    assert ours == pytest.approx(float((k11.sum() - k11.trace() + k22.sum() - k22.trace()) / 4830 - 2 * k12.mean()))
    options = {"kid_subsets": 1, "kid_subset_size": 70, "rng_seed": 0, "verbose": False, "kid_kernel": "poly"}
    options |= {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
    fidelity = kid_features_to_metric(real, generated, **options)
    assert ours == pytest.approx(fidelity["kernel_inception_distance_mean"], rel=1e-8)


def test_is_unbiased_and_symmetric(sets):
    real, generated = sets
    assert kernel_distance(real, generated) == pytest.approx(kernel_distance(generated, real), rel=1e-12)
    random = torch.Generator().manual_seed(1)
    same = [kernel_distance(*torch.randn(2, 20, 6, generator=random)) for _ in range(400)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 20
    assert min(same) < 0 < max(same)


def test_a_shift_of_normal_data_has_a_closed_form():
    """In one dimension, from the moments of N(0, 1) and N(s, 1): the sum of 3, 3 and 1 times their squared gaps."""
    shift = 0.7
    gaps = shift, shift**2, shift**3 + 3 * shift
    exact = 3 * gaps[0] ** 2 + 3 * gaps[1] ** 2 + gaps[2] ** 2
    random = torch.Generator().manual_seed(0)
    real, generated = torch.randn(20, 400, 1, generator=random), torch.randn(20, 300, 1, generator=random) + shift
    found = [kernel_distance(a, b) for a, b in zip(real, generated, strict=True)]
    assert abs(np.mean(found) - exact) < 3 * np.std(found) / 20**0.5


def test_instrument_names_and_refuses(sets):
    real, generated = sets
    assert KernelDistance().measure(real, generated) == {"kernel_distance": kernel_distance(real, generated)}
    with pytest.raises(TooFewImagesError, match="KernelDistance needs at least 2 images of each set, got 1"):
        KernelDistance().measure(real, generated[:1])
    with pytest.raises(ValueError, match="at least 2 images of each set, got 90 and 1"):
        kernel_distance(real, generated[:1])
    with pytest.raises(ValueError, match="different lengths: 12 and 5"):
        kernel_distance(real, generated[:, :5])
