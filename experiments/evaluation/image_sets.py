"""Sets of images that can be measured: a split of a data set, what a generator makes, a folder of files."""

import csv
import hashlib
import io
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.base import ImageDataModule
from datamodules.cache import content_hashes
from datamodules.dicom import CONTRADICTION, contradicting, read_dicom
from datamodules.files import find_files
from datamodules.pseudonyms import remember
from datamodules.readers import DICOM, PICTURES, UnreadableImageError, image_size, is_deep, read_grey, read_table_bytes
from datamodules.transforms import resize
from datamodules.versions import name_ending, rule_of
from experiments.config import ConfigError
from experiments.loading import Trained, generate

log = logging.getLogger(__name__)
SUFFIXES = PICTURES | DICOM | {".tif", ".tiff"}


class ImageSet(ABC):
    """Images in an order, each of a group: a patient, or the image itself where nothing is known.

    Attributes:
        what: What the images are, in a few words.
        names: A name per image; a patient's may be part of it, so none is written down as it is.
        groups: A group per image: images of one group are not independent, and are drawn together.
        size: Height and width.
    """

    what: str
    names: list[str]
    groups: list[str]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return plain values that change when any image changes: the key of what is computed from them."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Return images start .. stop - 1 (N, C, H, W) float32 in [-1, 1]."""


class RealImages(ImageSet):
    """Images of some splits of a data set, in an order that mixes the groups.

    Args:
        data: The data set, set up.
        splits: Their names.
        seed: Names the order.
        at_most: Images, drawn at random; None = all.
    """

    def __init__(self, data: ImageDataModule, splits: Sequence[str], seed: int, at_most: int | None = None) -> None:
        places = [(split, index) for split in splits for index in range(data.size(split))]
        records = [record for split in splits for record in data.split_records(split)]
        chosen = choose(len(records), at_most, seed)
        self.data = data
        self.places = [places[i] for i in chosen]
        self.names = [records[i].name for i in chosen]
        self.groups = [records[i].group for i in chosen]
        self.size = data.schedule.resolutions()[-1]
        self.splits = "+".join(splits)
        self.what = f"{type(data).__name__}, {self.splits}"

    @cached_property
    def _fingerprint(self) -> str:
        content = "".join(self.data.fingerprint(split) for split in self.splits.split("+") if self.data.size(split))
        return hashlib.sha256((content + str(self.places)).encode()).hexdigest()[:20]

    def identity(self) -> dict[str, Any]:
        """Return data set, splits and a hash of the contents in order."""
        data_set = type(self.data).__name__
        return {"data_set": data_set, "split": self.splits, "images": len(self), "fingerprint": self._fingerprint}

    def read(self, start: int, stop: int) -> Tensor:
        """Read from the image cache."""
        places = self.places[start:stop]
        images = torch.empty(len(places), self.data.channels, *self.size)
        for split in {split for split, _ in places}:
            at = [i for i, (of, _) in enumerate(places) if of == split]
            images[at] = self.data.select(split, np.array([places[i][1] for i in at]))
        return images


class GeneratedImages(ImageSet):
    """Images 0 .. count - 1 of a generator's list.

    Args:
        trained: The generator.
        count: Number of images.
        seed: Names the list.
        truncation: See ``GANModule.sample``.
    """

    def __init__(self, trained: Trained, count: int, seed: int, truncation: float = 1.0) -> None:
        self.trained, self.seed, self.truncation = trained, seed, truncation
        self.names = [f"generated {i}" for i in range(count)]
        self.groups = self.names
        height, width = trained.module.image_size
        self.size = (height, width)
        family, clock = type(trained.module).__name__, trained.module.images_seen
        self.what = f"{trained.config['name']} ({family}), {clock:,} images seen"

    def identity(self) -> dict[str, Any]:
        """Return the hash of the weights and what was asked for; images do not depend on how many they are."""
        hashed = {"weights_sha256": self.trained.weights_sha256, "seed": self.seed, "truncation": self.truncation}
        bits, device = self.trained.intensity.bits, self.trained.module.device.type
        return {**hashed, "size": list(self.size), "bits": bits, "device": device}

    def read(self, start: int, stop: int) -> Tensor:
        """Generate, rounded to the data set's bits as real images and written files are.

        What is smaller than the final resolution is enlarged by repeating pixels.
        """
        chunks = generate(self.trained.module, start, stop - start, self.seed, self.truncation)
        half = self.trained.intensity.levels / 2.0
        images = torch.cat([images for _, images in chunks]).cpu().add_(1.0).mul_(half).round_().div_(half).sub_(1.0)
        return images if tuple(images.shape[2:]) == self.size else F.interpolate(images, self.size)


