"""GANs for kidney CT: Sahakyan, "Development of components for generative adversarial networks in medical image
synthesis", American University of Armenia, 2024.

As in the paper: its generator (chapter 3, networks/kidney.py), a Wasserstein loss with gradient penalty (equation 2.7),
latents of length 100 or 128, batches of 64 (set by the schedule), truncated latents (equation A.6).
Open in the paper, and chosen here: the critic, DCGAN's with layer norm as in wgan_gp.py, which a gradient penalty asks
for (Gulrajani 2017, section 4); n_critic 5, lambda 10 and Adam 1e-4 with betas (0, 0.9), those of algorithm 1 of
Gulrajani 2017, the paper's source of the loss. Appendix A does not say whether training truncates, nor where: off by
default, and at 2 standard deviations when on.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_modules.cadence import Every
from lightning_modules.ema import frozen_copy
from lightning_modules.losses import Precision, wasserstein_generator_loss, wasserstein_gp_critic_losses
from lightning_modules.networks import dcgan
from lightning_modules.networks.kidney import Generator, Norm, Skips
from lightning_modules.schedules import Schedule
from lightning_modules.step import Batch, Phase, check_rate, observe
from lightning_modules.synthesis import Synthesis


class KidneyGAN(Synthesis):
    """WGAN-GP whose generator adds interpolated copies of earlier layers and convolves its first with a kernel.

    Args:
        schedule: What depends on time.
        seed: Seed of every random draw of a step.
        image_size: Height and width in pixels, a small grid doubled: 64x64, 128x128, 80x64 ...
        image_channels: Channels of the images, 1 to 4.
        latent_dim: Length of a latent vector (section 4.3.2: 100 or 128).
        generator_channels: Channels of the generator next to the image.
        discriminator_channels: Channels of the critic next to the image.
        skips: Earlier layers that each layer of the generator adds: "previous" (Small, section 3.2.1),
            "previous_twice" (Large version 1, 3.2.2), "previous_two" (Large version 2, 3.2.3) or "none" (4.5.3).
        kernel: Side of the learnable kernel on the first layer (section 3.1.1), odd; None = no kernel.
        norm: "batch" = batch norm in the generator; see networks/kidney.py for what hangs on it.
        prior: Distribution of the latents; "truncated_normal" is equation A.6.
        critic_steps: Batches with a critic step per generator step, n_critic of algorithm 1 of Gulrajani 2017.
        penalty_weight: lambda of equation 2.7.
        penalty_precision: As for ``WGANGP``.
        learning_rate: Adam's, of both networks.
        gradient_clip_norm: Largest 2-norm of a phase's gradient; None = no clipping.
    """

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        image_size: Sequence[int],
        image_channels: int = 1,
        latent_dim: int = 100,
        generator_channels: int = 64,
        discriminator_channels: int = 64,
        skips: Skips = "previous",
        kernel: int | None = 3,
        norm: Norm = "none",
        prior: Literal["normal", "truncated_normal"] = "normal",
        critic_steps: int = 5,
        penalty_weight: float = 10.0,
        penalty_precision: Precision = "float32",
        learning_rate: float = 1e-4,
        gradient_clip_norm: float | None = None,
    ) -> None:
        super().__init__(schedule, seed, image_size, image_channels, latent_dim, gradient_clip_norm)
        check_rate("learning_rate", learning_rate)
        check_rate("penalty_weight", penalty_weight)
        if critic_steps < 1:
            raise ValueError(f"critic_steps={critic_steps}: must be at least 1")
        self.prior = prior
        self.critic_steps, self.penalty_weight, self.penalty_precision = critic_steps, penalty_weight, penalty_precision
        self.learning_rate = learning_rate
        # Drawn and dropped: a seed keeps the weights that it has always drawn, those of runs that are reported.
        dcgan.Generator(latent_dim, image_size, image_channels, generator_channels)
        self.critic = dcgan.Discriminator(image_size, image_channels, discriminator_channels, norm="layer")
        self.generator = Generator(latent_dim, image_size, image_channels, generator_channels, skips, kernel, norm)
        self.generator_ema = frozen_copy(self.generator)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return Adam for the critic and Adam for the generator."""
        return [
            torch.optim.Adam(network.parameters(), self.learning_rate, (0.0, 0.9), fused=True)
            for network in (self.critic, self.generator)
        ]

    def phases(self) -> tuple[Phase, ...]:
        """Return a critic step in every batch and a generator step after ``critic_steps`` of them."""
        return (
            Phase("critic", 0, self.critic_losses),
            Phase("generator", 1, self.generator_losses, Every(self.critic_steps)),
        )

    def critic_scores(self, images: Tensor, told: Tensor | None = None) -> Tensor:
        """Return the critic's score of each image."""
        return observe(self.critic, images)

    def critic_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the two terms of equation 2.7."""
        real = batch["image"]
        with torch.no_grad():
            fake = self.generator(self.draw_latents(len(real), "critic")).float()
        return wasserstein_gp_critic_losses(
            self.critic, real, fake, self.random("penalty"), self.penalty_weight, self.penalty_precision
        )

    def generator_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the generator's side of the Wasserstein distance."""
        fake = self.generator(self.draw_latents(len(batch["image"]), "generator"))
        return {"wasserstein": wasserstein_generator_loss(self.critic(fake))}
