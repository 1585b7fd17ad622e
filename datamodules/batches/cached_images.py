"""What a data loader reads batches from: the memory map of a cache."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.batches.augmentation import Augmentation, augment
from datamodules.batches.samplers import BatchRequest
from datamodules.files.cache import ImageCache
from datamodules.records.records import Intensity

Batch = dict[str, Any]


@dataclass(frozen=True)
class CachedImages(Dataset):
    """Answers a whole request of the sampler at once from the memory map."""

    caches: dict[tuple[int, int], ImageCache]
    rows: np.ndarray
    labels: np.ndarray | None
    names: list[str]
    intensity: Intensity
    augmentation: Augmentation
    seed: int
    mirror: np.ndarray  # column of each class after a left-right flip

    def __getitem__(self, request: BatchRequest) -> Batch:
        images = self.intensity.to_images(self.caches[request.resolution].read(self.rows[request.indices]))
        labels = None if self.labels is None else self.labels[request.indices]
        if self.augmentation.active:
            # One seed per place in the stream: the same on any number of processes and workers.
            keys = (np.random.SeedSequence([self.seed, int(position)]) for position in request.positions)
            seeds = [int(key.generate_state(1)[0]) for key in keys]
            images, flipped = augment(images, self.augmentation, seeds)
            if labels is not None:
                labels = np.where(flipped[:, None], labels[:, self.mirror], labels)
        batch: Batch = {
            "image": images,
            "id": [self.names[i] for i in request.indices],
            "images_seen": request.images_seen,
        }
        if labels is not None:
            batch["label"] = torch.from_numpy(labels)
        return batch
