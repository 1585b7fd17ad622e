"""The endless list of images that belongs to a seed: image i's latents are a function of (seed, i), and images are
computed in fixed chunks, so that one generator makes the same images wherever and however it is loaded.
"""

import hashlib
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Prior = Literal["normal", "uniform", "truncated_normal"]
BOUND = 2.0  # of the truncated normal, in standard deviations; Brock 2019's code cuts there
CHUNK_IMAGES, CHUNK_PIXELS = 16, 2**20  # computed at once: so many images, or fewer large ones


class LatentGenerator(nn.Module):
    """Base of the networks that make images from latents: what truncation means is the network's own.

    Attributes:
        truncates: Whether ``from_latents`` can truncate.
        arguments: The constructor's arguments as plain values, from which an exported network is built again.
    """

    truncates = True
    arguments: dict[str, Any]

    def from_latents(self, latents: Tensor, truncation: float = 1.0) -> Tensor:
        """Return images (N, C, H, W), not clamped, of latents (N, latent_dim) as they are drawn from the prior.

        Args:
            latents: The latents.
            truncation: 1 leaves the generator as it is, 0 gives the image that it takes for the mean. Here a factor on
                the latents.

        Raises:
            ValueError: If the network cannot truncate.
        """
        return self(latents * truncation)


def seeded_generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """Return a random generator that is a pure function of the key, e.g. (seed, images_seen, rank, use).

    Nothing in a step may draw from the global generator: no checkpoint restores it, and all ranks share its seed.
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def draw(prior: Prior, n: int, latent_dim: int, generator: torch.Generator) -> Tensor:
    """Draw latents (n, latent_dim) on the generator's device.

    Args:
        prior: "normal" = standard normal, "uniform" = uniform in [-1, 1], "truncated_normal" = standard normal cut to
            [-2, 2] by the inverse of its distribution function (Sahakyan 2024, equation A.6), its deviation 0.88.
        n: Number of latents.
        latent_dim: Length of a latent vector.
        generator: Source of randomness.

    Raises:
        ValueError: If there is no such prior.
    """
    if prior == "normal":
        return torch.randn(n, latent_dim, generator=generator, device=generator.device)
    if prior == "uniform":
        return torch.rand(n, latent_dim, generator=generator, device=generator.device) * 2.0 - 1.0
    if prior == "truncated_normal":
        # float64: float32 has too few numbers near 1 for the upper tail to be as fine as the lower.
        uniform = torch.rand(n, latent_dim, generator=generator, device=generator.device, dtype=torch.float64)
        low, high = NormalDist().cdf(-BOUND), NormalDist().cdf(BOUND)
        return torch.special.ndtri(low + uniform * (high - low)).float()
    raise ValueError(f"prior={prior!r}: expected one of {', '.join(get_args(Prior))}")


def sample_latents(prior: Prior, n: int, latent_dim: int, seed: int, start: int = 0) -> Tensor:
    """Return the latents (n, latent_dim) of images start .. start + n - 1 of a seed's list, on the CPU."""
    keys = range(start, start + n)
    return torch.cat([draw(prior, 1, latent_dim, seeded_generator("cpu", seed, i, "sample")) for i in keys])


def chunk_size(resolution: tuple[int, int]) -> int:
    """Return how many images of (height, width) are computed at once, whatever number is asked for."""
    height, width = resolution
    return max(1, min(CHUNK_IMAGES, CHUNK_PIXELS // (height * width)))


def in_chunks(make: Callable[[int], Tensor], start: int, count: int, size: int) -> Iterator[tuple[int, Tensor]]:
    """Yield images start .. start + count - 1, each batch (n, C, H, W) with its first index.

    Always whole chunks are computed, of which what was not asked for is thrown away: a network's last bits depend on
    how many images it computes at once, so an image would otherwise depend on its company.

    Args:
        make: Returns the images (size, C, H, W) from an index on.
        start: First image.
        count: Number of images.
        size: Images of a chunk.
    """
    for chunk in range(start // size, -(-(start + count) // size)):
        first = chunk * size
        images = make(first)
        skipped = max(start - first, 0)
        yield first + skipped, images[skipped : start + count - first]
