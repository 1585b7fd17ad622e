"""WGAN-GP: Gulrajani, Ahmed, Arjovsky, Dumoulin and Courville, "Improved training of Wasserstein GANs", NeurIPS 2017,
arXiv:1704.00028.

As in the paper: algorithm 1 with n_critic 5, lambda 10 and Adam 1e-4 with betas (0, 0.9); layer norm in the critic.
Different: the networks are DCGAN's (one of the paper's architectures, section 5.1) at any size and base grid.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.cadence import Every
from lightning_modules.ema import frozen_copy
from lightning_modules.losses import Precision, wasserstein_generator_loss, wasserstein_gp_critic_losses
from lightning_modules.networks.dcgan import Discriminator, Generator
from lightning_modules.schedules import Schedule
from lightning_modules.step import Batch, Phase, check_rate, observe
from lightning_modules.synthesis import Synthesis


class WGANGP(Synthesis):
    """Wasserstein GAN with gradient penalty.

    Args:
        schedule: What depends on time.
        seed: Seed of every random draw of a step.
        image_size: Height and width in pixels, a small grid doubled: 64x64, 128x128, 80x64 ...
        image_channels: Channels of the images, 1 to 4.
        latent_dim: Length of a latent vector (the paper's code: 128).
        generator_channels: Channels of the generator next to the image.
        discriminator_channels: Channels of the critic next to the image.
        critic_steps: Batches with a critic step per generator step, n_critic of algorithm 1.
        penalty_weight: lambda of algorithm 1.
        penalty_precision: "float32" computes the penalty in float32 whatever the trainer's precision. "mixed" lets its
            convolutions run in bf16 (norm, square and mean are float32 in any case): about twice as fast on a CPU, and
            the parameter gradient is off by 0.5 to 1 % at first, up to 2 % where the norm is close to 1 (measured).
        learning_rate: Adam's, of both networks (algorithm 1).
        gradient_clip_norm: Largest 2-norm of a phase's gradient; None = no clipping.
    """

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        image_size: Sequence[int],
        image_channels: int = 1,
        latent_dim: int = 128,
        generator_channels: int = 128,
        discriminator_channels: int = 128,
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
        self.critic_steps, self.penalty_weight, self.penalty_precision = critic_steps, penalty_weight, penalty_precision
        self.learning_rate = learning_rate
        self.generator = Generator(latent_dim, image_size, image_channels, generator_channels)
        self.generator_ema = frozen_copy(self.generator)
        self.critic = Discriminator(image_size, image_channels, discriminator_channels, norm="layer")

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return Adam for the critic and Adam for the generator."""
        return [
            torch.optim.Adam(self.critic.parameters(), self.learning_rate, (0.0, 0.9), fused=True),
            torch.optim.Adam(self.generator.parameters(), self.learning_rate, (0.0, 0.9), fused=True),
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
        """Return the two terms of equation 3."""
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
