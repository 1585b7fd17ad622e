"""Sets of images that can be measured: a split of a data set, what a generator makes, a folder of files."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from callbacks.real_images import RealPairs
from datamodules.base import ImageDataModule
from datamodules.batches.transforms import pad_equally, resize
from datamodules.decoding.dicom_headers import CONTRADICTION, contradicting
from datamodules.decoding.readers import DICOM
from datamodules.files.cache import content_hashes
from datamodules.files.errors import DataError
from datamodules.files.files import find_files
from datamodules.files.pseudonyms import remember
from datamodules.records.mammography_layouts import read_rows
from datamodules.records.patients import one_name_per_patient, patient_key
from datamodules.records.records import Intensity
from datamodules.records.versions import name_ending, rules_of
from experiments.configuration.errors import ConfigError
from experiments.measuring.folders import (
    SUFFIXES,
    FileSet,
    Size,
    copies_among,
    has_aspect,
    join_groups,
    read_image,
    said_of_copies,
    sizes_of,
    text_of_size,
)
from experiments.record.loading import Trained, generate, translated
from lightning_modules.protocols import Samples, Translates

log = logging.getLogger(__name__)
Role = Literal["real", "held-out", "generated"]
KEYS = {"real": "against", "held-out": "held_out", "generated": ""}  # how a suite names their folders


class ImageSet(ABC):
    """Images in an order, each of a group: a patient, or the image itself where nothing is known.

    Attributes:
        what: What the images are, in a few words.
        names: A name per image; a patient's may be part of it, so none is written down as it is.
        groups: A group per image: images of one group are not independent, and are drawn together.
        size: Height and width.
        about: What is known of each image besides, as text: sex, view, age, finding ...; empty = nothing of any.
    """

    what: str
    names: list[str]
    groups: list[str]
    size: Size
    about: Sequence[Mapping[str, str]] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def own_size(self) -> Size:
        """Height and width that most images have where they come from, before they are brought to ``size``."""
        return self.size

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
        self.about = [data.attributes(records[i]) for i in chosen]
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

    @property
    def file_set(self) -> FileSet:
        """What tells whether these images also lie elsewhere."""
        contents = {split: self.data.split_contents(split) for split in self.splits.split("+")}
        return FileSet(self.what, None, self.names, [contents[split][index] for split, index in self.places])

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
        truncation: See ``Synthesis.sample``.
    """

    def __init__(self, trained: Trained[Samples], count: int, seed: int, truncation: float = 1.0) -> None:
        self.trained, self.seed, self.truncation = trained, seed, truncation
        self.names = [f"generated {i}" for i in range(count)]
        self.groups = self.names
        self.size = trained.module.image_size
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
        images = rounded(torch.cat([images for _, images in chunks]).cpu(), self.trained.intensity)
        return images if tuple(images.shape[2:]) == self.size else F.interpolate(images, self.size)


class TranslatedImages(ImageSet):
    """Translations of the sources of a split; those of the real images, where sources belong to targets.

    Args:
        trained: The translator.
        real: The real images, targets of one split.
        seed: Of what a noisy network draws.
    """

    def __init__(self, trained: Trained[Translates], real: RealImages, seed: int) -> None:
        self.trained, self.seed, self.split, self.size = trained, seed, real.splits, real.size
        self.data = cast(RealPairs, real.data)
        indices = [index for _, index in real.places]
        if not self.data.paired:  # an order of their own: source i has nothing to do with target i
            indices = choose(self.data.source_size(self.split), len(real), seed + 1)
        self.indices = np.array(indices, dtype=int)
        self.names = [f"translation {i}" for i in indices]
        self.groups, self.about = (real.groups, real.about) if self.data.paired else (self.names, ())
        family, clock = type(trained.module).__name__, trained.module.images_seen
        self.what = f"{trained.config['name']} ({family}), {clock:,} images seen, of the sources of {self.split}"

    def identity(self) -> dict[str, Any]:
        """Return the hashes of weights and sources."""
        hashed = {"weights_sha256": self.trained.weights_sha256, "seed": self.seed}
        order = hashlib.sha256(str(self.indices.tolist()).encode()).hexdigest()[:20]
        sources = {"sources": self.data.source_fingerprint(self.split), "split": self.split, "order": order}
        bits, device = self.trained.intensity.bits, self.trained.module.device.type
        return {**hashed, **sources, "size": list(self.size), "bits": bits, "device": device}

    def read(self, start: int, stop: int) -> Tensor:
        """Translate, rounded to the data set's bits as real images and written files are."""
        sources = self.data.sources(self.split, self.indices[start:stop])
        images = torch.stack(list(translated(self.trained.module, sources, self.seed, start)))
        return rounded(images, self.trained.intensity)


