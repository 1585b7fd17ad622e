"""ImageDataModule: from files to batches. A data set says what its files are; everything else is here.

A batch is a dict: ``image`` (N, C, H, W) float32 in [-1, 1], ``label`` multi-hot (N, K) float32 (absent if the data set
has no classes), ``id`` (names), ``images_seen`` (the clock that it was drawn for).
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.batches.augmentation import Augmentation
from datamodules.batches.cached_images import CachedImages
from datamodules.batches.reading_processes import READ_AHEAD, move_to_shared_memory, outlive_a_signal, shared_bytes
from datamodules.batches.samplers import Schedule, ScheduleBatchSampler
from datamodules.batches.transforms import resize
from datamodules.files.cache import Extremes, ImageCache, cache_key, content_hashes, is_blank
from datamodules.files.cache_building import Files, open_or_build
from datamodules.files.errors import DataError, UnreadableImageError
from datamodules.files.pseudonyms import remember
from datamodules.records import remarks
from datamodules.records.duplicates import Questions, agree, by_content, without_duplicates
from datamodules.records.records import NO_FINDING, Intensity, Record, Used, label_rows, multi_hot, told_ending
from datamodules.records.splits import SPLITS, check_disjoint, represent_classes, split_by_group
from datamodules.records.versions import RESIZING, Rule, name_ending, newest, sentences

log = logging.getLogger(__name__)


class ImageDataModule(L.LightningDataModule, ABC):
    """Base of every data set: cache, splits, batches.

    A subclass sets ``classes`` and ``intensity`` and writes ``records`` and ``read``.

    Args:
        schedule: What depends on time; the same object that the GAN holds.
        seed: Seed of split, order and augmentation.
        cache_dir: Where decoded images and statistics of real images are kept; holds patient images.
        val_fraction: Share of the images held out for validation, whole groups at a time.
        test_fraction: Share of the images held out for testing, whole groups at a time.
        max_unreadable: Share of the files that may be unreadable; they are left out, counted and named.
        num_workers: Processes that read batches. 0 is the fastest for a memory map: copies between processes cost more
            than reading.
        augmentation: Random changes of training images; None = off.
    """

    classes: tuple[str, ...] = ()
    mirrored: dict[str, str] = {}  # classes that a left-right flip exchanges
    questions: Questions = ()  # classes that exclude each other and may be unknown; none = all classes are known
    channels: int = 1
    intensity: Intensity
    range_settings: str = ""  # what declares the range that files' values are brought to, for users
    real_batches: int = 1  # that the family is given at once; see ``ScheduleBatchSampler``

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        cache_dir: str,
        val_fraction: float,
        test_fraction: float,
        max_unreadable: float,
        num_workers: int,
        augmentation: Augmentation | None,
    ) -> None:
        super().__init__()
        if not 0 <= max_unreadable < 1:
            raise ValueError(f"max_unreadable={max_unreadable}: a share of the files lies in 0 to below 1")
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers}: must not be negative")
        if not (0 <= val_fraction and 0 <= test_fraction and val_fraction + test_fraction < 1):
            raise ValueError(
                f"val_fraction={val_fraction}, test_fraction={test_fraction}: must leave images to train on"
            )
        self.schedule, self.seed = schedule, seed
        self.cache_dir = Path(cache_dir).expanduser()
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.max_unreadable, self.num_workers = max_unreadable, num_workers
        self.augmentation = augmentation or Augmentation()
        self._scan: list[Used] | None = None
        self._copied: list[Used] = []  # contents of several files
        self._contradicting: dict[str, bool] = {}  # readable ones with different labels; whether they show anything
        self._rows: dict[str, np.ndarray] = {}
        self._caches: dict[tuple[int, int], ImageCache] = {}

    # What a data set writes -----------------------------------------------------------------------------------------

    @abstractmethod
    def check(self) -> None:
        """Raise DataError if the data is not where it should be; quick, before any device is touched."""

    @abstractmethod
    def records(self) -> list[Record]:
        """Return every image that there is, in an order that does not depend on the file system."""

    @abstractmethod
    def read(self, record: Record) -> np.ndarray:
        """Return an image (C, H, W) float32 in the unit of ``intensity``, or raise UnreadableImageError."""

    def read_settings(self) -> dict[str, Any]:
        """Return what ``read`` depends on besides the file, to be part of the cache's key."""
        return {}

    def layout_rule(self, record: Record) -> Rule:
        """Return under which rules this data set makes an image of a file, for ``versions.CHANGES``."""
        return newest(self._name)

    def attributes(self, record: Record) -> dict[str, str]:
        """Return by what images can be told apart in an evaluation, as text; several values are joined by "|"."""
        finding = {"finding": "|".join(record.labels) or NO_FINDING} if self.classes else {}
        return {**finding, **record.about}

    def say_of_files(self) -> None:
        """Say in the log what was odd about the files that were read now; most data sets have nothing to say."""

    @property
    def drawn_parts(self) -> tuple[str, ...]:
        """Parts that fractions and seed decide, rather than a list of the data set's."""
        return SPLITS

    def split(self, records: Sequence[Record]) -> np.ndarray:
        """Return "train", "val" or "test" for each record (N,); no group may lie in two parts."""
        groups, labels = [record.group for record in records], [record.labels for record in records]
        settings = self.val_fraction, self.test_fraction, self.seed
        return represent_classes(
            split_by_group(groups, ["|".join(of) for of in labels], *settings), groups, labels, *settings
        )

    # Lightning's hooks ----------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Build the caches that training needs; Lightning calls this on one process per machine."""
        self._open_caches()

    def setup(self, stage: str | None = None) -> None:
        """Open the caches and split the images by group."""
        self._caches = self._open_caches()
        largest = self._caches[max(self._caches)]
        remarks.say_unusable(self._name, self._scanned(), largest)
        remarks.say_narrow(self._name, self.intensity, largest.extremes(), self.range_settings)
        self._kept, rows = without_duplicates(
            self._name, self._kept_images(largest), largest, self._copied, self._contradicting, self.questions
        )
        records = [self._kept[row].record for row in rows]
        split = self.split(records)
        check_disjoint([record.group for record in records], split.tolist())
        self._rows = {name: rows[split == name] for name in SPLITS}
        self._names = [image.record.name for image in self._kept]
        self._labels = multi_hot([image.record for image in self._kept], self.classes)
        if not len(self._rows["train"]):
            raise DataError(f"{self._name}: no image is left for training ({len(records)} in all)")
        log.info(self.describe())
        parts = {part: self.split_records(part) for part in SPLITS}
        for part, share in (("val", self.val_fraction), ("test", self.test_fraction)):
            if share > 0:
                remarks.say_few_groups(self._name, part, parts, share)
                remarks.say_scarce(self._name, part, parts, self.classes, share, drawn=part in self.drawn_parts)

    def train_dataloader(self) -> DataLoader:
        """Return the endless loader of training batches, from the module's clock on."""
        trainer = self.trainer
        assert trainer is not None
        sampler = ScheduleBatchSampler(
            self.size("train"),
            self.schedule,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
            clock=lambda: cast(int, trainer.lightning_module.images_seen),
            times=self.real_batches,
        )
        return DataLoader(
            self.train_images(),
            batch_size=None,  # the sampler asks for whole batches
            sampler=sampler,
            num_workers=self.num_workers,
            prefetch_factor=READ_AHEAD if self.num_workers else None,
            collate_fn=move_to_shared_memory if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=trainer.strategy.root_device.type == "cuda",
            worker_init_fn=outlive_a_signal,
        )

    def train_images(self) -> Dataset:
        """Return the data set that answers a sampler's request with a batch."""
        rows = self._rows["train"]
        labels = self._labels[rows] if self.classes else None
        names = [self._names[row] for row in rows]
        mirror = [self.classes.index(self.mirrored.get(name, name)) for name in self.classes]
        return CachedImages(
            self._caches, rows, labels, names, self.intensity, self.augmentation, self.seed, np.array(mirror, dtype=int)
        )

    # What others ask for --------------------------------------------------------------------------------------------

    def size(self, split: str) -> int:
        """Return the number of images in a split."""
        return len(self._rows[split])

    def groups(self, split: str) -> int:
        """Return the number of groups (patients, blocks of slices) in a split."""
        return len({self._kept[row].record.group for row in self._rows[split]})

    def images(self, split: str, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Tensor]:
        """Yield a process's share of a split's images (N, C, H, W) in [-1, 1] at the final resolution, once each."""
        share = np.arange(self.size(split))[rank::world_size]
        for start in range(0, len(share), batch_size):
            yield self.select(split, share[start : start + batch_size])

    def select(self, split: str, indices: np.ndarray) -> Tensor:
        """Return images of a split (len(indices), C, H, W) in [-1, 1] at the final resolution."""
        cache = self._caches[self.schedule.resolutions()[-1]]
        return self.intensity.to_images(cache.read(self._rows[split][indices]))

    def split_records(self, split: str) -> list[Record]:
        """Return what is known of each image of a split, in order."""
        return [self._kept[row].record for row in self._rows[split]]

    def split_contents(self, split: str) -> list[str]:
        """Return a hash of the content of each image of a split, in order: of its file's bytes where it has one."""
        return [self._kept[row].content for row in self._rows[split]]

    def labels(self, split: str, indices: np.ndarray) -> Tensor:
        """Return the labels of images of a split, multi-hot (len(indices), K) float32 in the order of ``classes``."""
        return torch.from_numpy(self._labels[self._rows[split][indices]])

    def label_rows(self, split: str) -> dict[str, int]:
        """Return how many images of a split have each combination of labels, which "|" joins in the order of classes.

        Labels occur together: whoever draws them at random has to draw whole rows.
        """
        return label_rows(self._labels[self._rows[split]], self.classes)

    def fingerprint(self, split: str) -> str:
        """Return a hash of the contents of a split's images at the final resolution, in order."""
        digest = hashlib.sha256(f"{self.schedule.resolutions()[-1]} {self.read_settings()}".encode())
        for row in self._rows[split]:
            digest.update(self._kept[row].content.encode())
        digest.update(self._ending([self._kept[row] for row in self._rows[split]]).encode())
        return digest.hexdigest()[:20]

    def facts(self) -> dict[str, Any]:
        """Return plain facts that travel in the checkpoint: what the pixels mean, and which images were used."""
        return {
            "data_set": self._name,
            "classes": list(self.classes),
            "channels": self.channels,
            "intensity": asdict(self.intensity),
            "images": {split: self.size(split) for split in SPLITS},
            "groups": {split: self.groups(split) for split in SPLITS},
            "fingerprint": {split: self.fingerprint(split) for split in SPLITS},
            "reading": sentences(self._rules(self._kept)),
            **({"label_rows": self.label_rows("train")} if self.classes else {}),
        }

    def cache_bytes(self, images: int) -> dict[tuple[int, int], int]:
        """Return the bytes on disk of each resolution's cache for so many images."""
        per_value = self.channels * (1 if self.intensity.bits <= 8 else 2)
        return {(height, width): images * height * width * per_value for height, width in self.schedule.resolutions()}

    def shared_bytes(self, images: int, resolution: tuple[int, int]) -> int:
        """Return the bytes of shared memory that the readers of one training process hold at most.

        Args:
            images: Images of a batch, of this process.
            resolution: Height and width of the images.
        """
        images, (height, width) = images * self.real_batches, resolution
        values = images * self.channels * height * width, images * len(self.classes)
        return shared_bytes(values, self.num_workers)

    def describe(self) -> str:
        """Return a table of images, groups and classes per split, for the log."""
        return remarks.table(self._name, {part: self.split_records(part) for part in SPLITS}, self.classes)

    @property
    def _name(self) -> str:
        return type(self).__name__

    # Mechanics ------------------------------------------------------------------------------------------------------

    def _scanned(self) -> list[Used]:
        """Return the images that may be used, one per content: a cache is made of those that can be read."""
        if self._scan is None:
            records = self.records()
            files = [record for record in records if record.path is not None]
            remember(name for record in files for name in (record.name, record.group))
            if not records:
                raise DataError(f"{self._name}: found no image")
            try:
                memo = self.cache_dir / "hashes" / f"{self._name}-rules.json"
                images = by_content(self._name, records, self._contents(records), memo)
            except OSError as error:
                raise DataError(f"data.cache_dir={self.cache_dir}: {error}") from error
            self._copied = [image for image in images if image.copies]
            agreeing = [agree(image.records, self.questions) for image in images]
            self._scan = [image for image, agrees in zip(images, agreeing, strict=True) if agrees]
            # Now ``read`` may ask for the scan, which is completed below.
            odd = [image.record for image, agrees in zip(images, agreeing, strict=True) if not agrees]
            self._contradicting = self._readable(odd)
            self._scan = [image for image in images if image.record.name not in self._contradicting]
        return self._scan

    def _rules(self, images: Sequence[Used]) -> list[Rule]:
        """Return every version of reading that images have come through."""
        of_files = (rule for image in images for rule in (image.rule, self.layout_rule(image.record)))
        return [newest(RESIZING), *of_files]

    def _ending(self, images: Sequence[Used]) -> str:
        """Return what a cache's name ends with: changed rules of reading, and a hash of what tables tell of images."""
        return name_ending(self._rules(images)) + told_ending([image.record for image in images])

    def _readable(self, records: Iterable[Record]) -> dict[str, bool]:
        """Return the names of the files that can be read, each with whether it has more than one value."""
        found: dict[str, bool] = {}
        for record in records:
            with suppress(UnreadableImageError):
                found[record.name] = not is_blank(self.read(record))
        return found

    def _contents(self, records: list[Record]) -> list[str]:
        paths = [record.path for record in records if record.path is not None]
        hashes = iter(content_hashes(paths, self.cache_dir / "hashes" / f"{self._name}.json") if paths else [])
        return [
            next(hashes) if record.path is not None else f"{record.name} {self.read_settings()}" for record in records
        ]

    def _open_caches(self) -> dict[tuple[int, int], ImageCache]:
        """Return a cache per resolution of the schedule; missing ones are built in one pass over the files."""
        images = self._scanned()
        records = [image.record for image in images]
        names, contents = [record.name for record in records], [image.content for image in images]
        resolutions = self.schedule.resolutions()
        largest_first = sorted(set(resolutions), reverse=True)
        extremes: dict[int, Extremes] = {}

        def read(i: int) -> list[np.ndarray]:
            image = self.read(records[i])
            low, high = float(image.min()), float(image.max())
            if not (self.intensity.low <= low and high <= self.intensity.high):
                raise UnreadableImageError(
                    f"{records[i].name}: values {low:g} .. {high:g} lie outside the data set's range "
                    f"{self.intensity.low:g} .. {self.intensity.high:g} {self.intensity.unit}"
                )
            above_padding = image.min(initial=high, where=image > self.intensity.low)
            extremes[i] = Extremes(*self.intensity.encode(np.array([above_padding, high])).tolist())
            stored = []
            for height, width in largest_first:  # each from the one before: the mean of means is the mean
                image = resize(image, height, width)
                stored.append(self.intensity.encode(image))
            return stored

        shapes = [(self.channels, height, width) for height, width in largest_first]
        directories = [self._cache_directory(shape, names, contents) for shape in shapes]
        ending = self._ending(images)
        remarks.say_outdated(self._name, directories, ending, self._rules(images))
        directories = [path.with_name(path.name + ending) for path in directories]
        try:
            contradicting = [image for image in self._copied if image.record.name in self._contradicting]
            files = Files([len(image.records) for image in images], sum(len(image.records) for image in contradicting))
            bits, allowed = self.intensity.bits, self.max_unreadable
            caches = open_or_build(directories, names, read, shapes, bits, allowed, files, extremes.__getitem__)
        except OSError as error:
            raise DataError(f"data.cache_dir={self.cache_dir}: {error}") from error
        self.say_of_files()
        by_resolution = dict(zip(largest_first, caches, strict=True))
        return {resolution: by_resolution[resolution] for resolution in resolutions}

    def _cache_directory(self, shape: tuple[int, int, int], names: list[str], contents: list[str]) -> Path:
        _, height, width = shape
        settings = {
            "data_set": self._name,
            "format": 2,  # of the cache's files
            "size": [height, width],
            "intensity": asdict(self.intensity),
            **self.read_settings(),
        }
        key = cache_key(settings, names, contents)
        return self.cache_dir / "images" / f"{self._name}-{height}x{width}-{key}"

    def _kept_images(self, cache: ImageCache) -> list[Used]:
        """Return what is known of every image in the cache, in its order."""
        by_name = {image.record.name: image for image in self._scanned()}
        try:
            return [by_name[name] for name in cache.names]
        except KeyError as error:
            raise DataError(f"the cache {cache.directory} holds images that are not in the data; delete it") from error
