"""Phantoms: mammograms, chest x-rays and kidney CT drawn by code, for the demo, the tests and a look without data."""

import itertools
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal

import numpy as np

from datamodules.base import ImageDataModule
from datamodules.batches.augmentation import Augmentation
from datamodules.batches.samplers import Schedule
from datamodules.batches.transforms import resize
from datamodules.phantom_drawings import chest_xray, kidney_ct, mammogram
from datamodules.records.records import Intensity, Record
from datamodules.records.splits import split_by_group

Kind = Literal["mammogram", "chest_xray", "kidney_ct"]
KINDS: dict[str, ModuleType] = {"mammogram": mammogram, "chest_xray": chest_xray, "kidney_ct": kidney_ct}
SIDES = {"L": "LEFT", "R": "RIGHT"}
DRAWING_VERSION = 1  # part of the cache's key: raise it when the drawings change
_SMALLEST = 16  # a drawing needs this many pixels a side; smaller images are averaged down from it


class Phantoms(ImageDataModule):
    """Images drawn by ``phantom_drawings``: image i is the same on every machine and at every resolution.

    Args:
        schedule: What depends on time.
        seed: Seed of split, order and augmentation; the drawings depend on their index alone.
        cache_dir: Where drawn images are kept.
        kind: What to draw.
        count: Number of images.
        view: Only mammograms of this view; "both" for all kinds of images.
        films_per_patient: Images of a patient, which share the anatomy and differ in pose, exposure and noise; None =
            2, of mammograms an exam of 4 (then multiples of it). Other numbers are other patients.
        val_fraction: Share of the images held out for validation.
        test_fraction: Share of the images held out for testing.
        num_workers: Processes that read batches.
        augmentation: Random changes of training images; None = off.
    """

    intensity = Intensity(0.0, 1.0, 8, "grey level / 255", "phantom, brighter = denser")

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        cache_dir: str,
        kind: Kind,
        count: int,
        view: Literal["CC", "MLO", "both"] = "both",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        num_workers: int = 0,
        augmentation: Augmentation | None = None,
        films_per_patient: int | None = None,
    ) -> None:
        super().__init__(schedule, seed, cache_dir, val_fraction, test_fraction, 0.0, num_workers, augmentation)
        if count < 2:
            raise ValueError(f"count={count}: must be at least 2")
        if view != "both" and kind != "mammogram":
            raise ValueError(f"view={view!r}: only mammograms have views; leave it at 'both' for {kind}")
        self.kind, self.count, self.view = kind, count, view
        self.drawing = KINDS[kind]
        self.films = self.drawing.FILMS if films_per_patient is None else films_per_patient
        if self.films < 1 or (kind == "mammogram" and self.films % self.drawing.FILMS):
            needed = "a multiple of 4 for mammograms" if kind == "mammogram" else "at least 1"
            raise ValueError(f"films_per_patient={films_per_patient}: must be {needed}")
        self.classes = tuple(self.drawing.CLASSES)

    def check(self) -> None:
        """Do nothing: phantoms need no files."""

    def records(self) -> list[Record]:
        """Return one record per drawing of the wished view."""
        records: list[Record] = []
        for index in itertools.count():
            if len(records) == self.count:
                break
            what = self.drawing.describe(index, self.films)
            if self.view in ("both", what.view):
                side = {"side": SIDES[what.laterality]} if what.laterality else {}
                about = {"view": what.view, **side}
                records.append(Record(f"{self.kind}-{index:06d}", what.group, what.classes, about=about))
        return records

    def split(self, records: Sequence[Record]) -> np.ndarray:
        """Return "train", "val" or "test" for each record (N,); of few drawings, as in short tries, parts are empty."""
        groups, strata = [record.group for record in records], ["|".join(record.labels) for record in records]
        return split_by_group(groups, strata, self.val_fraction, self.test_fraction, self.seed)

    def read(self, record: Record) -> np.ndarray:
        """Draw one image (1, H, W) at the largest resolution that training asks for, in [0, 1]."""
        height, width = self.schedule.resolutions()[-1]
        factor = -(-_SMALLEST // min(height, width))
        image = self.drawing.draw(int(record.name.rsplit("-", 1)[1]), height * factor, width * factor, self.films)
        return resize(image[None], height, width)

    def read_settings(self) -> dict[str, Any]:
        """Return what the drawings depend on."""
        films = {} if self.films == self.drawing.FILMS else {"films_per_patient": self.films}
        return {"drawing": DRAWING_VERSION, "size": list(self.schedule.resolutions()[-1]), **films}
