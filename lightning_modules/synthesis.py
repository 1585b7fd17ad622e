"""What the families that make images from latents share: sampling, and what a discriminator says of an image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.networks.latents import (
    LatentGenerator,
    Prior,
    draw,
    sample_labels,
    sample_latents,
    sample_noise,
)
from lightning_modules.schedules import Schedule
from lightning_modules.step import PhasedModule


class Synthesis(PhasedModule):
    """Base of the families that make images from latents.

    A subclass sets ``generator`` and ``generator_ema`` and writes ``configure_optimizers``, ``phases`` and its losses,
    and, for the health watch, ``critic_scores(images, told=None)``: ``observe(its discriminator, images)``, told the
    labels if it is told any.

    Args:
        schedule: What depends on time; the same object that the data module holds.
        seed: Seed of every random draw of a step, together with clock, rank and use.
        image_size: Height and width of the images at the end of training, in pixels.
        image_channels: Channels of the images, 1 to 4.
        latent_dim: Length of a latent vector.
        gradient_clip_norm: Largest 2-norm of a phase's gradient; None = no clipping.

    Attributes:
        prior: Distribution of the latents.
    """

    prior: Prior = "normal"
    generator: LatentGenerator
    generator_ema: LatentGenerator

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        image_size: Sequence[int],
        image_channels: int,
        latent_dim: int,
        gradient_clip_norm: float | None,
    ) -> None:
        super().__init__(schedule, seed, image_size, image_channels, gradient_clip_norm)
        if latent_dim < 1:
            raise ValueError(f"latent_dim={latent_dim}: must be at least 1")
        self.latent_dim = latent_dim

    # Sampling -------------------------------------------------------------------------------------------------------

    def draw_latents(self, n: int, use: str) -> Tensor:
        """Draw latents (n, latent_dim) for one use in the present step."""
        return draw(self.prior, n, self.latent_dim, self.random(f"{use}/latents"))

    def sample_labels(self, n: int, seed: int = 0, start: int = 0) -> Tensor | None:
        """Return the labels (n, K) that images of a seed's list show unless others are asked for; None without classes.

        They are drawn from the rows of the training images.
        """
        if not self.classes:
            return None
        return sample_labels(self.data_facts["label_rows"], self.classes, n, seed, start).to(self.device)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        truncation: float = 1.0,
        seed: int = 0,
        ema: bool = True,
        start: int = 0,
    ) -> Tensor:
        """Generate images start .. start + n - 1 of the endless list that belongs to a seed.

        Image i depends on (seed, i) alone, so processes can share the work and get the images that one would get.

        Args:
            n: Number of images.
            labels: Multi-hot labels (n, K) in the order of ``classes``; None = ``sample_labels``.
            truncation: See ``LatentGenerator.from_latents``; 1 leaves the generator as it is.
            seed: Names the list of images.
            ema: Use the averaged generator, else the live one.
            start: First image of the list.

        Returns:
            Images (n, C, H, W) float32 in [-1, 1] on the module's device; a growing network's are as large as its
            present stage.

        Raises:
            ValueError: If the family cannot do what is asked for.
        """
        return self.unclamped_sample(n, labels, truncation, seed, ema, start).clamp(-1.0, 1.0)

    @torch.no_grad()
    def unclamped_sample(
        self,
        n: int,
        labels: Tensor | None = None,
        truncation: float = 1.0,
        seed: int = 0,
        ema: bool = True,
        start: int = 0,
    ) -> Tensor:
        """Generate the images of ``sample`` as the discriminator sees them: a linear last layer leaves [-1, 1]."""
        if labels is None:
            labels = self.sample_labels(n, seed, start)
        elif not self.classes:
            raise ValueError(f"{type(self).__name__} is unconditional: it cannot generate given labels")
        elif labels.shape != (n, len(self.classes)):
            raise ValueError(f"labels of shape {tuple(labels.shape)}: expected ({n}, {len(self.classes)})")
        latents = sample_latents(self.prior, n, self.latent_dim, seed, start).to(self.device)
        noise = sample_noise(n, seed, start, self.device)
        generator = self.generator_ema if ema else self.generator
        was_training = generator.training
        generator.eval()
        try:
            given = None if labels is None else labels.to(self.device)
            return generator.from_latents(latents, given, truncation, noise).float()
        finally:
            generator.train(was_training)
