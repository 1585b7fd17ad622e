"""DCGAN: Radford, Metz and Chintala, "Unsupervised representation learning with deep convolutional generative
adversarial networks", ICLR 2016, arXiv:1511.06434.

As in the paper: architecture, N(0, 0.02) initialisation, Adam 2e-4 with beta1 0.5, uniform latents of length 100.
Different: 4x4 kernels (see networks/dcgan.py), any size from 32 to 256 and base grid, generator loss -log D(G(z)).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.ema import frozen_copy
from lightning_modules.losses import logistic_discriminator_loss, non_saturating_generator_loss
from lightning_modules.networks.dcgan import Discriminator, Generator
from lightning_modules.schedules import Schedule
from lightning_modules.step import Batch, Phase, check_rate, observe
from lightning_modules.synthesis import Synthesis


class DCGAN(Synthesis):
    """Deep convolutional GAN with the logistic, non-saturating loss.

    Args:
        schedule: What depends on time.
        seed: Seed of every random draw of a step.
        image_size: Height and width in pixels, a small grid doubled: 64x64, 128x128, 80x64 ...
        image_channels: Channels of the images, 1 to 4.
        latent_dim: Length of a latent vector (section 4).
        generator_channels: Channels of the generator next to the image (figure 1: 128).
        discriminator_channels: Channels of the discriminator next to the image (the paper's code: 128).
        learning_rate: Adam's, of both networks (section 4).
        beta1: Adam's momentum (section 4: 0.9 makes training oscillate).
        gradient_clip_norm: Largest 2-norm of a phase's gradient; None = no clipping.
    """

    prior = "uniform"  # section 3

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        image_size: Sequence[int],
        image_channels: int = 1,
        latent_dim: int = 100,
        generator_channels: int = 128,
        discriminator_channels: int = 128,
        learning_rate: float = 2e-4,
        beta1: float = 0.5,
        gradient_clip_norm: float | None = None,
    ) -> None:
        super().__init__(schedule, seed, image_size, image_channels, latent_dim, gradient_clip_norm)
        check_rate("learning_rate", learning_rate)
        if not 0 <= beta1 < 1:
            raise ValueError(f"beta1={beta1}: must lie in 0 to below 1")
        self.learning_rate, self.beta1 = learning_rate, beta1
        self.generator = Generator(latent_dim, image_size, image_channels, generator_channels)
        self.generator_ema = frozen_copy(self.generator)
        self.discriminator = Discriminator(image_size, image_channels, discriminator_channels, norm="batch")

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return Adam for the discriminator and Adam for the generator."""
        betas = (self.beta1, 0.999)
        return [
            torch.optim.Adam(self.discriminator.parameters(), self.learning_rate, betas, fused=True),
            torch.optim.Adam(self.generator.parameters(), self.learning_rate, betas, fused=True),
        ]

    def phases(self) -> tuple[Phase, ...]:
        """Return one discriminator and one generator step per batch."""
        return (
            Phase("discriminator", 0, self.discriminator_losses),
            Phase("generator", 1, self.generator_losses),
        )

    def critic_scores(self, images: Tensor, told: Tensor | None = None) -> Tensor:
        """Return the discriminator's score of each image."""
        return observe(self.discriminator, images)

    def discriminator_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the logistic loss of the discriminator. Real and generated images are separate batches to its batch
        norm, as in the paper's code."""
        real = batch["image"]
        with torch.no_grad():
            fake = self.generator(self.draw_latents(len(real), "discriminator"))
        return {"adversarial": logistic_discriminator_loss(self.discriminator(real), self.discriminator(fake))}

    def generator_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the non-saturating loss of the generator."""
        fake = self.generator(self.draw_latents(len(batch["image"]), "generator"))
        return {"adversarial": non_saturating_generator_loss(self.discriminator(fake))}
