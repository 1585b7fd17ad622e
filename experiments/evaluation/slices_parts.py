"""Some images of a set, with the vectors of the whole."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.measuring.image_sets import ImageSet
from experiments.measuring.settings import Tools
from experiments.measuring.vectors import VectorCache, key_of
from lightning_modules.metrics.features import FeatureExtractor


class Part(ImageSet):
    """Some images of a set.

    Args:
        whole: The set.
        rows: Which of its images, ascending.
    """

    def __init__(self, whole: ImageSet, rows: np.ndarray) -> None:
        self.whole, self.rows = whole, rows
        self.names, self.groups = [whole.names[i] for i in rows], [whole.groups[i] for i in rows]
        self.what, self.size = whole.what, whole.size

    @property
    def own_size(self) -> tuple[int, int]:
        """That of the set."""
        return self.whole.own_size

    def identity(self) -> dict[str, Any]:
        """Return that of the set, and which images."""
        return {**self.whole.identity(), "images": len(self), "part": key_of(self.rows.tolist())}

    def read(self, start: int, stop: int) -> Tensor:
        """Read one by one."""
        return torch.cat([self.whole.read(i, i + 1) for i in self.rows[start:stop].tolist()])


class PartVectors(VectorCache):
    """Vectors of parts of sets: those of the sets, of which each is computed once.

    Args:
        whole: Where the vectors of the sets are.
        tools: The suite's: of how many images of a set its instruments want an extractor's vectors.
    """

    def __init__(self, whole: VectorCache, tools: Tools) -> None:
        super().__init__(whole.folder, whole.device)
        self._limits: dict[str, int | None] = {}
        for instrument in tools.scores.values():
            for extractor in [instrument.reads] if instrument.reads is not None else tools.extractors.values():
                key, wanted = key_of(extractor.identity()), instrument.at_most
                before = self._limits.get(key, 0)
                self._limits[key] = None if wanted is None or before is None else max(before, wanted)

    def vectors(self, images: ImageSet, extractor: FeatureExtractor, at_most: int | None = None) -> Tensor:
        """Return the vectors (N, D) of the first images of a set, or of a part as far as they are computed."""
        if not isinstance(images, Part):
            return super().vectors(images, extractor, at_most)
        vectors = self.computed(images.whole, extractor)
        return vectors[images.rows[images.rows < len(vectors)][:at_most]]

    def computed(self, images: ImageSet, extractor: FeatureExtractor) -> Tensor:
        """Return the vectors (N, D) of as many images of a set as instruments want."""
        return super().vectors(images, extractor, self._limits.get(key_of(extractor.identity())))

    def compute(self, images: ImageSet, wanted: Sequence[tuple[FeatureExtractor, int]], title: str = "") -> None:
        """Compute those of a set; those of a part are there."""
        if not isinstance(images, Part):
            super().compute(images, wanted, title)
