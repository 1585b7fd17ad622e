"""Networks of the progressive growing GAN (Karras, Aila, Laine and Lehtinen 2018, arXiv:1710.10196, table 2).

All stages exist from the start. Stage s works at the base grid doubled s times; ``set_stage`` says at which stage the
networks are and how far its fade-in has come. Any base grid and channel count; the paper's is 4x4 to 1024x1024x3.

With three channels at 1024x1024 both networks have the parameters of table 2, every toRGB and fromRGB layer included:
generator 23,079,115, discriminator 23,087,249.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_modules.networks.latents import LatentGenerator, Noise
from lightning_modules.networks.layers import (
    EqualizedConv2d,
    EqualizedLinear,
    base_grid,
    check_shape,
    minibatch_std,
    pixel_norm,
)


def channel_counts(doublings: int, channel_base: int, channel_max: int) -> list[int]:
    """Return the channels of each stage: 8192 / 2^(s + 1), at most 512, with the paper's numbers (table 2)."""
    return [max(1, min(channel_base >> (stage + 1), channel_max)) for stage in range(doublings + 1)]


def upsample(images: Tensor) -> Tensor:
    """Double height and width by repeating pixels."""
    return F.interpolate(images, scale_factor=2.0, mode="nearest")


def downsample(images: Tensor) -> Tensor:
    """Halve height and width by averaging 2x2 pixels."""
    return F.avg_pool2d(images, 2)


class Growing(nn.Module):
    """What both networks share: channels per stage, and where in their growth they are.

    Args:
        image_size: Final height and width in pixels; see ``base_grid``.
        image_channels: Channels of the image, 1 to 4.
        channels: Channels of each stage, smallest resolution first.
        checkpoint_from: Stages from this one on do not keep their activations but compute them anew in the backward
            pass; None = all keep them.

    Attributes:
        stage: The present stage.
        alpha: Weight of the present stage against the one before, in [0, 1].
    """

    def __init__(
        self, image_size: Sequence[int], image_channels: int, channels: Sequence[int], checkpoint_from: int | None
    ) -> None:
        super().__init__()
        self.grid, doublings = base_grid(image_size)
        if len(channels) != doublings + 1:
            raise ValueError(
                f"channels={list(channels)}: {list(image_size)} is {list(self.grid)} doubled {doublings} times and "
                f"needs {doublings + 1} numbers"
            )
        if min(channels) < 1:
            raise ValueError(f"channels={list(channels)}: must be at least 1")
        if checkpoint_from is not None and checkpoint_from < 1:
            raise ValueError(f"checkpoint_from={checkpoint_from}: must be at least 1, or null for off")
        self.image_channels, self.channels, self.checkpoint_from = image_channels, tuple(channels), checkpoint_from
        self.set_stage(doublings, 1.0)

    def set_stage(self, stage: int, alpha: float) -> None:
        """Work at a stage from now on, its newest layers weighted by alpha.

        Raises:
            ValueError: If the network has no such stage.
        """
        if not (0 <= stage < len(self.channels) and 0.0 <= alpha <= 1.0):
            raise ValueError(f"stage={stage}, alpha={alpha}: the network has no such stage")
        self.stage, self.alpha = stage, alpha

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the images at the present stage."""
        return self.grid[0] << self.stage, self.grid[1] << self.stage

    def _run(self, block: nn.Module, features: Tensor, stage: int) -> Tensor:
        if self.checkpoint_from is not None and stage >= self.checkpoint_from and torch.is_grad_enabled():
            return checkpoint(block, features, use_reentrant=False, preserve_rng_state=False)
        return block(features)


class Generator(Growing, LatentGenerator):
    """Latent vectors to images.

    Args:
        latent_dim: Length of a latent vector.
        image_size: Final height and width in pixels.
        image_channels: Channels of the image, 1 to 4.
        channels: Channels of each stage, smallest resolution first.
        checkpoint_from: See ``Growing``.
    """

    truncates = False

    def __init__(
        self,
        latent_dim: int,
        image_size: Sequence[int],
        image_channels: int,
        channels: Sequence[int],
        checkpoint_from: int | None = None,
    ) -> None:
        super().__init__(image_size, image_channels, channels, checkpoint_from)
        self.arguments = {
            "latent_dim": latent_dim,
            "image_size": list(image_size),
            "image_channels": image_channels,
            "channels": list(channels),
        }
        self.first = _FirstGeneratorBlock(latent_dim, self.grid, channels[0])
        pairs = itertools.pairwise(channels)
        self.blocks = nn.ModuleList(_GeneratorBlock(before, after) for before, after in pairs)
        self.to_image = nn.ModuleList(EqualizedConv2d(width, image_channels, 1, gain=1.0) for width in channels)
        self.to(memory_format=torch.channels_last)  # measured 13 to 18 % faster in float32, and bf16 needs it

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents (N, latent_dim) to images (N, image_channels, H, W) of the present resolution, about [-1, 1]."""
        features = before = self.first(pixel_norm(latents))
        for stage, block in enumerate(self.blocks[: self.stage], start=1):
            before, features = features, self._run(block, features, stage)
        images = self.to_image[self.stage](features).float()
        if self.stage > 0 and self.alpha < 1.0:
            images = torch.lerp(upsample(self.to_image[self.stage - 1](before).float()), images, self.alpha)
        return images

    def from_latents(
        self, latents: Tensor, labels: Tensor | None = None, truncation: float = 1.0, noise: Noise | None = None
    ) -> Tensor:
        """Return images of latents, which are divided by their length: no factor on them changes anything.

        Raises:
            ValueError: If ``truncation`` is not 1.
        """
        if truncation != 1.0:
            raise ValueError(f"truncation={truncation}: this network normalises its latents, so no factor changes them")
        return self.given(latents, labels, noise)


