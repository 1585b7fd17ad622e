import math

import pytest
import torch
from torch import nn

from datamodules.phantom_drawings import chest_xray, kidney_ct
from lightning_modules import losses
from lightning_modules.networks.dcgan import Discriminator


def test_logistic_losses_are_binary_cross_entropy():
    real, fake = torch.randn(7), torch.randn(7)
    bce = nn.functional.binary_cross_entropy_with_logits
    expected = bce(real, torch.ones(7)) + bce(fake, torch.zeros(7))
    torch.testing.assert_close(losses.logistic_discriminator_loss(real, fake), expected)
    torch.testing.assert_close(losses.non_saturating_generator_loss(fake), bce(fake, torch.ones(7)))


def test_logistic_losses_of_an_undecided_discriminator_are_log_two():
    zero = torch.zeros(3)
    assert float(losses.logistic_discriminator_loss(zero, zero)) == pytest.approx(2 * math.log(2))
    assert float(losses.non_saturating_generator_loss(zero)) == pytest.approx(math.log(2))


def test_non_saturating_loss_has_its_strongest_gradient_where_the_generator_fails():
    logit = torch.tensor([-20.0], requires_grad=True)
    losses.non_saturating_generator_loss(logit).backward()
    assert float(logit.grad) == pytest.approx(-1.0, abs=1e-6)


def test_wasserstein_losses_are_differences_of_means():
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 0.0])
    assert float(losses.wasserstein_critic_loss(real, fake)) == pytest.approx(-2.5)
    assert float(losses.wasserstein_generator_loss(fake)) == pytest.approx(0.5)


def linear_critic(weight):
    return lambda images: (images * weight).sum(dim=(1, 2, 3))


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 3.0])
def test_gradient_penalty_of_a_linear_critic_is_its_norm_minus_one_squared(scale):
    weight = scale * torch.randn(1, 2, 5, 4)
    penalty = losses.gradient_penalty(
        linear_critic(weight), torch.randn(6, 2, 5, 4), torch.randn(6, 2, 5, 4), torch.rand(6, 1, 1, 1)
    )
    assert float(penalty) == pytest.approx((float(weight.norm()) - 1) ** 2, rel=1e-4, abs=1e-5)


def test_gradient_penalty_is_taken_between_the_images():
    """f(x) = |x|^2 / 2 has the gradient x: the penalty sees the mixed image itself."""
    real, fake, epsilon = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.rand(3, 1, 1, 1)
    penalty = losses.gradient_penalty(lambda x: x.square().sum(dim=(1, 2, 3)) / 2, real, fake, epsilon)
    mixed = epsilon * real + (1 - epsilon) * fake
    expected = (mixed.flatten(1).norm(dim=1) - 1).square().mean()
    torch.testing.assert_close(penalty, expected, rtol=1e-5, atol=1e-6)


def test_gradient_penalty_has_a_finite_derivative_where_the_gradient_vanishes():
    weight = torch.zeros(1, 1, 2, 2, requires_grad=True)
    losses.gradient_penalty(
        linear_critic(weight), torch.ones(2, 1, 2, 2), torch.ones(2, 1, 2, 2), torch.rand(2, 1, 1, 1)
    ).backward()
    assert torch.isfinite(weight.grad).all()


def test_losses_are_float32_for_bf16_scores():
    scores = torch.randn(5, dtype=torch.bfloat16)
    for loss in (
        losses.logistic_discriminator_loss(scores, scores),
        losses.non_saturating_generator_loss(scores),
        losses.wasserstein_critic_loss(scores, scores),
        losses.wasserstein_generator_loss(scores),
    ):
        assert loss.dtype == torch.float32


@pytest.mark.parametrize("width", [16, 64])
def test_parameter_gradient_of_a_bf16_penalty_is_within_one_percent_of_float32(width):
    torch.manual_seed(0)
    critic = Discriminator((64, 64), 1, width, norm="layer")
    real = torch.stack([torch.from_numpy(kidney_ct.draw(i, 64, 64))[None] for i in range(0, 32, 2)]) * 2 - 1
    fake = torch.stack([torch.from_numpy(chest_xray.draw(i, 64, 64))[None] for i in range(0, 32, 2)]) * 2 - 1
    epsilon = torch.rand(16, 1, 1, 1)
    gradients = {}
    for mixed in (False, True):
        critic.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            penalty = losses.gradient_penalty(critic, real, fake, epsilon)
        penalty.backward()
        gradients[mixed] = torch.cat([p.grad.flatten() for p in critic.parameters() if p.grad is not None])
    difference = (gradients[True] - gradients[False]).norm() / gradients[False].norm()
    assert 0 < difference < 0.01
