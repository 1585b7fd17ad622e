"""The endless list of images that belongs to a seed: image i's latents are a function of (seed, i), and images are
computed in fixed chunks, so that one generator makes the same images wherever and however it is loaded.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from statistics import NormalDist
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

Prior = Literal["normal", "uniform", "truncated_normal"]
BOUND = 2.0  # of the truncated normal, in standard deviations; Brock 2019's code cuts there
CHUNK_IMAGES, CHUNK_PIXELS = 16, 2**20  # computed at once: so many images, or fewer large ones


class Noise(Protocol):
    """Where a network gets what it draws at random inside, e.g. for a noise layer or dropout."""

    def __call__(self, layer: str, shape: Sequence[int]) -> Tensor:
        """Return standard normal numbers (N, *shape) for a layer, the same whenever they are asked for again."""
        ...


@runtime_checkable
class Grows(Protocol):
    """A network that grows stage by stage."""

    stage: int
    alpha: float

    def set_stage(self, stage: int, alpha: float) -> None:
        """Work at a stage from now on, its newest layers weighted by alpha; ValueError if there is none."""
        ...


class LatentGenerator(nn.Module):
    """Base of the networks that make images from latents: what truncation means is the network's own.

    ``forward`` takes latents (N, latent_dim), then what the attributes say: labels, noise.

    Attributes:
        truncates: Whether ``from_latents`` can truncate.
        label_count: Columns of the labels that it takes; 0 = it takes none.
        noisy: Whether it takes a ``Noise``. Inside, nothing may draw from torch's global generator (``nn.Dropout``,
            ``randn_like``): no checkpoint holds it.
        arguments: The constructor's arguments as plain values, from which an exported network is built again.
    """

    truncates = True
    label_count = 0
    noisy = False
    arguments: dict[str, Any]

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the images that it makes at present."""
        height, width = self.arguments["image_size"]
        return height, width

    def from_latents(
        self, latents: Tensor, labels: Tensor | None = None, truncation: float = 1.0, noise: Noise | None = None
    ) -> Tensor:
        """Return images (N, C, H, W), not clamped, of latents (N, latent_dim) as they are drawn from the prior.

        Args:
            latents: The latents.
            labels: Multi-hot (N, label_count); None where the network takes none.
            truncation: 1 leaves the generator as it is, 0 gives the image that it takes for the mean. Here a factor on
                the latents.
            noise: What a noisy network draws inside.

        Raises:
            ValueError: If the network cannot truncate.
        """
        return self.given(latents if truncation == 1.0 else latents * truncation, labels, noise)

    def given(self, latents: Tensor, labels: Tensor | None, noise: Noise | None) -> Tensor:
        """Call the network with those inputs that it takes."""
        inputs = [latents, *([labels] if self.label_count else []), *([noise] if self.noisy else [])]
        return self(*inputs)


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


def sample_noise(n: int, seed: int, start: int, device: torch.device | str) -> Noise:
    """Return the noise of images start .. start + n - 1 of a seed's list: a function of (seed, i, layer)."""

    def noise(layer: str, shape: Sequence[int]) -> Tensor:
        generators = (seeded_generator("cpu", seed, i, "noise", layer) for i in range(start, start + n))
        return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators]).to(device)

    return noise


def rows_of(rows: Mapping[str, int], classes: Sequence[str]) -> dict[str, int]:
    """Return how many images have each combination of some labels, given those of all, in a fixed order."""
    found: dict[str, int] = {}
    for row, count in rows.items():
        has = set(row.split("|"))
        key = "|".join(name for name in classes if name in has)
        found[key] = found.get(key, 0) + count
    return dict(sorted(found.items()))


def sample_labels(rows: Mapping[str, int], classes: Sequence[str], n: int, seed: int, start: int = 0) -> Tensor:
    """Return the labels (n, K) float32 of images start .. start + n - 1 of a seed's list, on the CPU.

    Whole rows of the training table are drawn, as often as they occur there: findings occur together.

    Args:
        rows: How many training images have each combination of labels, which "|" joins.
        classes: Names of the columns; other labels of a row are left out.
        n: Number of images.
        seed: Names the list.
        start: First image.
    """
    rows = rows_of(rows, classes)
    ends = list(accumulate(rows.values()))
    table = torch.tensor([[float(name in row.split("|")) for name in classes] for row in rows])

    def drawn(i: int) -> int:
        place = torch.randint(ends[-1], (), generator=seeded_generator("cpu", seed, i, "labels"))
        return bisect_right(ends, int(place))

    return table[[drawn(i) for i in range(start, start + n)]]


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
