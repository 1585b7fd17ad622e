"""Adversarial losses and penalties: pure functions of logits or images that return one float32 scalar.

No backward, no logging, no ``.item()``. Logits are of any shape whose first dimension is the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.networks.convolution import float32_forward

Precision = Literal["float32", "mixed"]


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


def wasserstein_gp_critic_losses(
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    random: torch.Generator,
    penalty_weight: float,
    penalty_precision: Precision,
) -> dict[str, Tensor]:
    """Return the two terms of equation 3 of Gulrajani 2017. One forward scores real and generated images together.

    Args:
        critic: See ``gradient_penalty``.
        real: Real images (N, C, H, W) in [-1, 1].
        fake: Generated images (N, C, H, W), without graph.
        random: Source of the mixing weights, on the images' device.
        penalty_weight: Factor on the penalty.
        penalty_precision: "float32" computes the penalty in float32 whatever the trainer's precision. "mixed" lets its
            convolutions run in bf16 (norm, square and mean are float32 in any case).
    """
    real_scores, fake_scores = critic(torch.cat([real, fake])).chunk(2)
    epsilon = torch.rand(len(real), 1, 1, 1, generator=random, device=real.device)
    device = real.device.type
    with nullcontext() if penalty_precision == "mixed" else torch.autocast(device, enabled=False):
        penalty = gradient_penalty(critic, real, fake, epsilon)
    return {
        "wasserstein": wasserstein_critic_loss(real_scores, fake_scores),
        "penalty": penalty_weight * penalty,
    }


def r1_penalty(scores: Tensor, real: Tensor) -> Tensor:
    """E[||grad D(x)||^2] at real images (Mescheder 2018, arXiv:1801.04406, eq. 9, without the factor of one half).

    Args:
        scores: One score per image, computed from ``real``, with graph.
        real: Real images (N, C, H, W) that require a gradient.
    """
    (gradient,) = torch.autograd.grad(scores.float().sum(), real, create_graph=True)
    return gradient.float().square().sum(dim=(1, 2, 3)).mean()


# Whole losses, for families that leave the choice to the configuration ------------------------------------------------


class Scores(Protocol):
    """A discriminator: images (N, C, H, W) to scores (N,); statistics of a batch are taken over its ``parts`` apart."""

    def __call__(self, images: Tensor, parts: int = 1) -> Tensor:
        """Return one score per image."""
        ...


class AdversarialLoss(ABC):
    """Both sides of an adversarial game, as named, weighted terms."""

    @abstractmethod
    def discriminator(self, scores: Scores, real: Tensor, fake: Tensor, random: torch.Generator) -> dict[str, Tensor]:
        """Return what the discriminator minimises.

        Args:
            scores: The discriminator.
            real: Real images (N, C, H, W).
            fake: Generated images (N, C, H, W), without graph.
            random: Source of randomness on the images' device.
        """

    @abstractmethod
    def generator(self, scores: Scores, real: Tensor, fake: Tensor, random: torch.Generator) -> dict[str, Tensor]:
        """Return what the generator minimises.

        Args:
            scores: The discriminator.
            real: Real images (N, C, H, W), which relativistic losses compare with (Huang 2024).
            fake: Generated images (N, C, H, W), with graph.
            random: Source of randomness on the images' device.
        """


def _check_weight(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={value}: must be a finite number and not negative")


def _penalty_in(precision: Precision, device: torch.device) -> AbstractContextManager:
    return float32_forward(device) if precision == "mixed" else torch.autocast(device.type, enabled=False)


@dataclass(frozen=True)
class WassersteinGP(AdversarialLoss):
    """Wasserstein loss with gradient penalty and drift (Karras 2018, appendix A.1: lambda 10, drift 0.001).

    Args:
        penalty_weight: Factor on the gradient penalty.
        drift: Factor on the mean square of the real images' scores, which keeps them near 0.
        penalty_precision: "mixed" computes the penalty's derivatives in the trainer's precision and its forward pass in
            float32 (``float32_forward``); "float32" computes all of it in float32.
    """

    penalty_weight: float = 10.0
    drift: float = 1e-3
    penalty_precision: Precision = "mixed"

    def __post_init__(self) -> None:
        """Refuse weights that no loss can have."""
        _check_weight("penalty_weight", self.penalty_weight)
        _check_weight("drift", self.drift)

    def discriminator(self, scores: Scores, real: Tensor, fake: Tensor, random: torch.Generator) -> dict[str, Tensor]:
        """Return the three terms. One forward scores real and generated images together."""
        real_scores, fake_scores = scores(torch.cat([real, fake]), parts=2).chunk(2)
        epsilon = torch.rand(len(real), 1, 1, 1, generator=random, device=real.device)
        with _penalty_in(self.penalty_precision, real.device):
            penalty = gradient_penalty(scores, real, fake, epsilon)
        return {
            "wasserstein": wasserstein_critic_loss(real_scores, fake_scores),
            "penalty": self.penalty_weight * penalty,
            "drift": self.drift * real_scores.float().square().mean(),
        }

    def generator(self, scores: Scores, real: Tensor, fake: Tensor, random: torch.Generator) -> dict[str, Tensor]:
        """Return the generator's side of the Wasserstein distance."""
        return {"wasserstein": wasserstein_generator_loss(scores(fake))}


@dataclass(frozen=True)
class LogisticR1(AdversarialLoss):
    """Non-saturating logistic loss with R1 (Goodfellow 2014, section 3; Mescheder 2018, eq. 9 with gamma 10).

    Args:
        gamma: Half of it weighs the penalty.
        penalty_precision: As for ``WassersteinGP``; it holds for the forward pass of the real images as well.
    """

    gamma: float = 10.0
    penalty_precision: Precision = "mixed"

    def __post_init__(self) -> None:
        """Refuse a weight that no loss can have."""
        _check_weight("gamma", self.gamma)

    def discriminator(self, scores: Scores, real: Tensor, fake: Tensor, random: torch.Generator) -> dict[str, Tensor]:
        """Return both terms; the penalty uses the forward pass of the real images that the loss needs anyway."""
        real = real.detach().requires_grad_()
        with _penalty_in(self.penalty_precision, real.device):
            real_scores = scores(real)
            penalty = r1_penalty(real_scores, real)
        return {
            "logistic": logistic_discriminator_loss(real_scores, scores(fake)),
            "penalty": self.gamma / 2.0 * penalty,
        }

    def generator(self, scores: Scores, real: Tensor, fake: Tensor, random: torch.Generator) -> dict[str, Tensor]:
        """Return the non-saturating loss."""
        return {"logistic": non_saturating_generator_loss(scores(fake))}
