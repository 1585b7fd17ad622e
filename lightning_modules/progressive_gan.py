"""Progressive growing GAN: Karras, Aila, Laine and Lehtinen, "Progressive Growing of GANs for Improved Quality,
Stability, and Variation", ICLR 2018, arXiv:1710.10196. Korkinof 2021 used it for mammograms at 1280x1024, Segal 2021
for chest x-rays at 1024x1024.

As in the paper: the networks of table 2, WGAN-GP with drift, Adam 0.001 with betas (0, 0.99) and epsilon 1e-8, one
discriminator step per generator step, latents normalised to the sphere (appendix A.1). Different: one grey channel by
default, and any base grid. The callback ``FadeIn`` brings the networks to the schedule's stage.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.ema import frozen_copy
from lightning_modules.losses import AdversarialLoss, WassersteinGP
from lightning_modules.networks.layers import base_grid
from lightning_modules.networks.progressive import Discriminator, Generator, channel_counts, downsample, upsample
from lightning_modules.schedules import Point, Schedule
from lightning_modules.step import Batch, Phase, check_rate, observe
from lightning_modules.synthesis import Synthesis


class ProgressiveGAN(Synthesis):
    """Progressive growing GAN.

    Args:
        schedule: What depends on time, stage and fade-in included.
        seed: Seed of every random draw of a step.
        image_size: Final height and width in pixels, a small grid doubled: 1024x1024, 1280x1024 ...
        image_channels: Channels of the images, 1 to 4.
        latent_dim: Length of a latent vector.
        channels: Channels of each stage, smallest resolution first; None = ``channel_base / 2^(stage + 1)``, at most
            ``channel_max``.
        channel_base: See ``channels`` (the paper's published code: 8192).
        channel_max: See ``channels`` (the paper: 512).
        loss: Both sides' losses; None = ``WassersteinGP`` with the paper's values.
        learning_rate: Adam's, of both networks; the schedule may scale it per stage.
        checkpoint_from: Stages from this one on compute activations anew instead of keeping them; None = off.
        gradient_clip_norm: Largest 2-norm of a phase's gradient; None = no clipping.
    """

    grows = True
    generator: Generator
    generator_ema: Generator

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        image_size: Sequence[int],
        image_channels: int = 1,
        latent_dim: int = 512,
        channels: Sequence[int] | None = None,
        channel_base: int = 8192,
        channel_max: int = 512,
        loss: AdversarialLoss | None = None,
        learning_rate: float = 1e-3,
        checkpoint_from: int | None = None,
        gradient_clip_norm: float | None = None,
    ) -> None:
        super().__init__(schedule, seed, image_size, image_channels, latent_dim, gradient_clip_norm)
        check_rate("learning_rate", learning_rate)
        if channels is None:
            if min(channel_base, channel_max) < 1:
                raise ValueError(f"channel_base={channel_base}, channel_max={channel_max}: must be at least 1")
            channels = channel_counts(base_grid(image_size)[1], channel_base, channel_max)
        self.loss = loss or WassersteinGP()
        self.learning_rate = learning_rate
        self.generator = Generator(latent_dim, image_size, image_channels, channels, checkpoint_from)
        self.generator_ema = frozen_copy(self.generator)
        self.discriminator = Discriminator(image_size, image_channels, channels, checkpoint_from)
        self.set_point(schedule.at(0))

    def set_point(self, point: Point) -> None:
        """Bring the networks to stage and alpha of a point."""
        for network in (self.generator, self.generator_ema, self.discriminator):
            network.set_stage(point.stage, point.alpha)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return Adam for the discriminator and Adam for the generator, all stages included."""
        return [
            torch.optim.Adam(network.parameters(), self.learning_rate, (0.0, 0.99), eps=1e-8, fused=True)
            for network in (self.discriminator, self.generator)
        ]

    def phases(self) -> tuple[Phase, ...]:
        """Return a discriminator step and a generator step in every batch."""
        return (
            Phase("discriminator", 0, self.discriminator_losses),
            Phase("generator", 1, self.generator_losses),
        )

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Run both phases at the stage and alpha of the clock.

        Raises:
            RuntimeError: If nothing has brought the networks there.
        """
        point = self.schedule.at(self.images_seen)
        if (self.generator.stage, self.generator.alpha) != (point.stage, point.alpha):
            raise RuntimeError(
                f"the networks are at stage {self.generator.stage}, alpha {self.generator.alpha:g}; the schedule is at "
                f"stage {point.stage}, alpha {point.alpha:g}: train with callbacks.fade_in.FadeIn"
            )
        super().training_step(batch, batch_idx)

    def critic_scores(self, images: Tensor, told: Tensor | None = None) -> Tensor:
        """Return the discriminator's score of each image."""
        return observe(self.discriminator, images)

    def as_shown(self, images: Tensor) -> Tensor:
        """Return real images at the present stage; they fade in as the generator's do."""
        return fade(super().as_shown(images), self.discriminator.alpha)

    def discriminator_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the loss; real images fade in as the generator's do."""
        real = fade(batch["image"], self.discriminator.alpha)
        with torch.no_grad():
            fake = self.generator(self.draw_latents(len(real), "discriminator"))
        return self.loss.discriminator(self.discriminator, real, fake, self.random("penalty"))

    def generator_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the generator's side of the loss."""
        real = fade(batch["image"], self.discriminator.alpha)
        fake = self.generator(self.draw_latents(len(real), "generator"))
        return self.loss.generator(self.discriminator, real, fake, self.random("generator_loss"))


def fade(images: Tensor, alpha: float) -> Tensor:
    """Blend images (N, C, H, W) with themselves at half the resolution, as the paper does with real ones (figure 2)."""
    return images if alpha >= 1.0 else torch.lerp(upsample(downsample(images)), images, alpha)
