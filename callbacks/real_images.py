"""What callbacks ask of the data module, as a Protocol: they do not import the data packages."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, cast

import lightning as L
import numpy as np
from torch import Tensor


class RealImages(Protocol):
    """The real images of a run."""

    cache_dir: Path

    def size(self, split: str) -> int:
        """Return the number of images in a split."""
        ...

    def images(self, split: str, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Tensor]:
        """Yield a process's share of a split's images (N, C, H, W) in [-1, 1], once each."""
        ...

    def select(self, split: str, indices: np.ndarray) -> Tensor:
        """Return images of a split (len(indices), C, H, W) in [-1, 1]."""
        ...

    def labels(self, split: str, indices: np.ndarray) -> Tensor:
        """Return the labels of images of a split, multi-hot (len(indices), K), a column for each of its classes."""
        ...

    def fingerprint(self, split: str) -> str:
        """Return a hash of the contents of a split's images."""
        ...


class RealPairs(RealImages, Protocol):
    """The real images of a translator's run: as real images its targets, and the sources.

    A batch holds ``source`` and ``target`` in place of ``image``. The facts of the data (``facts()``) say ``source``
    (channels, intensity, fingerprint of each split) and ``paired``, so that no run is resumed on other sources.
    """

    source_channels: int
    paired: bool  # whether source i of a split belongs to target i

    def source_size(self, split: str) -> int:
        """Return the number of sources in a split."""
        ...

    def sources(self, split: str, indices: np.ndarray) -> Tensor:
        """Return sources of a split (len(indices), source_channels, H, W) in [-1, 1]."""
        ...

    def source_fingerprint(self, split: str) -> str:
        """Return a hash of the contents of a split's sources."""
        ...


def even_rows(size: int, count: int) -> np.ndarray:
    """Return ``count`` rows of ``size`` (all of them if there are fewer) at even distances, from the first one on.

    Files are named by patient, and the lowest numbers are not like the others: a table is sorted by time or centre.
    """
    count = min(count, size)
    return np.arange(count) * size // max(1, count)


def spread(data: RealImages, split: str, count: int) -> Tensor:
    """Return images from all over a split (count or fewer, C, H, W): neighbours are often slices of one patient."""
    return data.select(split, even_rows(data.size(split), count))


def real_images(trainer: L.Trainer) -> RealImages:
    """Return the data module that the trainer was given."""
    return cast(RealImages, trainer.datamodule)  # type: ignore[attr-defined]
