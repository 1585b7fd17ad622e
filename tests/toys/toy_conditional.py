"""A conditional family in its smallest form: a linear generator that is given labels and noise."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_modules.ema import frozen_copy
from lightning_modules.losses import logistic_discriminator_loss, non_saturating_generator_loss
from lightning_modules.networks.latents import LatentGenerator
from lightning_modules.schedules import Schedule
from lightning_modules.step import Batch, Phase, observe
from lightning_modules.synthesis import Synthesis


class Generator(LatentGenerator):
    """Latents, labels and, if it is noisy, numbers of its own to an image."""

    def __init__(self, latent_dim: int, image_size: Sequence[int], image_channels: int, label_count: int, noisy: bool):
        super().__init__()
        self.arguments = {
            "latent_dim": latent_dim,
            "image_size": list(image_size),
            "image_channels": image_channels,
            "label_count": label_count,
            "noisy": noisy,
        }
        self.label_count, self.noisy = label_count, noisy
        shape = (image_channels, *image_size)
        self.of_latents = nn.Linear(latent_dim, image_channels * image_size[0] * image_size[1])
        self.of_labels = nn.Linear(label_count, image_channels * image_size[0] * image_size[1], bias=False)
        self.shape = nn.Unflatten(1, shape)

    def forward(self, latents, labels, noise=None):
        image = self.shape(self.of_latents(latents) + self.of_labels(labels))
        if self.noisy:
            image = image + 0.1 * noise("image", image.shape[1:])
        return torch.tanh(image)


class Discriminator(nn.Module):
    """A linear score and the projection of the labels (Miyato 2018)."""

    def __init__(self, pixels: int, label_count: int) -> None:
        super().__init__()
        self.score, self.of_labels = nn.Linear(pixels, 1), nn.Linear(label_count, pixels)

    def forward(self, images, labels):
        flat = images.flatten(1)
        return (self.score(flat)[:, 0] + (flat * self.of_labels(labels)).mean(dim=1)).float()


class ToyConditional(Synthesis):
    """A conditional GAN of two linear networks, with state that differs from process to process.

    Args:
        schedule: What depends on time.
        seed: Seed of every random draw of a step.
        image_size: Height and width in pixels.
        classes: Names of the labels that it is told.
        image_channels: Channels of the images.
        noisy: Whether the generator draws numbers of its own.
        relativistic: Whether the generator is compared with other real images than the discriminator (Huang 2024).
    """

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        image_size: Sequence[int],
        classes: Sequence[str],
        image_channels: int = 1,
        noisy: bool = False,
        relativistic: bool = False,
    ) -> None:
        super().__init__(schedule, seed, image_size, image_channels, latent_dim=4, gradient_clip_norm=None)
        self.classes = tuple(classes)
        self.real_batches = 2 if relativistic else 1
        self.generator = Generator(4, image_size, image_channels, len(classes), noisy)
        self.generator_ema = frozen_copy(self.generator)
        self.discriminator = Discriminator(image_channels * image_size[0] * image_size[1], len(classes))
        self.pool = torch.zeros(2, image_channels, *image_size)  # the newest generated images of this process
        self.mean_score = torch.zeros(())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(network.parameters(), 1e-3) for network in (self.discriminator, self.generator)]

    def optimizer_values(self, phase, point):
        return {"betas": (0.0, 0.9 + 0.09 * point.images_seen / self.schedule.total_images)}

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase("discriminator", 0, self.discriminator_losses, observed=("real_score",), after=self.keep),
            Phase("generator", 1, self.generator_losses),
        )

    def keep(self, terms: dict[str, Tensor]) -> None:
        """Move the mean score, and take the newest image into the pool."""
        self.mean_score = torch.lerp(self.mean_score, terms["real_score"].cpu(), 0.1)
        newest = self.fake("pool", torch.eye(len(self.classes), device=self.device)[:1]).detach().cpu()
        self.pool = torch.cat([self.pool[1:], newest])

    def process_state(self) -> dict[str, Tensor]:
        return {"pool": self.pool, "mean_score": self.mean_score}

    def load_process_state(self, state: dict[str, Tensor]) -> None:
        self.pool, self.mean_score = state["pool"], state["mean_score"]

    def fake(self, use: str, labels: Tensor) -> Tensor:
        n = len(labels)
        return self.generator.given(self.draw_latents(n, use), labels, self.draw_noise(n, use))

    def critic_scores(self, images: Tensor, told: Tensor | None = None) -> Tensor:
        return observe(self.discriminator, images, told)

    def discriminator_losses(self, batch: Batch) -> dict[str, Tensor]:
        real, labels = (part.chunk(self.real_batches)[0] for part in (batch["image"], self.labels_of(batch)))
        with torch.no_grad():
            fake = torch.cat([self.fake("discriminator", labels)[:-2], self.pool.to(self.device)])
        real_scores = self.discriminator(real, labels) - self.mean_score.to(self.device)
        adversarial = logistic_discriminator_loss(real_scores, self.discriminator(fake, labels))
        return {"adversarial": adversarial, "real_score": real_scores.mean()}

    def generator_losses(self, batch: Batch) -> dict[str, Tensor]:
        real, labels = (part.chunk(self.real_batches)[-1] for part in (batch["image"], self.labels_of(batch)))
        scores = self.discriminator(self.fake("generator", labels), labels)
        if self.real_batches == 2:
            scores = scores - self.discriminator(real, labels)
        return {"adversarial": non_saturating_generator_loss(scores)}
