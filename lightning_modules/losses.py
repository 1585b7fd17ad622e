"""Adversarial losses and penalties: pure functions of logits or images that return one float32 scalar.

No backward, no logging, no ``.item()``. Logits are of any shape whose first dimension is the batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def logistic_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-E[log D(x)] - E[log(1 - D(G(z)))] with D = sigmoid(logits) (Goodfellow 2014, eq. 1).

    This is binary cross-entropy with logits, real images labelled 1 and generated ones 0.
    """
    return F.softplus(-real_logits.float()).mean() + F.softplus(fake_logits.float()).mean()


def non_saturating_generator_loss(fake_logits: Tensor) -> Tensor:
    """-E[log D(G(z))] with D = sigmoid(logits) (Goodfellow 2014, section 3)."""
    return F.softplus(-fake_logits.float()).mean()


def wasserstein_critic_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """E[f(G(z))] - E[f(x)], the negative estimate of the Wasserstein distance (Arjovsky 2017, eq. 3)."""
    return fake_scores.float().mean() - real_scores.float().mean()


def wasserstein_generator_loss(fake_scores: Tensor) -> Tensor:
    """-E[f(G(z))] (Arjovsky 2017, algorithm 1)."""
    return -fake_scores.float().mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, epsilon: Tensor) -> Tensor:
    """E[(||grad f(x_hat)|| - 1)^2] at x_hat = epsilon * x + (1 - epsilon) * G(z) (Gulrajani 2017, eq. 3).

    Norm, square and mean are float32 also under autocast; the critic's convolutions follow the autocast state.

    Args:
        critic: Function of images that returns one score per image. Scores of one image must not depend on the
            others in the batch (no batch norm), else the penalty is not the one of the paper.
        real: Real images (N, C, H, W) in [-1, 1].
        fake: Generated images (N, C, H, W) in [-1, 1], without graph.
        epsilon: Mixing weights (N, 1, 1, 1) in [0, 1].
    """
    mixed = torch.lerp(fake.float(), real.float(), epsilon).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(mixed).float().sum(), mixed, create_graph=True)
    # The constant keeps the derivative of the root finite where the gradient vanishes.
    norm = (gradient.float().square().sum(dim=(1, 2, 3)) + 1e-12).sqrt()
    return (norm - 1.0).square().mean()
