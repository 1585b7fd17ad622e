"""WGAN: Arjovsky, Chintala and Bottou, "Wasserstein GAN", ICML 2017, arXiv:1701.07875.

As in the paper: algorithm 1 with n_critic 5, clipping at 0.01 and RMSprop 5e-5; DCGAN networks (section 4.1).
Different: any size and base grid.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.cadence import Every
from lightning_modules.ema import frozen_copy
from lightning_modules.losses import wasserstein_critic_loss, wasserstein_generator_loss
from lightning_modules.networks.dcgan import Discriminator, Generator
from lightning_modules.schedules import Schedule
from lightning_modules.step import Batch, Phase, check_rate, observe
from lightning_modules.synthesis import Synthesis


class WGAN(Synthesis):
    """Wasserstein GAN with weight clipping.

    Args:
        schedule: What depends on time.
        seed: Seed of every random draw of a step.
        image_size: Height and width in pixels, a small grid doubled: 64x64, 128x128, 80x64 ...
        image_channels: Channels of the images, 1 to 4.
        latent_dim: Length of a latent vector.
        generator_channels: Channels of the generator next to the image.
        discriminator_channels: Channels of the critic next to the image.
        critic_steps: Batches with a critic step per generator step, n_critic of algorithm 1.
        clip: Largest absolute value of a weight of the critic, c of algorithm 1.
        learning_rate: RMSprop's, of both networks (algorithm 1).
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
        critic_steps: int = 5,
        clip: float = 0.01,
        learning_rate: float = 5e-5,
        gradient_clip_norm: float | None = None,
    ) -> None:
        super().__init__(schedule, seed, image_size, image_channels, latent_dim, gradient_clip_norm)
        check_rate("learning_rate", learning_rate)
        check_rate("clip", clip)
        if critic_steps < 1:
            raise ValueError(f"critic_steps={critic_steps}: must be at least 1")
        self.critic_steps, self.clip, self.learning_rate = critic_steps, clip, learning_rate
        self.generator = Generator(latent_dim, image_size, image_channels, generator_channels)
        self.generator_ema = frozen_copy(self.generator)
        self.critic = Discriminator(image_size, image_channels, discriminator_channels, norm="batch")

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return RMSprop for the critic and RMSprop for the generator."""
        return [
            torch.optim.RMSprop(self.critic.parameters(), self.learning_rate),
            torch.optim.RMSprop(self.generator.parameters(), self.learning_rate),
        ]

    def phases(self) -> tuple[Phase, ...]:
        """Return a clipped critic step in every batch and a generator step after ``critic_steps`` of them."""
        return (
            Phase("critic", 0, self.critic_losses, after=lambda _: self.clip_critic()),
            Phase("generator", 1, self.generator_losses, Every(self.critic_steps)),
        )

    def critic_scores(self, images: Tensor, told: Tensor | None = None) -> Tensor:
        """Return the critic's score of each image."""
        return observe(self.critic, images)

    def critic_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the negative estimate of the Wasserstein distance (up to the critic's Lipschitz constant)."""
        real = batch["image"]
        with torch.no_grad():
            fake = self.generator(self.draw_latents(len(real), "critic"))
        return {"wasserstein": wasserstein_critic_loss(self.critic(real), self.critic(fake))}

    def generator_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the generator's side of the Wasserstein distance."""
        fake = self.generator(self.draw_latents(len(batch["image"]), "generator"))
        return {"wasserstein": wasserstein_generator_loss(self.critic(fake))}

    @torch.no_grad()
    def clip_critic(self) -> None:
        """Clip every weight of the critic to [-c, c] (algorithm 1, line 7)."""
        weights: list[Tensor] = list(self.critic.parameters())
        torch._foreach_clamp_min_(weights, -self.clip)
        torch._foreach_clamp_max_(weights, self.clip)
