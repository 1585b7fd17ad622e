"""What is known of the images of a data set: what their values mean, and one record for each."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.records.versions import Rule

NO_FINDING = "No Finding"  # of images that belong to no class, as NIH's table calls them


@dataclass(frozen=True)
class Intensity:
    """The range that a data set's values lie in, and what they mean. It travels into the checkpoint.

    Args:
        low: Value that becomes -1.
        high: Value that becomes 1.
        bits: Bits per value that are kept, 1 to 16.
        unit: Unit of the values, e.g. "HU".
        meaning: What the values show, e.g. the window and which end is bright.
    """

    low: float
    high: float
    bits: int
    unit: str
    meaning: str

    @property
    def levels(self) -> int:
        """Largest integer that is stored."""
        return 2**self.bits - 1

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Map values in [low, high] to integers 0 .. levels."""
        scaled = np.rint((values - self.low) * (self.levels / (self.high - self.low)))
        return scaled.astype(np.uint8 if self.bits <= 8 else np.uint16)

    def to_images(self, stored: np.ndarray) -> Tensor:
        """Map stored integers to float32 in [-1, 1]."""
        images = torch.from_numpy(stored.astype(np.float32))
        return images.mul_(2.0 / self.levels).sub_(1.0)


@dataclass(frozen=True)
class Record:
    """One image of a data set.

    Attributes:
        name: Unique within the data set; becomes ``id`` of the batch.
        group: Patient, or block of neighbouring slices: never in two splits.
        labels: Names of the classes that it belongs to.
        path: Its file; None for an image that is made in memory.
        told: What ``read`` takes from elsewhere than the file, e.g. from a table; another one gives other pixels.
        about: What else is known of the image, as text, e.g. sex, age in years, view. No pixel, split or fingerprint
            depends on it.
    """

    name: str
    group: str
    labels: tuple[str, ...]
    path: Path | None = None
    told: dict[str, Any] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)


class Used(NamedTuple):
    """An image that is used.

    Attributes:
        record: What the data set says of it.
        content: Hash of its file's bytes, or of what it is drawn from.
        rule: The version of the reader that it is read by.
        copies: The other records of byte-identical files.
    """

    record: Record
    content: str
    rule: Rule
    copies: tuple[Record, ...] = ()

    @property
    def records(self) -> list[Record]:
        """All records of these bytes."""
        return [self.record, *self.copies]


def multi_hot(records: Sequence[Record], classes: Sequence[str]) -> np.ndarray:
    """Return the labels of records (N, K) float32: 1 where a record has the class of the column."""
    column = {name: i for i, name in enumerate(classes)}
    labels = np.zeros((len(records), len(classes)), dtype=np.float32)
    for row, record in enumerate(records):
        labels[row, [column[label] for label in record.labels]] = 1.0
    return labels


def label_rows(labels: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
    """Return how many rows of multi-hot labels (N, K) have each combination of classes, joined by "|"."""
    names = ("|".join(name for name, has in zip(classes, row, strict=True) if has) for row in labels)
    return dict(sorted(Counter(names).items()))


def told_ending(records: Sequence[Record]) -> str:
    """Return what a cache's name ends with where tables tell something of images: a hash of that."""
    told = [[record.name, record.told] for record in records if record.told]
    return f"-told{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]}" if told else ""
