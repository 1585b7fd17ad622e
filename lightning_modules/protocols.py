"""What callbacks, scores and exporters ask of a family: what it can do, never which one it is.

``can(module, Samples)`` tells whether a family samples. A callback names what it cannot do without in its class
attribute ``needs``, and is refused before training where the family lacks it.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from lightning_modules.networks.latents import LatentGenerator, Prior
from lightning_modules.networks.translators import Translator
from lightning_modules.run_record import RunRecord
from lightning_modules.schedules import Point, Schedule
from lightning_modules.step import Batch, LossRecord, Phase


class Clocked(Protocol):
    """Is trained on a clock: every ``PhasedModule``."""

    grows: bool
    schedule: Schedule
    image_size: tuple[int, int]
    image_channels: int
    images_seen: int
    losses: LossRecord
    record: RunRecord
    data_facts: dict[str, Any]
    classes: tuple[str, ...]

    @property
    def device(self) -> Any:
        """The torch.device of the networks."""
        ...

    def labels_of(self, batch: Batch) -> Tensor:
        """Return the labels (N, K) of a batch in the order of ``classes``."""
        ...

    def as_shown(self, images: Tensor) -> Tensor:
        """Return real images as a discriminator is shown them at this clock."""
        ...

    def set_point(self, point: Point) -> None:
        """Bring networks that change with time to a point of the schedule."""
        ...

    def learning_rate_scale(self, point: Point) -> float:
        """Return the factor on every optimizer's learning rate."""
        ...

    def phases(self) -> tuple[Phase, ...]:
        """Return the phases of a batch in the order in which they run."""
        ...

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the optimizers that the phases refer to by index."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield all weights."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Return all weights and buffers by name."""
        ...

    def all_gather(self, data: Any) -> Any:
        """Return a tensor of every process, stacked."""
        ...


class Averages(Clocked, Protocol):
    """Keeps an average of its generator's weights; a phase called "generator" trains it."""

    generator: nn.Module
    generator_ema: nn.Module


class Samples(Averages, Protocol):
    """Makes images from a seed."""

    prior: Prior
    latent_dim: int
    generator: LatentGenerator
    generator_ema: LatentGenerator

    def sample_labels(self, n: int, seed: int = 0, start: int = 0) -> Tensor | None:
        """Return the labels (n, K) that images of a seed's list show unless others are asked for; None without any."""
        ...

    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        truncation: float = 1.0,
        seed: int = 0,
        ema: bool = True,
        start: int = 0,
    ) -> Tensor:
        """Return images (n, C, H, W) in [-1, 1]; see ``Synthesis.sample``."""
        ...

    def unclamped_sample(
        self,
        n: int,
        labels: Tensor | None = None,
        truncation: float = 1.0,
        seed: int = 0,
        ema: bool = True,
        start: int = 0,
    ) -> Tensor:
        """Return generated images as the discriminator is shown them."""
        ...


class Translates(Averages, Protocol):
    """Makes images from images."""

    source_channels: int
    needs_pairs: bool
    generator: Translator
    generator_ema: Translator

    def translate(self, sources: Tensor, seed: int = 0, ema: bool = True, start: int = 0) -> Tensor:
        """Return images (n, C, H, W) in [-1, 1] of sources in [-1, 1]; see ``Translation.translate``."""
        ...

    def unclamped_translation(self, sources: Tensor, seed: int = 0, ema: bool = True, start: int = 0) -> Tensor:
        """Return translations as the discriminator is shown them."""
        ...


class Classifies(Clocked, Protocol):
    """Says what an image shows."""

    def classify(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of images (N, C, H, W) in [-1, 1], in the order of ``classes``."""
        ...


class Judges(Averages, Protocol):
    """Has a discriminator that can be asked about images."""

    def critic_scores(self, images: Tensor, told: Tensor | None = None) -> Tensor:
        """Score images (N, C, H, W) in [-1, 1] at the clock's resolution as in training, without a trace: (N,).

        Higher means more real.

        Args:
            images: The images.
            told: What a conditional discriminator is told of each: the labels (N, K) in the order of ``classes``, or
                the sources (N, source_channels, H, W) that the images belong to. Others ignore it.
        """
        ...


Asked = TypeVar("Asked")


def can(module: Any, what: type[Asked]) -> TypeGuard[Asked]:
    """Tell whether a family has all that a Protocol names.

    ``isinstance`` would not do: from Python 3.12 on it does not see the networks of a module, which torch hands out by
    ``__getattr__``.
    """
    parts = [part for part in what.__mro__ if getattr(part, "_is_protocol", False) and part is not Protocol]
    names = {name for part in parts for name in (*inspect.get_annotations(part), *vars(part))}
    return all(hasattr(module, name) for name in names if not name.startswith("_"))