class FolderImages(ImageSet):
    """Grey PNG, JPEG, TIFF and DICOM files of a folder, at any depth.

    Args:
        folder: The folder.
        seed: Names the order.
        at_most: Images, drawn at random; None = all.
        groups: CSV with columns file (path below the folder) and group; None = every file is a group of its own.
        value_range: Values that become -1 and 1; None = 0 and the largest that the file's bits hold (255 or 65535).
            Of DICOM files in the unit that rescaling leads to (CT: HU), clipped; None = as a viewer shows them.
        size: Height and width to bring the images to by area averaging; None = those of the most files.
        hashes: Where hashes of unchanged files are remembered.

    Raises:
        ConfigError: If there is no image, or the CSV does not fit.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        at_most: int | None = None,
        groups: Path | None = None,
        value_range: tuple[float, float] | None = None,
        size: tuple[int, int] | None = None,
        hashes: Path | None = None,
    ) -> None:
        files = find_files(folder, SUFFIXES)
        if not files:
            raise ConfigError([f"{folder}: holds no image ({', '.join(sorted(SUFFIXES))})"])
        names = [path.relative_to(folder).as_posix() for path in files]
        of = names if groups is None else _groups(groups, names)
        chosen = choose(len(files), at_most, seed)
        self.folder, self.value_range = folder, value_range
        self.files = [files[i] for i in chosen]
        self.names, self.groups = [names[i] for i in chosen], [of[i] for i in chosen]
        remember(self.groups)
        self.hashes = hashes or folder / ".hashes.json"
        self.size = size or self._commonest_size()
        self.what = "folder of images"
        self._dicom = [path for path in self.files if path.suffix.lower() in DICOM]
        if odd := contradicting(self._dicom):
            log.warning("%s: %d files: %s, e.g. %s", folder, len(odd), CONTRADICTION, odd[0].name)

    @cached_property
    def contents(self) -> list[str]:
        """SHA-256 of each file."""
        return content_hashes(self.files, self.hashes)

    @cached_property
    def _fingerprint(self) -> str:
        return hashlib.sha256("".join(self.contents).encode()).hexdigest()[:20]

    def identity(self) -> dict[str, Any]:
        """Return a hash of the contents in order, and how they are read."""
        said = {"data_set": "folder", "images": len(self), "fingerprint": self._fingerprint, **self._reading}
        return {**said, "value_range": list(self.value_range or ()) or "bit depth", "size": list(self.size)}

    @cached_property
    def _reading(self) -> dict[str, str]:
        """How files came to be read otherwise than in the first version; nothing where none did."""
        with ThreadPoolExecutor(8) as pool:
            rules = name_ending(pool.map(rule_of, self.files))
        ranged = "-dicom_range" if self._dicom and self.value_range else ""
        return {"reading": rules + ranged} if rules + ranged else {}

    def read(self, start: int, stop: int) -> Tensor:
        """Decode with threads and resize."""
        with ThreadPoolExecutor() as pool:
            return torch.stack(list(pool.map(self._read, self.files[start:stop])))

    def _read(self, path: Path) -> Tensor:
        if path.suffix.lower() in DICOM:
            values, (low, high) = read_dicom(path, value_range=self.value_range), (0.0, 1.0)
        else:
            values = read_grey(path)
            low, high = self.value_range or (0.0, 65535.0 if is_deep(path) else 255.0)
            if self.value_range is None and not np.array_equal(values, np.rint(values)):
                raise UnreadableImageError(f"{path}: holds values that are no whole numbers; set value_range")
        if values.min() < low or values.max() > high:
            raise UnreadableImageError(
                f"{path}: values {values.min():g} .. {values.max():g} lie outside {low:g} .. {high:g}; set value_range "
                "(generated_value_range for the folder that is judged)"
            )
        image = (values - low) * (2.0 / (high - low)) - 1.0
        return torch.from_numpy(resize(image[None].astype(np.float32), *self.size)).clamp(-1.0, 1.0)

    def _commonest_size(self) -> tuple[int, int]:
        sizes = [size for size in map(_size, self.files[:200]) if size]
        if not sizes:
            raise ConfigError([f"{self.folder}: no image of it can be read"])
        return max(set(sizes), key=sizes.count)


def choose(count: int, at_most: int | None, seed: int) -> list[int]:
    """Return places of ``at_most`` images of ``count``, or of all, in a random order: neighbours are seldom alike."""
    return np.random.default_rng(seed).permutation(count)[:at_most].tolist()


def _groups(path: Path, names: list[str]) -> list[str]:
    rows = list(csv.DictReader(io.StringIO(read_table_bytes(path).decode("utf-8-sig"))))
    if not rows or not {"file", "group"} <= rows[0].keys():
        raise ConfigError([f"groups={path}: expected a CSV with columns file and group"])
    group = {row["file"]: row["group"] for row in rows}
    missing = [name for name in names if name not in group]
    if missing:
        raise ConfigError([f"groups={path}: says nothing of {len(missing)} of {len(names)} files, e.g. {missing[0]}"])
    return [group[name] for name in names]


def _size(path: Path) -> tuple[int, int] | None:
    if path.suffix.lower() not in DICOM:
        return image_size(path)
    height, width = read_dicom(path).shape
    return height, width
