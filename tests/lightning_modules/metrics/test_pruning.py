import pytest
import torch

from lightning_modules.metrics.pruning import outside_support
from lightning_modules.metrics.score import TooFewImagesError


def draw(count, seed):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)) * torch.tensor([1, 9, 0.1, 1, 1e3])


@pytest.mark.parametrize("quantile", [0.9, 0.99])
def test_fresh_real_images_are_outside_as_often_as_said(quantile):
    rates = [float(outside_support(draw(500, i), draw(500, 100 + i), quantile).float().mean()) for i in range(20)]
    assert sum(rates) / len(rates) == pytest.approx(1 - quantile, rel=0.25)


def test_planted_outliers_are_found_whatever_the_unit():
    real, generated = draw(1000, 0), draw(300, 1)
    generated[:30] += 10 * torch.tensor([1, 9, 0.1, 1, 1e3])
    found = outside_support(real, generated)
    assert found[:30].all() and found[30:].float().mean() < 0.03
    assert torch.equal(outside_support(real * 1e6, generated * 1e6), found)
    assert found.dtype == torch.bool and found.shape == (300,)


def test_order_does_not_matter_and_each_image_is_judged_alone():
    real, generated = draw(500, 0), draw(200, 1) * 1.5
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    found = outside_support(real, generated)
    assert 0 < found.float().mean() < 1
    assert torch.equal(outside_support(real[order], generated.flip(0)), found.flip(0))
    assert torch.equal(outside_support(real, generated[:7]), found[:7])


def test_copies_of_real_images_lie_inside():
    real = draw(500, 0)
    assert outside_support(real, real.clone()).float().mean() < 0.01


def test_an_odd_real_image_does_not_excuse_its_like():
    real = draw(500, 0)
    odd = 50 * torch.tensor([[1, 9, 0.1, 1, 1e3]])
    assert outside_support(torch.cat([real, odd]), odd.clone()).all()


def test_too_few_images_and_bad_quantiles_are_refused():
    with pytest.raises(TooFewImagesError, match=r"the quantile 0.99 needs at least 99 real images, got 98"):
        outside_support(draw(98, 0), draw(10, 1))
    assert outside_support(draw(99, 0), draw(10, 1)).shape == (10,)
    with pytest.raises(ValueError, match="between 0 and 1"):
        outside_support(draw(100, 0), draw(10, 1), 1.0)
    with pytest.raises(ValueError, match="not finite"):
        outside_support(draw(100, 0), draw(10, 1) * torch.nan)
