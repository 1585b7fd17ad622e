"""What the families that make an image from an image share: the batch, and translating."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.networks.latents import sample_noise
from lightning_modules.networks.layers import check_shape
from lightning_modules.networks.translators import Translator
from lightning_modules.schedules import Point, Schedule
from lightning_modules.step import Batch, PhasedModule


class Translation(PhasedModule):
    """Base of the families that translate images of one kind, the sources, into another, the targets.

    A batch holds ``source`` (N, source_channels, H, W) and ``target`` (N, image_channels, H, W), both in [-1, 1]; image
    i of one belongs to image i of the other if the data is paired.

    A subclass sets ``generator`` and ``generator_ema`` (one network for all directions, see ``Translator``), writes
    ``configure_optimizers``, ``phases`` and its losses, and, for the health watch,
    ``critic_scores(images, told=None)``: ``observe(its discriminator, images)``, told the sources if it looks at them.

    Args:
        schedule: What depends on time; the same object that the data module holds.
        seed: Seed of every random draw of a step, together with clock, rank and use.
        image_size: Height and width of sources and targets in training, in pixels.
        source_channels: Channels of the sources, 1 to 4.
        image_channels: Channels of the targets, 1 to 4.
        gradient_clip_norm: Largest 2-norm of a phase's gradient; None = no clipping.

    Attributes:
        needs_pairs: Whether source i has to belong to target i.
    """

    needs_pairs = False
    generator: Translator
    generator_ema: Translator

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        image_size: Sequence[int],
        source_channels: int,
        image_channels: int,
        gradient_clip_norm: float | None,
    ) -> None:
        super().__init__(schedule, seed, image_size, image_channels, gradient_clip_norm)
        if not 1 <= source_channels <= 4:
            raise ValueError(f"source_channels={source_channels}: must be 1 to 4")
        self.source_channels = source_channels

    # The batch ------------------------------------------------------------------------------------------------------

    def check_batch(self, batch: Batch, point: Point) -> None:
        """Raise ValueError unless a batch holds sources and targets of the family's channels at the resolution."""
        check_shape(batch["source"], self.source_channels, point.resolution)
        check_shape(batch["target"], self.image_channels, point.resolution)

    def example_batch(self, n: int, point: Point) -> Batch:
        """Return a batch of n random pairs: for measuring what a step takes."""
        n *= self.real_batches

        def random(channels: int) -> Tensor:
            return torch.rand(n, channels, *point.resolution, device=self.device) * 2 - 1

        pairs = {"source": random(self.source_channels), "target": random(self.image_channels)}
        return {**pairs, "images_seen": point.images_seen}

    # Translating ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def translate(self, sources: Tensor, seed: int = 0, ema: bool = True, start: int = 0) -> Tensor:
        """Translate images start .. start + n - 1 of a list.

        Args:
            sources: Images (n, source_channels, H, W) in [-1, 1].
            seed: Of what a noisy network draws for image i, which depends on (seed, i) alone.
            ema: Use the averaged generator, else the live one.
            start: Place of the first image in its list.

        Returns:
            Images (n, image_channels, H, W) float32 in [-1, 1] on the module's device.

        Raises:
            ValueError: If the sources have other channels than the family takes.
        """
        return self.unclamped_translation(sources, seed, ema, start).clamp(-1.0, 1.0)

    @torch.no_grad()
    def unclamped_translation(self, sources: Tensor, seed: int = 0, ema: bool = True, start: int = 0) -> Tensor:
        """Return the images of ``translate`` as the discriminator sees them: a linear last layer leaves [-1, 1]."""
        check_shape(sources, self.source_channels, sources.shape[2:])
        noise = sample_noise(len(sources), seed, start, self.device)
        generator = self.generator_ema if ema else self.generator
        was_training = generator.training
        generator.eval()
        try:
            return generator.from_sources(sources.to(self.device), noise).float()
        finally:
            generator.train(was_training)