class FolderImages(ImageSet):
    """Grey PNG, JPEG, TIFF, BMP and DICOM files of a folder, at any depth.

    Of equal files only the first one counts, and groups that share a file are one group. Only where a generator is
    judged do they stay: that it repeats itself is a finding.

    Args:
        folder: The folder.
        seed: Names the order.
        at_most: Images, drawn at random; None = all.
        groups: CSV with columns file (path below the folder) and group; None = every file is a group of its own.
        value_range: Values that become -1 and 1; None = what the files say (see ``range_of``).
            Of DICOM files in the unit that rescaling leads to (CT: HU), clipped; None = as a viewer shows them.
        size: Height and width to bring the images to by area averaging; None = those of the most files.
        hashes: Where hashes of unchanged files are remembered.
        role: What the images are.
        pad: Pad images of another aspect ratio than that of ``size`` with black, on opposite sides alike.
        attributes: CSV with columns file and whatever else is known of an image; None = nothing.

    Attributes:
        file_set: All files, copies and those that were not drawn included: what tells whether they also lie elsewhere.
        patients: The groups of all files, copies included: what all spellings of one have in common -> one of them.
        said: What the user has to know of the folder: counts, no names.

    Raises:
        ConfigError: If there is no image, the CSV does not fit, or an image has another aspect ratio.
        DataError: If a file's header cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        at_most: int | None = None,
        groups: Path | None = None,
        value_range: tuple[float, float] | None = None,
        size: Size | None = None,
        hashes: Path | None = None,
        role: Role = "real",
        pad: bool = False,
        attributes: Path | None = None,
    ) -> None:
        files = find_files(folder, SUFFIXES)
        if not files:
            raise ConfigError([f"{folder}: holds no image ({', '.join(sorted(SUFFIXES))})"])
        names = [path.relative_to(folder).as_posix() for path in files]
        of = names if groups is None else _groups(groups, names)
        self.patients = {patient_key(group): group for group in of}
        self.hashes = hashes or folder / ".hashes.json"
        contents = content_hashes(files, self.hashes)
        copies = copies_among(files, contents)
        kept = list(range(len(files)))
        if role != "generated":
            kept = [i for i in kept if i not in copies]
            of = join_groups(of, copies)
        chosen = [kept[i] for i in choose(len(kept), at_most, seed)]
        self.folder, self.value_range, self.role, self.pad = folder, value_range, role, pad
        self.files = [files[i] for i in chosen]
        self.names, self.groups = [names[i] for i in chosen], [of[i] for i in chosen]
        remember(of)
        if attributes is not None:
            told = _attributes(attributes, names, KEYS[role] or str(folder))
            self.about = [told[i] for i in chosen]
        self.contents = [contents[i] for i in chosen]
        key = f"{KEYS[role]}={folder}" if KEYS[role] else str(folder)
        self.file_set = FileSet(key, folder, names, contents)
        sizes = sizes_of(folder, self.files)
        self.own_sizes = Counter(sizes)
        self.size = size or self.own_size
        self.what = "folder of images"
        if not pad:
            self._check_aspect(sizes)
        self.said = [*said_of_copies(role, len(copies), len(files)), *self._said_of_sizes()]
        self._dicom = [path for path in self.files if path.suffix.lower() in DICOM]
        if odd := contradicting(self._dicom):
            log.warning("%s: %d files: %s, e.g. %s", folder, len(odd), CONTRADICTION, odd[0].name)

    @property
    def own_size(self) -> Size:
        """Height and width of the most files."""
        return max(self.own_sizes, key=lambda size: (self.own_sizes[size], size))

    @cached_property
    def _fingerprint(self) -> str:
        return hashlib.sha256("".join(self.contents).encode()).hexdigest()[:20]

    def identity(self) -> dict[str, Any]:
        """Return a hash of the contents in order, and how they are read."""
        said = {"data_set": "folder", "images": len(self), "fingerprint": self._fingerprint, **self._reading}
        padded = {"padded": True} if self.pad else {}
        return {**said, "value_range": list(self.value_range or ()) or "bit depth", "size": list(self.size), **padded}

    @cached_property
    def _reading(self) -> dict[str, str]:
        """How files came to be read otherwise than in the first version; nothing where none did."""
        rules = name_ending(rules_of(self.files, self.contents, self.hashes.with_name("folders-rules.json")))
        ranged = "-dicom_range" if self._dicom and self.value_range else ""
        return {"reading": rules + ranged} if rules + ranged else {}

    def read(self, start: int, stop: int) -> Tensor:
        """Decode with threads and resize."""
        with ThreadPoolExecutor() as pool:
            return torch.stack(list(pool.map(self._read, self.files[start:stop])))

    def _read(self, path: Path) -> Tensor:
        try:
            setting = "generated_value_range" if self.role == "generated" else "value_range"
            image = read_image(path, self.value_range, setting)
        except DataError as error:
            raise type(error)(f"{self.file_set.called}: {error}") from error
        if self.pad:
            image = pad_equally(image, *self.size, value=-1.0)
        return torch.from_numpy(resize(image, *self.size)).clamp(-1.0, 1.0)

    def _check_aspect(self, sizes: list[Size]) -> None:
        other = [i for i, size in enumerate(sizes) if not has_aspect(size, self.size)]
        if other:
            name, size = self.names[other[0]], text_of_size(sizes[other[0]])
            raise ConfigError(
                [
                    f"{self.folder}: {len(other)} of {len(self)} images have another aspect ratio than "
                    f"{text_of_size(self.size)} pixels (height x width), e.g. {name} with {size}: they would be "
                    "squashed. pad=true pads them with black, size=[HEIGHT,WIDTH] names the size of all"
                ]
            )

    def _said_of_sizes(self) -> list[str]:
        height, width = self.size
        smaller = Counter({(h, w): count for (h, w), count in self.own_sizes.items() if h < height or w < width})
        if not smaller:
            return []
        return [
            f"{smaller.total()} of {len(self)} {self.role} images are enlarged to {text_of_size(self.size)} pixels "
            f"(they have {_sizes_in_words(smaller)}): what is missing in them counts as a difference"
        ]


def rounded(images: Tensor, intensity: Intensity) -> Tensor:
    """Return images in [-1, 1] with the values that a data set's files can have."""
    half = intensity.levels / 2.0
    return images.add(1.0).mul_(half).round_().div_(half).sub_(1.0)


