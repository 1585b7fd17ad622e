"""CT KIDNEY DATASET: Normal-Cyst-Tumor and Stone (12,446 axial and coronal slices, 8-bit JPEG).

M. N. Islam et al., "Vision transformer and explainable transfer learning models for auto detection of kidney cyst,
stone and tumor from CT-radiography", Scientific Reports 12:11440, 2022. Licence: CC BY 4.0 according to catalogues that
quote the Kaggle page. The files hold windowed grey levels, not Hounsfield units; the window is not known.
"""

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from datamodules.base import ImageDataModule
from datamodules.batches.augmentation import Augmentation
from datamodules.batches.samplers import Schedule
from datamodules.decoding.readers import image_size, read_grey, read_table_bytes
from datamodules.files.errors import DataError, UnreadableImageError
from datamodules.files.files import is_hidden
from datamodules.files.pseudonyms import remember
from datamodules.records.records import Intensity, Record

log = logging.getLogger(__name__)

SOURCE = "https://www.kaggle.com/datasets/nazmul0087/ct-kidney-dataset-normal-cyst-tumor-and-stone"
SUFFIXES = {".jpg", ".jpeg", ".png"}
BLOCKS, SMALLEST_BLOCK = 10, 10  # wished blocks of a class, and about the fewest slices of one
_NUMBER = re.compile(r"\((\d+)\)|(\d+)$")  # Cyst- (1219).jpg; a renamed copy: Cyst-1219.png
_PATIENT = re.compile(r"^(P\d+)_")  # P143_RA_M_S_I01.jpg, as in the related Mendeley set


