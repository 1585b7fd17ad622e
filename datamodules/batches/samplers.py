"""The order in which images are shown: a pure function of (seed, images_seen, world size, rank)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from torch.utils.data import Sampler


class SchedulePoint(Protocol):
    """What the sampler reads of a point of the schedule."""

    @property
    def batch_size(self) -> int:
        """Images of the batch over all processes."""
        ...

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the batch's images."""
        ...


class Schedule(Protocol):
    """What the data needs to know of a schedule."""

    def at(self, images_seen: int) -> SchedulePoint:
        """Return the point of the batch that starts at this clock."""
        ...

    def resolutions(self) -> tuple[tuple[int, int], ...]:
        """Return every (height, width) that training will ask for."""
        ...


@dataclass(frozen=True)
class BatchRequest:
    """One process's share of a batch.

    Attributes:
        images_seen: The clock that the batch is drawn for.
        positions: Place of each image in the endless stream (n,); no two images ever shown share one.
        indices: Images to read (n,), rows of the split.
        resolution: Height and width to read them at.
    """

    images_seen: int
    positions: np.ndarray
    indices: np.ndarray
    resolution: tuple[int, int]


@lru_cache(maxsize=2)  # a batch touches at most two passes, unless the data set is smaller than a batch
def pass_order(size: int, seed: int, number: int) -> np.ndarray:
    """Return the random order (size,) of one pass over the images."""
    return np.random.default_rng([seed, number]).permutation(size)


class ScheduleBatchSampler(Sampler[BatchRequest]):
    """Endless stream of passes over the images, each in its own random order, cut into the schedule's batches.

    A batch may end one pass and begin the next, so that nothing is lost or shown twice. Of a batch, process r of w
    takes every w-th image from the r-th on: another number of processes shows the same images in the same order.

    Args:
        size: Number of images.
        schedule: Gives batch size and resolution at each clock.
        seed: Seed of the order.
        rank: This process.
        world_size: Number of processes; every batch size must be a multiple.
        clock: Returns ``images_seen``; asked when iteration starts, after a checkpoint has been loaded.
        times: Batches that are drawn at once, one after the other in a process's share: 2 for a family whose
            generator looks at other real images than its discriminator. The clock counts one of them.
    """

    def __init__(
        self,
        size: int,
        schedule: Schedule,
        seed: int,
        rank: int,
        world_size: int,
        clock: Callable[[], int],
        times: int = 1,
    ) -> None:
        if size < 1:
            raise ValueError("there is no image to draw from")
        self.times = times
        self.size, self.schedule, self.seed = size, schedule, seed
        self.rank, self.world_size, self.clock = rank, world_size, clock

    def __iter__(self) -> Iterator[BatchRequest]:
        """Yield requests from the present clock on, for ever."""
        images_seen = self.clock()
        while True:
            yield self.request(images_seen)
            images_seen += self.schedule.at(images_seen).batch_size

    def request(self, images_seen: int) -> BatchRequest:
        """Return this process's share of the batch that starts at a clock."""
        point = self.schedule.at(images_seen)
        if point.batch_size % self.world_size:
            raise ValueError(f"a batch of {point.batch_size} images cannot be shared by {self.world_size} processes")
        first, count = self.times * images_seen, self.times * point.batch_size
        positions = np.arange(first + self.rank, first + count, self.world_size)
        passes, within = np.divmod(positions, self.size)
        indices = np.empty(len(positions), dtype=np.int64)
        for number in np.unique(passes):
            chosen = passes == number
            indices[chosen] = pass_order(self.size, self.seed, int(number))[within[chosen]]
        return BatchRequest(images_seen, positions, indices, point.resolution)