def choose(count: int, at_most: int | None, seed: int) -> list[int]:
    """Return places of ``at_most`` images of ``count``, or of all, in a random order: neighbours are seldom alike."""
    return np.random.default_rng(seed).permutation(count)[:at_most].tolist()


def _groups(path: Path, names: list[str]) -> list[str]:
    where, group = f"groups={path}", dict[str, str]()
    for row in read_rows(path, ("file", "group")):
        name = row["file"]
        if patient_key(group.setdefault(name, row["group"])) != patient_key(row["group"]):
            raise ConfigError([f"{where}: {name} is listed with two groups; correct one of them"])
    for what, wrong in (
        ("says nothing", [name for name in names if name not in group]),
        ("names no group", [name for name in names if not group.get(name, "-")]),
    ):
        if wrong:
            raise ConfigError([f"{where}: {what} of {len(wrong)} of {len(names)} files, e.g. {wrong[0]}; complete it"])
    return one_name_per_patient([group[name] for name in names], [""] * len(names), names, where)


def _attributes(path: Path, names: list[str], of: str) -> list[dict[str, str]]:
    """Return what a CSV says of each file, besides file and group."""
    told: dict[str, dict[str, str]] = {}
    for row in read_rows(path, ("file",)):
        about = {name.lower(): value for name, value in row.items() if name not in ("", "file", "group")}
        if told.setdefault(row["file"], about) != about:
            raise ConfigError([f"{path}: {row['file']} is listed twice, and not alike; correct one of the two"])
    wrong = [name for name in names if name not in told]
    if wrong:
        raise ConfigError([f"{path}: says nothing of {len(wrong)} of {len(names)} files of {of}, e.g. {wrong[0]}"])
    return [told[name] for name in names]


def _sizes_in_words(sizes: Counter[Size]) -> str:
    shown = [text_of_size(size) for size, _ in sizes.most_common(3)]
    return ", ".join(shown) + (" and others" if len(sizes) > len(shown) else "")
