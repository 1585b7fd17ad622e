"""What the networks that make an image from an image share."""

from typing import Any

from torch import Tensor, nn

from lightning_modules.networks.latents import Noise


class Translator(nn.Module):
    """Base of the networks that make images from images.

    ``forward`` takes sources (N, source_channels, H, W) and, if the network is noisy, a ``Noise``. A network that holds
    several directions, so that one average follows them all, overrides ``from_sources`` with the one from source to
    target.

    Attributes:
        noisy: Whether it takes a ``Noise``. Inside, nothing may draw from torch's global generator (``nn.Dropout``,
            ``randn_like``): no checkpoint holds it.
        arguments: The constructor's arguments as plain values, ``source_channels``, ``image_channels`` and
            ``image_size`` (height and width that it is trained at, in pixels) among them: an exported network is
            built from them again.
    """

    noisy = False
    arguments: dict[str, Any]

    def from_sources(self, sources: Tensor, noise: Noise | None = None) -> Tensor:
        """Return images (N, C, H, W), not clamped, of sources (N, source_channels, H, W) in [-1, 1].

        Args:
            sources: The sources.
            noise: What a noisy network draws inside.
        """
        return self(sources, noise) if self.noisy else self(sources)