class CTKidney(ImageDataModule):
    """The CT KIDNEY DATASET in the layout of its Kaggle download, or any copy with folders named after the classes.

    The set has no patient ids and neighbouring numbers are neighbouring slices (their correlation exceeds 0.995), so a
    random split leaks. Blocks of ``block_size`` neighbouring numbers of a class are kept together instead; only the
    few slices at the border of two blocks still have a neighbour in another split. A class of which that makes
    fewer than 10 blocks is cut into 10 equal ones, or into ones of 10 slices, so that each part has a share of it.
    Files named after a patient are grouped by patient. Files with neither number nor patient in their names are
    refused.

    Args:
        schedule: What depends on time.
        seed: Seed of split, order and augmentation.
        root: Folder that holds, at any depth up to four, folders Cyst, Normal, Stone and Tumor with the images. If
            ``kidneyData.csv`` lies in it, its classes are compared with the folders.
        cache_dir: Where decoded images are kept.
        block_size: Neighbouring numbers that stay together in the split, at most.
        val_fraction: Share of the images held out for validation.
        test_fraction: Share of the images held out for testing.
        max_unreadable: Share of the files that may be unreadable or strays of another size.
        num_workers: Processes that read batches.
        augmentation: Random changes of training images; None = off.
    """

    classes = ("Cyst", "Normal", "Stone", "Tumor")
    intensity = Intensity(0, 255, 8, "grey level", "windowed CT (window not documented), brighter = denser")

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        root: str,
        cache_dir: str,
        block_size: int = 50,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        max_unreadable: float = 0.01,
        num_workers: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(
            schedule, seed, cache_dir, val_fraction, test_fraction, max_unreadable, num_workers, augmentation
        )
        if block_size < 1:
            raise ValueError(f"block_size={block_size}: must be at least 1")
        self.root, self.block_size = root, block_size

    def check(self) -> None:
        """Raise DataError unless the class folders are there."""
        if not self.root:
            raise DataError(f"data.root is not set: pass data.root=FOLDER or set MIRAGE_CT_KIDNEY. {self._help()}")
        if not self._root.is_dir():
            raise DataError(f"data.root={self.root}: there is no such folder. {self._help()}")
        missing = sorted(set(self.classes) - {folder.name.capitalize() for folder in self._class_folders})
        if missing:
            raise DataError(f"data.root={self.root}: found no folder {' or '.join(missing)} in it. {self._help()}")

    def records(self) -> list[Record]:
        """Return one record per image file, by class and number."""
        records, unnumbered = [], []
        files = [(folder.name.capitalize(), path) for folder in self._class_folders for path in _images(folder)]
        blocks = self._blocks(files)
        for label, path in files:
            name = path.relative_to(self._root).as_posix()
            remember((name,))
            group = _group(label, path.stem, blocks[label])
            if group is None:
                unnumbered.append(name)
            else:
                records.append(Record(name, group, (label,), path))
        if unnumbered:
            raise DataError(
                f"data.root={self.root}: the names of {len(unnumbered)} files hold neither the slice's number nor a "
                f"patient, e.g. {unnumbered[0]}: split one by one, neighbouring slices would leak from training into "
                "test. Name them like the download's, Cyst- (12).jpg, or like P143_RA_M_S_I01.jpg, by patient"
            )
        self._compare_with_csv(records)
        return records

    def split(self, records: Sequence[Record]) -> np.ndarray:
        """Return "train", "val" or "test" for each record (N,), with every class in every part that is asked for."""
        try:
            return super().split(records)
        except DataError as error:
            smallest = min(self.block_size, SMALLEST_BLOCK)
            raise DataError(f"{error}; data.block_size below {smallest} makes more groups of neighbours") from error

    def read(self, record: Record) -> np.ndarray:
        """Return the grey levels (1, H, W) of a slice; files of another size than the others are strays."""
        assert record.path is not None
        values = read_grey(record.path)
        if values.shape != self._native_size:
            raise UnreadableImageError(
                f"{record.path.name}: {values.shape[0]}x{values.shape[1]} pixels, the other files have "
                f"{self._native_size[0]}x{self._native_size[1]} (a stray file)"
            )
        return values[None]

    @property
    def _root(self) -> Path:
        return Path(self.root).expanduser()

    @cached_property
    def _class_folders(self) -> list[Path]:
        """Class folders below the root, the Kaggle download's doubled levels included, in class order."""
        found, level = [], [self._root]
        for _ in range(4):
            level = sorted(folder for parent in level for folder in _shown(parent) if folder.is_dir())
            found += [folder for folder in level if folder.name.capitalize() in self.classes]
            level = [folder for folder in level if folder.name.capitalize() not in self.classes]
        return sorted(found, key=lambda folder: (folder.name.capitalize(), folder))

    @cached_property
    def _native_size(self) -> tuple[int, int]:
        """The size (H, W) that most files have."""
        found = [image_size(image.record.path) for image in self._scanned() if image.record.path is not None]
        sizes = Counter(size for size in found if size is not None)
        return max(sizes, key=lambda size: (sizes[size], size)) if sizes else (0, 0)

    def _blocks(self, files: list[tuple[str, Path]]) -> dict[str, dict[int, int]]:
        """Return the block of each number of each class."""
        stems: dict[str, list[str]] = {}
        for label, path in files:
            stems.setdefault(label, []).append(path.stem)
        blocks = {label: _blocks(of_class, self.block_size) for label, of_class in stems.items()}
        smaller = [
            f"{label} ({len(of_class)}) into {len(set(of_class.values()))}"
            for label, of_class in blocks.items()
            if any(block != number // self.block_size for number, block in of_class.items())
        ]
        if smaller:
            log.warning(
                "%s: classes of too few slices for blocks of data.block_size=%d neighbouring ones are cut into smaller "
                "equal blocks, so that each part gets a share: %s. More slices then have a neighbour in another part",
                *(self._name, self.block_size, ", ".join(smaller)),
            )
        return blocks

    def _compare_with_csv(self, records: list[Record]) -> None:
        path = self._root / "kidneyData.csv"
        if not path.is_file():
            return
        listed = read_classes(path, self.classes)
        stems = {Path(record.name).stem: record for record in records}
        wrong = [stem for stem, record in stems.items() if stem in listed and listed[stem] != record.labels[0]]
        if wrong:
            raise DataError(
                f"{path}: says {listed[wrong[0]]!r} of {wrong[0]!r}, which lies in folder "
                f"{stems[wrong[0]].labels[0]!r} ({len(wrong)} such files); correct one of the two"
            )
        absent = sum(stem not in stems for stem in listed)
        if absent:
            log.info("%s lists %d images, %d of them are not on disk", path.name, len(listed), absent)

    def _help(self) -> str:
        return (
            "Expected are folders Cyst, Normal, Stone and Tumor with JPEG or PNG images, directly or inside the "
            f"folders of the download, which is at {SOURCE}"
        )


def read_classes(path: Path, classes: tuple[str, ...]) -> dict[str, str]:
    """Read ``kidneyData.csv``: the class of each image id (a file name without extension).

    Raises:
        DataError: With file and line, if a column is missing, a class is unknown or an image has two classes.
    """
    found: dict[str, str] = {}
    try:
        with io.StringIO(read_table_bytes(path).decode("utf-8-sig"), newline="") as file:
            rows = csv.DictReader(file, strict=True)
            missing = [name for name in ("image_id", "Class") if name not in (rows.fieldnames or [])]
            if missing:
                raise DataError(f"{path}: has no column {' and no column '.join(missing)}; it has {rows.fieldnames}")
            for row in rows:
                image, label = row["image_id"], row["Class"]
                if label not in classes or not image:
                    raise DataError(f"{path}, line {rows.line_num}: class {label!r} of {image!r} is none of {classes}")
                if found.setdefault(image, label) != label:
                    raise DataError(f"{path}, line {rows.line_num}: {image!r} is both {found[image]!r} and {label!r}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is not a readable CSV file ({error})") from error
    if not found:
        raise DataError(f"{path}: holds no row")
    return found


def _group(label: str, stem: str, blocks: dict[int, int]) -> str | None:
    """Return patient or block, or None if the name tells neither."""
    if patient := _PATIENT.match(stem):
        return patient.group(1)
    number = _number(stem)
    return None if number is None else f"{label} block {blocks[number]}"


def _blocks(stems: list[str], block_size: int) -> dict[int, int]:
    """Return the block of each number of a class, given its files' names: equal, smaller ones if they are too few."""
    patients = {patient.group(1) for stem in stems if (patient := _PATIENT.match(stem))}
    found = {_number(stem) for stem in stems if not _PATIENT.match(stem)}
    numbers = sorted(number for number in found if number is not None)
    blocks = {number: number // block_size for number in numbers}
    wished = min(BLOCKS, -(-len(numbers) // SMALLEST_BLOCK))
    if len(patients) + len(set(blocks.values())) >= wished:
        return blocks
    return {int(number): i for i, part in enumerate(np.array_split(numbers, wished)) for number in part}


def _images(folder: Path) -> list[Path]:
    """Return the image files of a folder in the order of their numbers."""
    files = [path for path in _shown(folder) if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted(files, key=_by_number)


def _shown(folder: Path) -> list[Path]:
    """Return what lies in a folder, without what is hidden or left there by a system."""
    return [path for path in folder.iterdir() if not is_hidden(path.name)]


def _by_number(path: Path) -> tuple[int, str]:
    number = None if _PATIENT.match(path.stem) else _number(path.stem)
    return (-1 if number is None else number, path.name)


def _number(stem: str) -> int | None:
    number = _NUMBER.search(stem)
    return int(number.group(1) or number.group(2)) if number else None
