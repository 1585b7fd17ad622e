"""What an evaluation asks of an instrument: a name in a suite's YAML becomes one of these classes.

Each image becomes one vector (an extractor's features, its moments, its spectrum ...). An instrument turns the vectors
of two or three sets of images into named numbers, so that one way of resampling gives all of them intervals and floors.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from torch import Tensor

from lightning_modules.metrics.features import FeatureExtractor

Better = Literal["lower", "higher", "as real"]
Unit = Literal["image", "pair"]


class TooFewImagesError(ValueError):
    """There are too few images for a number to mean anything; the message says how many are needed."""


class Instrument(ABC):
    """What distribution and memorisation scores share.

    Attributes:
        better: Which way a value points: "as real" = the nearer to what held-out real images get, the better.
        reads: The vectors that it takes, one per image; None = the features of each of the suite's extractors.
        at_least: Images of each set below which it is refused.
        steady_from: Images of each set below which a value comes with a warning; see ``enough``.
        at_most: Images of each set that are used; None = all.
        bounds: Where the values end: no interval goes beyond.
        unit: What a row of a set is, and what is resampled: an image; or a pair, images 2i and 2i + 1 of the set, whose
            vector is that of image 2i. Of real images only pairs that share no patient are taken.
        one_per_group: Take one image of each patient: for what learns from images, and would know a patient again.
        depends_on: What else two values must share to be compared, such as the version of the library that gives them.
    """

    better: Better
    reads: FeatureExtractor | None = None
    at_least: int = 2
    steady_from: int = 2
    at_most: int | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)
    unit: Unit = "image"
    one_per_group: bool = False
    depends_on: Mapping[str, str] = MappingProxyType({})

    def enough(self, dimensions: int) -> int:
        """Return the images of each set below which a value comes with a warning.

        Args:
            dimensions: Length of a vector.
        """
        return max(self.at_least, self.steady_from)

    def check(self, *sets: Tensor) -> None:
        """Check shapes and sizes.

        Raises:
            TooFewImagesError: If a set has fewer than ``at_least`` images, or pairs.
            ValueError: If a set is no (N, D) of finite numbers, or lengths of vectors differ.
        """
        for vectors in sets:
            if vectors.ndim != 2 or vectors.shape[1] != sets[0].shape[1]:
                raise ValueError(f"expected sets of vectors (N, D) with one D, got {[tuple(s.shape) for s in sets]}")
            if len(vectors) < self.at_least:
                name = type(self).__name__
                raise TooFewImagesError(
                    f"{name} needs at least {self.at_least} {self.unit}s of each set, got {len(vectors)}"
                )
            if not vectors.isfinite().all():
                raise ValueError(f"{type(self).__name__}: a vector holds values that are not finite")


class DistributionScore(Instrument):
    """How a set of images differs from a set of real ones."""

    @abstractmethod
    def measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return named numbers.

        Args:
            real: Vectors (N, D).
            generated: Vectors (M, D).

        Raises:
            TooFewImagesError: If a set is smaller than ``at_least``.
        """

    def warnings(self, real: Tensor, generated: Tensor) -> list[str]:
        """Return in sentences what makes the numbers of these vectors mean little.

        Args:
            real: Vectors (N, D).
            generated: Vectors (M, D).
        """
        return []


class MemorisationScore(Instrument):
    """Whether a set of images repeats the training images."""

    @abstractmethod
    def measure(self, train: Tensor, held_out: Tensor, generated: Tensor) -> dict[str, float]:
        """Return named numbers.

        Args:
            train: Vectors (N, D) of the images that the generator was trained on.
            held_out: Vectors (M, D) of real images of other patients.
            generated: Vectors (K, D).

        Raises:
            TooFewImagesError: If a set is smaller than ``at_least``.
        """
