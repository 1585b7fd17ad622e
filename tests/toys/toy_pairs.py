"""Pairs in their smallest form: phantoms as targets, and as sources the phantoms inverted and darkened."""

from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.phantoms import Phantoms
from datamodules.records.records import Intensity
from datamodules.records.splits import SPLITS

SOURCE = Intensity(0.0, 1.0, 8, "grey level / 255", "phantom inverted and darkened")


def source_of(target: Tensor) -> Tensor:
    """Return the source of a target: with p from 0 to 1, source = (1 - p)^2."""
    return (1.0 - (target + 1.0) / 2.0) ** 2 * 2.0 - 1.0


class ToyPairs(Phantoms):
    """Phantoms with a source each. Unpaired, a source is given that belongs to another target.

    Args:
        schedule: What depends on time.
        seed: Seed of split and order.
        cache_dir: Where drawn images are kept.
        count: Number of pairs.
        paired: Whether source i belongs to target i.
        val_fraction: Share of the pairs held out for validation.
    """

    source_channels = 1

    def __init__(
        self, schedule: Any, seed: int, cache_dir: str, count: int, paired: bool = True, val_fraction: float = 0.3
    ) -> None:
        super().__init__(schedule, seed, cache_dir, "kidney_ct", count, val_fraction=val_fraction)
        self.paired = paired

    def source_size(self, split: str) -> int:
        return self.size(split)

    def sources(self, split: str, indices: np.ndarray) -> Tensor:
        return source_of(self.select(split, indices if self.paired else self.size(split) - 1 - indices))

    def source_fingerprint(self, split: str) -> str:
        return f"{self.fingerprint(split)}-inverted-{self.paired}"

    def facts(self) -> dict[str, Any]:
        prints = {split: self.source_fingerprint(split) for split in SPLITS}
        source = {"channels": self.source_channels, "intensity": asdict(SOURCE), "fingerprint": prints}
        return {**super().facts(), "source": source, "paired": self.paired}

    def train_images(self) -> Dataset:
        return _Pairs(super().train_images(), self.paired)


class _Pairs(Dataset):
    def __init__(self, images: Dataset, paired: bool) -> None:
        self.images, self.paired = images, paired

    def __getitem__(self, request: Any) -> dict[str, Any]:
        batch = dict(self.images[request])
        target = batch.pop("image")
        source = source_of(target)
        return {**batch, "source": source if self.paired else source.flip(0), "target": target}
