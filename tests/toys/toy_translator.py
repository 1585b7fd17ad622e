"""A translator in its smallest form: convolutions of one pixel there and back, and a conditional discriminator."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.ema import frozen_copy
from lightning_modules.losses import logistic_discriminator_loss, non_saturating_generator_loss
from lightning_modules.networks.translators import Translator
from lightning_modules.schedules import Schedule
from lightning_modules.step import Batch, Phase, observe
from lightning_modules.translation import Translation


def _pointwise(before: int, after: int) -> nn.Module:
    """Return a function of single pixels."""
    return nn.Sequential(nn.Conv2d(before, 8, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, after, 1))


class Generator(Translator):
    """Both directions in one network, so that one average follows them."""

    def __init__(self, image_size: Sequence[int], source_channels: int, image_channels: int, noisy: bool) -> None:
        super().__init__()
        self.arguments = {
            "image_size": list(image_size),
            "source_channels": source_channels,
            "image_channels": image_channels,
            "noisy": noisy,
        }
        self.noisy = noisy
        self.there, self.back = _pointwise(source_channels, image_channels), _pointwise(image_channels, source_channels)

    def forward(self, sources, noise=None):
        return self.translated(self.there, sources, noise, "there")

    def translated(self, network, images, noise, layer):
        if self.noisy:
            images = images + 0.1 * noise(layer, images.shape[1:])
        return torch.tanh(network(images))


class Discriminator(nn.Module):
    """A linear score of an image, or of an image beside its source."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.score = nn.Linear(pixels, 1)

    def forward(self, *images):
        return self.score(torch.cat(images, dim=1).flatten(1))[:, 0].float()


class ToyTranslator(Translation):
    """A small pix2pix with a way back, or without pairs a small CycleGAN of one cycle.

    Args:
        schedule: What depends on time.
        seed: Seed of every random draw of a step.
        image_size: Height and width in pixels.
        source_channels: Channels of the sources.
        image_channels: Channels of the targets.
        noisy: Whether the generator draws numbers of its own.
        needs_pairs: Whether the losses look at pairs.
    """

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        image_size: Sequence[int],
        source_channels: int = 1,
        image_channels: int = 1,
        noisy: bool = False,
        needs_pairs: bool = True,
    ) -> None:
        super().__init__(schedule, seed, image_size, source_channels, image_channels, gradient_clip_norm=None)
        self.generator = Generator(image_size, source_channels, image_channels, noisy)
        self.generator_ema = frozen_copy(self.generator)
        self.needs_pairs = needs_pairs
        looked_at = image_channels + (source_channels if needs_pairs else 0)
        self.discriminator = Discriminator(looked_at * image_size[0] * image_size[1])
        self.pool = torch.zeros(2, image_channels, *image_size)  # the newest translations of this process
        self.filled = torch.zeros((), dtype=torch.int64)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        rates = ((self.discriminator, 1e-3), (self.generator, 1e-2))
        return [torch.optim.Adam(network.parameters(), rate) for network, rate in rates]

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase("discriminator", 0, self.discriminator_losses),
            Phase("generator", 1, self.generator_losses, observed=("newest",), after=self.keep),
        )

    def keep(self, terms: dict[str, Tensor]) -> None:
        """Take the mean of the newest translations into the pool."""
        self.pool = torch.cat([self.pool[1:], terms["newest"].cpu().expand_as(self.pool[:1])])
        self.filled = (self.filled + 1).clamp(max=len(self.pool))

    def process_state(self) -> dict[str, Tensor]:
        return {"pool": self.pool, "filled": self.filled}

    def load_process_state(self, state: dict[str, Tensor]) -> None:
        self.pool, self.filled = state["pool"], state["filled"]

    def fake(self, use: str, sources: Tensor) -> Tensor:
        return self.generator.from_sources(sources, self.draw_noise(len(sources), use))

    def critic_scores(self, images: Tensor, told: Tensor | None = None) -> Tensor:
        return observe(self.discriminator, *self.shown(images, told))

    def shown(self, images: Tensor, sources: Tensor | None) -> tuple[Tensor, ...]:
        """Return what the discriminator is shown."""
        return (images, sources) if self.needs_pairs else (images,)

    def discriminator_losses(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            fake = self.fake("discriminator", batch["source"])
            fake[: int(self.filled)] = self.pool[: int(self.filled)].to(fake.device)
        real_scores = self.discriminator(*self.shown(batch["target"], batch["source"]))
        fake_scores = self.discriminator(*self.shown(fake, batch["source"]))
        return {"adversarial": logistic_discriminator_loss(real_scores, fake_scores)}

    def generator_losses(self, batch: Batch) -> dict[str, Tensor]:
        source, fake = batch["source"], self.fake("generator", batch["source"])
        back = self.generator.translated(self.generator.back, fake, self.draw_noise(len(fake), "back"), "back")
        scores = self.discriminator(*self.shown(fake, source))
        of_pairs = {"l1": F.l1_loss(fake, batch["target"])} if self.needs_pairs else {}
        return {
            "adversarial": 0.1 * non_saturating_generator_loss(scores),
            **of_pairs,
            "cycle": F.l1_loss(back, source),
            "newest": fake.mean(),
        }
