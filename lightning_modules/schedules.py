"""Schedules: pure functions of the clock ``images_seen`` (real images shown so far, over all processes)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """Everything that depends on time, at one value of the clock.

    Attributes:
        images_seen: The clock: real images shown before this batch, over all processes.
        resolution: Height and width of the images of this batch, in pixels.
        alpha: Fade-in weight of the newest resolution in [0, 1]; 1 where nothing is being faded in.
        batch_size: Images of this batch over all processes.
        batch_index: Number of batches before this one; decides which phases are due.
        images_left: Images until the end of training, 0 at the end.
        learning_rate_scale: Factor on every optimizer's learning rate.
    """

    images_seen: int
    resolution: tuple[int, int]
    alpha: float
    batch_size: int
    batch_index: int
    images_left: int
    learning_rate_scale: float


class Schedule(ABC):
    """What every schedule answers. Subclasses are frozen dataclasses of plain numbers."""

    total_images: int

    @abstractmethod
    def at(self, images_seen: int) -> Point:
        """Return the point of the batch that starts at this clock."""

    @abstractmethod
    def resolutions(self) -> tuple[tuple[int, int], ...]:
        """Return every (height, width) that training will ask for, in order."""

    @abstractmethod
    def batch_sizes(self) -> tuple[int, ...]:
        """Return every batch size (over all processes) that training will ask for, in order."""


@dataclass(frozen=True)
class ConstantSchedule(Schedule):
    """One resolution and one batch size from the first image to the last.

    Args:
        resolution: Height and width in pixels.
        batch_size: Images per batch over all processes, so that results do not depend on the number of devices.
        total_images: Real images to show; the last batch is completed.
        warmup_images: The learning rate rises linearly from 0 over this many images.
        decay_from_images: From here the learning rate falls linearly to 0 at ``total_images``; None = no decay.
    """

    resolution: tuple[int, int]
    batch_size: int
    total_images: int
    warmup_images: int = 0
    decay_from_images: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that no training run can have."""
        if min(self.resolution) < 1:
            raise ValueError(f"resolution={list(self.resolution)}: height and width must be at least 1 pixel")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: must be at least 1")
        if self.total_images < self.batch_size:
            raise ValueError(f"total_images={self.total_images}: must be at least one batch ({self.batch_size})")
        if self.warmup_images < 0:
            raise ValueError(f"warmup_images={self.warmup_images}: must not be negative")
        if self.decay_from_images is not None and not 0 <= self.decay_from_images < self.total_images:
            raise ValueError(
                f"decay_from_images={self.decay_from_images}: must lie in 0..{self.total_images - 1} "
                f"(before total_images={self.total_images})"
            )

    def at(self, images_seen: int) -> Point:
        """Return the point of the batch that starts at this clock."""
        return Point(
            images_seen=images_seen,
            resolution=self.resolution,
            alpha=1.0,
            batch_size=self.batch_size,
            batch_index=images_seen // self.batch_size,
            images_left=max(0, self.total_images - images_seen),
            learning_rate_scale=self._learning_rate_scale(images_seen),
        )

    def resolutions(self) -> tuple[tuple[int, int], ...]:
        """Return the one resolution."""
        return (self.resolution,)

    def batch_sizes(self) -> tuple[int, ...]:
        """Return the one batch size."""
        return (self.batch_size,)

    def _learning_rate_scale(self, images_seen: int) -> float:
        scale = 1.0
        if images_seen < self.warmup_images:
            # The end of the batch, so that the first batch does not train with a rate of zero.
            scale = min(1.0, (images_seen + self.batch_size) / self.warmup_images)
        if self.decay_from_images is not None and images_seen > self.decay_from_images:
            left = max(0, self.total_images - images_seen)
            scale *= left / (self.total_images - self.decay_from_images)
        return scale