class Discriminator(Growing):
    """Images to one score each, the generator's mirror image.

    Args:
        image_size: Final height and width in pixels.
        image_channels: Channels of the image, 1 to 4.
        channels: Channels of each stage, smallest resolution first.
        checkpoint_from: See ``Growing``.
    """

    def __init__(
        self,
        image_size: Sequence[int],
        image_channels: int,
        channels: Sequence[int],
        checkpoint_from: int | None = None,
    ) -> None:
        super().__init__(image_size, image_channels, channels, checkpoint_from)
        self.from_image = nn.ModuleList(_FromImage(image_channels, width) for width in channels)
        pairs = itertools.pairwise(channels)
        self.blocks = nn.ModuleList(_DiscriminatorBlock(before, after) for after, before in pairs)
        self.last = _LastDiscriminatorBlock(self.grid, channels[0])
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, parts: int = 1) -> Tensor:
        """Map images (N, image_channels, H, W) in [-1, 1] at the present resolution to scores (N,).

        Args:
            images: The images.
            parts: See ``minibatch_std``.
        """
        check_shape(images, self.image_channels, self.resolution)
        images = images.contiguous(memory_format=torch.channels_last)
        features = self.from_image[self.stage](images)
        for stage in range(self.stage, 0, -1):
            features = self._run(self.blocks[stage - 1], features, stage)
            if stage == self.stage and self.alpha < 1.0:
                before = self.from_image[stage - 1](downsample(images))
                features = torch.lerp(before, features, self.alpha)
        return self.last(minibatch_std(features, parts)).squeeze(1)


class _FirstGeneratorBlock(nn.Module):
    """Table 2's layers at 4x4: a linear one (a 4x4 convolution there, hence one bias per channel) and a 3x3."""

    def __init__(self, latent_dim: int, grid: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.grid = grid
        pixels = grid[0] * grid[1]
        # The gain is the reference's: sqrt(2) / 4 for 16 pixels.
        self.project = EqualizedLinear(latent_dim, channels * pixels, gain=(2.0 / pixels) ** 0.5)
        self.project.bias = nn.Parameter(torch.zeros(channels))
        self.conv = EqualizedConv2d(channels, channels, 3)

    def forward(self, latents: Tensor) -> Tensor:
        weight = self.project.weight * self.project.scale
        features = F.linear(latents, weight).unflatten(1, (-1, *self.grid)) + self.project.bias[:, None, None]
        features = pixel_norm(_lrelu(features.contiguous(memory_format=torch.channels_last)))
        return pixel_norm(_lrelu(self.conv(features)))


class _GeneratorBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = EqualizedConv2d(in_channels, out_channels, 3)
        self.conv2 = EqualizedConv2d(out_channels, out_channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        features = pixel_norm(_lrelu(self.conv1(upsample(features))))
        return pixel_norm(_lrelu(self.conv2(features)))


class _FromImage(nn.Module):
    def __init__(self, image_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = EqualizedConv2d(image_channels, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        # This layer stays float32 under autocast: its products are small, and images have more than bf16's 8 bits.
        device = images.device.type
        with torch.autocast(device, enabled=False):
            features = _lrelu(self.conv(images.float()))
        return features.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else features


class _DiscriminatorBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = EqualizedConv2d(in_channels, in_channels, 3)
        self.conv2 = EqualizedConv2d(in_channels, out_channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        return downsample(_lrelu(self.conv2(_lrelu(self.conv1(features)))))


class _LastDiscriminatorBlock(nn.Module):
    """Table 2's layers at 4x4: 3x3, 4x4 without padding (a linear layer), linear."""

    def __init__(self, grid: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.conv = EqualizedConv2d(channels + 1, channels, 3)
        self.hidden = EqualizedLinear(channels * grid[0] * grid[1], channels)
        self.score = EqualizedLinear(channels, 1, gain=1.0)

    def forward(self, features: Tensor) -> Tensor:
        return self.score(_lrelu(self.hidden(_lrelu(self.conv(features)).flatten(1))))


def _lrelu(features: Tensor) -> Tensor:
    return F.leaky_relu(features, 0.2, inplace=True)
