"""Schedules: pure functions of the clock ``images_seen`` (real images shown so far, over all processes)."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from lightning_modules.networks.layers import base_grid


@dataclass(frozen=True)
class Point:
    """Everything that depends on time, at one value of the clock.

    Attributes:
        images_seen: The clock: real images shown before this batch, over all processes.
        stage: Number of doublings that a growing network has made since its smallest grid; 0 where nothing grows.
        stage_start: The clock at which this stage begins.
        resolution: Height and width of the images of this batch, in pixels.
        alpha: Fade-in weight of the newest resolution in [0, 1]; 1 where nothing is being faded in.
        batch_size: Images of this batch over all processes.
        batch_index: Number of batches before this one; decides which phases are due.
        images_left: Images until the end of training, 0 at the end.
        learning_rate_scale: Factor on every optimizer's learning rate.
    """

    images_seen: int
    stage: int
    stage_start: int
    resolution: tuple[int, int]
    alpha: float
    batch_size: int
    batch_index: int
    images_left: int
    learning_rate_scale: float


class Schedule(ABC):
    """What every schedule answers. Subclasses are frozen dataclasses of plain numbers.

    Attributes:
        total_images: The clock at which training ends.
    """

    total_images: int

    @abstractmethod
    def at(self, images_seen: int) -> Point:
        """Return the point of the batch that starts at this clock."""

    @abstractmethod
    def resolutions(self) -> tuple[tuple[int, int], ...]:
        """Return every (height, width) that training will ask for, in order."""

    @abstractmethod
    def stages(self) -> tuple[Point, ...]:
        """Return the point at which each stage begins, in order; one where nothing grows."""

    def has_grown(self, images_seen: int) -> bool:
        """Tell whether the networks have their final form at this clock: the last stage, wholly faded in."""
        point = self.at(images_seen)
        return point.stage == self.stages()[-1].stage and point.alpha >= 1.0


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
            stage=0,
            stage_start=0,
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

    def stages(self) -> tuple[Point, ...]:
        """Return the one stage."""
        return (self.at(0),)

    def _learning_rate_scale(self, images_seen: int) -> float:
        scale = 1.0
        if images_seen < self.warmup_images:
            # The end of the batch, so that the first batch does not train with a rate of zero.
            scale = min(1.0, (images_seen + self.batch_size) / self.warmup_images)
        if self.decay_from_images is not None and images_seen > self.decay_from_images:
            left = max(0, self.total_images - images_seen)
            scale *= left / (self.total_images - self.decay_from_images)
        return scale


@dataclass(frozen=True)
class ProgressiveSchedule(Schedule):
    """A small grid that is doubled stage by stage, each new stage faded in (Karras 2018, section 2 and appendix A).

    The first stage has nothing to fade in and shows its stable images only. A stage ends with a whole batch: the batch
    in which its images run out is completed, so that nothing is lost or shown twice where batch sizes change.

    Args:
        resolution: Final height and width in pixels, a small grid doubled: 1024x1024 is 4x4, 1280x1024 is 5x4.
        batch_sizes: Images per batch over all processes, one number for all stages or one each.
        fade_images: Images during which a new stage is faded in, one number or one per stage (the first one's is 0).
            0 switches over at once.
        stable_images: Images after the fade, one number for all stages or one each.
        learning_rate_scales: Factor on the learning rate, one number for all stages or one each.
    """

    resolution: tuple[int, int]
    batch_sizes: int | tuple[int, ...]
    fade_images: int | tuple[int, ...]
    stable_images: int | tuple[int, ...]
    learning_rate_scales: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        """Refuse values that no training run can have."""
        try:
            base_grid(self.resolution)
        except ValueError as error:
            raise ValueError(str(error).replace("image_size", "resolution", 1)) from error
        for name, smallest in (("batch_sizes", 1), ("fade_images", 0), ("stable_images", 1)):
            values = self._per_stage(name)
            if min(values) < smallest:
                raise ValueError(f"{name}={list(values)}: must be at least {smallest}")
        if not all(0 < scale < float("inf") for scale in self._per_stage("learning_rate_scales")):
            raise ValueError(f"learning_rate_scales={self.learning_rate_scales}: must be positive")
        if not isinstance(self.fade_images, int) and self.fade_images[0] != 0:
            raise ValueError(
                f"fade_images={list(self.fade_images)}: the first stage has nothing to fade in; begin with 0"
            )

    def at(self, images_seen: int) -> Point:
        """Return the point of the batch that starts at this clock."""
        stage = bisect_right(self._starts, images_seen) - 1
        start, batch_size, fade = self._starts[stage], self._sizes[stage], self._fades[stage]
        return Point(
            images_seen=images_seen,
            stage=stage,
            stage_start=start,
            resolution=self.resolutions()[stage],
            alpha=min(1.0, (images_seen - start) / fade) if fade else 1.0,
            batch_size=batch_size,
            batch_index=sum(self._batches[:stage]) + (images_seen - start) // batch_size,
            images_left=max(0, self.total_images - images_seen),
            learning_rate_scale=self._per_stage("learning_rate_scales")[stage],
        )

    @property
    def total_images(self) -> int:  # type: ignore[override]
        """The clock at which training ends."""
        return self._starts[-1] + self._batches[-1] * self._sizes[-1]

    def resolutions(self) -> tuple[tuple[int, int], ...]:
        """Return the resolution of every stage, smallest first."""
        (height, width), doublings = base_grid(self.resolution)
        return tuple((height << stage, width << stage) for stage in range(doublings + 1))

    def stages(self) -> tuple[Point, ...]:
        """Return the point at which each stage begins."""
        return tuple(self.at(start) for start in self._starts)

    def _per_stage(self, name: str) -> tuple:
        """Return one value per stage of an argument that may be one number for all."""
        value, stages = getattr(self, name), len(self.resolutions())
        values = tuple(value) if isinstance(value, list | tuple) else (value,) * stages
        if len(values) != stages:
            raise ValueError(f"{name}={list(values)}: give one number, or {stages} (one per stage, smallest first)")
        return values

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        return self._per_stage("batch_sizes")

    @cached_property
    def _fades(self) -> tuple[int, ...]:
        return (0, *self._per_stage("fade_images")[1:])

    @cached_property
    def _batches(self) -> tuple[int, ...]:
        images = (fade + stable for fade, stable in zip(self._fades, self._per_stage("stable_images"), strict=True))
        return tuple(-(-count // size) for count, size in zip(images, self._sizes, strict=True))

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        lengths = [batches * size for batches, size in zip(self._batches, self._sizes, strict=True)]
        return (0, *accumulate(lengths[:-1]))
