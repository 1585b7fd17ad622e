"""NIH ChestX-ray14: 112,120 frontal chest x-rays of 30,805 patients, 14 findings, 8-bit PNG of 1024x1024.

X. Wang et al., "ChestX-ray8: hospital-scale chest x-ray database and benchmarks", CVPR 2017. No restrictions on use;
NIH asks to name the NIH Clinical Center, to link to the download and to cite the paper. The findings were mined from
reports by text processing; its authors estimate that over 90 % are right, others found less.
"""

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.base import ImageDataModule
from datamodules.batches.augmentation import Augmentation
from datamodules.batches.samplers import Schedule
from datamodules.decoding.readers import read_grey
from datamodules.files.errors import DataError, UnreadableImageError
from datamodules.files.files import is_hidden
from datamodules.files.pseudonyms import remember
from datamodules.records.chestxray14_tables import (
    FINDINGS,
    MAX_AGE,
    Box,
    Entry,
    about,
    read_boxes,
    read_list,
    read_table,
    unknown_finding,
)
from datamodules.records.records import NO_FINDING, Intensity, Record
from datamodules.records.splits import SPLITS, stratified_split

log = logging.getLogger(__name__)

SOURCE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017_v2020.csv.gz", "Data_Entry_2017.csv", "Data_Entry_2017.csv.gz")
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
BOXES = "BBox_List_2017.csv"
FOLDERS = ("images", *(f"images_{number:03}/images" for number in range(1, 13)), ".")
MAX_SQUASH = 0.02  # by how much a file's aspect ratio may differ from the images that are made of it

_OR_STRATIFY = "or choose data.split_by=stratified"
_SEARCHED = "Images are looked for in images, in images_001/images to images_012/images and in the folder itself."


class ChestXray14(ImageDataModule):
    """NIH ChestX-ray14 in the layout of NIH's or Kaggle's download, with the table of either release.

    An image without findings belongs to no class. Images that the table lists and that are not on disk are left out,
    as are files that the table does not list; both are counted in the log.

    Args:
        schedule: What depends on time.
        seed: Seed of split, order and augmentation.
        root: Folder with the images, in ``images``, in ``images_001/images`` to ``images_012/images`` or directly in
            it, and with NIH's table and lists.
        cache_dir: Where decoded images are kept.
        csv: NIH's table, plain or compressed by gzip. None = the one in ``root``, that of 2020 before that of 2017:
            the newer has corrected ages and 181 corrected sets of findings.
        split_by: "official" = NIH's lists; they have no validation part, which is cut out of the training list by
            iterative stratification of the patients. "stratified" = all parts by iterative stratification of the
            patients (see ``stratified_split``). No patient is in two parts either way.
        view: Keep only films taken from back to front ("PA") or from front to back ("AP", mostly lying patients).
        sex: Keep only images of one sex.
        min_age: Keep only patients of at least this age in years. With either limit of age, images of unknown age are
            left out. None = no limit.
        max_age: Keep only patients of at most this age in years. None = no limit.
        only_labels: Keep only images with at least one of these findings, "No Finding" included; empty = keep all.
        min_present: Smallest share of the images wanted from the table that must be on disk; protects from training
            on a part of the download.
        val_fraction: Share of the patients held out for validation; with the official lists, of the training list's.
        test_fraction: Share of the patients held out for testing; without effect on the official lists.
        max_unreadable: Share of the files that may be unreadable or not square.
        num_workers: Processes that read batches.
        augmentation: Random changes of training images; None = off.
    """

    classes = FINDINGS
    intensity = Intensity(
        0, 255, 8, "grey level", "chest x-ray as published in 8 bits (window not documented), brighter = denser"
    )

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        root: str,
        cache_dir: str,
        csv: str | None = None,
        split_by: Literal["official", "stratified"] = "official",
        view: Literal["PA", "AP", "both"] = "both",
        sex: Literal["M", "F", "both"] = "both",
        min_age: int | None = None,
        max_age: int | None = None,
        only_labels: tuple[str, ...] = (),
        min_present: float = 0.5,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        max_unreadable: float = 0.0,
        num_workers: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(
            schedule, seed, cache_dir, val_fraction, test_fraction, max_unreadable, num_workers, augmentation
        )
        for label in only_labels:
            if label not in (*FINDINGS, NO_FINDING):
                raise ValueError(f"only_labels: {unknown_finding(label)}")
        if not 0 <= min_present <= 1:
            raise ValueError(f"min_present={min_present}: a share of the images lies in 0 to 1")
        if not 0 <= (min_age or 0) <= (MAX_AGE if max_age is None else max_age) <= MAX_AGE:
            raise ValueError(f"min_age={min_age}, max_age={max_age}: must be a range of years within 0 to {MAX_AGE}")
        for name, value, choices in (
            ("split_by", split_by, ("official", "stratified")),
            ("view", view, ("PA", "AP", "both")),
            ("sex", sex, ("M", "F", "both")),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(choices)}")
        self.root, self.csv, self.split_by = root, csv, split_by
        self.view, self.sex, self.min_age, self.max_age = view, sex, min_age, max_age
        self.only_labels, self.min_present = frozenset(only_labels), min_present

    def check(self) -> None:
        """Raise DataError unless folder, table and (where they are needed) the official lists are there."""
        if not self.root:
            raise DataError(f"data.root is not set: pass data.root=FOLDER or set MIRAGE_CHESTXRAY14. {_help()}")
        if not self._root.is_dir():
            raise DataError(f"data.root={self.root}: there is no such folder. {_help()}")
        _ = self._table
        if self.split_by == "official":
            for name in LISTS.values():
                self._beside_table(name, _OR_STRATIFY)

    def records(self) -> list[Record]:
        """Return one record per image that is both in the table (after the filters) and on disk, by name."""
        entries = read_table(self._table)
        wanted = self._filtered(entries)
        files = self._files()
        names = sorted(wanted.keys() & files.keys())
        log.info(
            "%s: %s lists %d images, %d after the filters, %d of these on disk; %d other PNG files left out",
            self._name,
            self._table.name,
            len(entries),
            len(wanted),
            len(names),
            len(files.keys() - entries.keys()),
        )
        if not names:
            raise DataError(
                f"data.root={self.root}: none of the {len(wanted)} images wanted from {self._table.name} is on disk. "
                f"{_SEARCHED}"
            )
        if len(names) < self.min_present * len(wanted):
            raise DataError(
                f"data.root={self.root}: {len(names)} of the {len(wanted)} images wanted from {self._table.name} are "
                f"on disk, fewer than data.min_present={self.min_present:g} asks for. Complete the download "
                f"({SOURCE}), or set data.min_present lower to train on what there is. {_SEARCHED}"
            )
        if self.split_by == "official":
            train, test = self._official
            for name in names:
                if name not in train and name not in test:
                    raise DataError(f"{name}: is in neither {LISTS['train']} nor {LISTS['test']}; {_OR_STRATIFY}")
        return [Record(name, name[:8], wanted[name].labels, files[name], about=about(wanted[name])) for name in names]

    def read(self, record: Record) -> np.ndarray:
        """Return the grey levels (1, H, W) of a film; a file that would be squashed counts as unreadable."""
        assert record.path is not None
        values = read_grey(record.path)
        height, width = self.schedule.resolutions()[-1]
        if abs(values.shape[1] * height / (values.shape[0] * width) - 1) > MAX_SQUASH:
            raise UnreadableImageError(
                f"{record.path.name}: {values.shape[0]}x{values.shape[1]} pixels would be squashed to {height}x{width}"
            )
        return values[None]

    def read_settings(self) -> dict[str, Any]:
        """Return the shape of the final images, on which depends what is refused."""
        height, width = self.schedule.resolutions()[-1]
        return {"aspect_ratio": round(width / height, 6)}

    @property
    def drawn_parts(self) -> tuple[str, ...]:
        """Parts that fractions and seed decide: NIH's lists decide the test part."""
        return SPLITS if self.split_by == "stratified" else ("train", "val")

    def split(self, records: Sequence[Record]) -> np.ndarray:
        """Return "train", "val" or "test" for each record (N,), by NIH's lists or by stratification."""
        groups = np.array([record.group for record in records], dtype=str)
        labels = np.array([[finding in record.labels for finding in FINDINGS] for record in records], dtype=bool)
        if self.split_by == "stratified":
            fractions = self.val_fraction, self.test_fraction
            return stratified_split(groups.tolist(), labels, *fractions, self.seed, self.cache_dir)
        _, test = self._official
        of_test = {record.group for record in records if record.name in test}  # groups that share a file are one
        held_out = np.array([record.group in of_test for record in records])
        rest = ~held_out
        split = np.full(len(records), "train")
        split[held_out] = "test"
        split[rest] = stratified_split(
            groups[rest].tolist(), labels[rest], self.val_fraction, 0.0, self.seed, self.cache_dir
        )
        return split

    def boxes(self) -> dict[str, list[Box]]:
        """Return the hand-drawn boxes of the images that have any (880 of the 112,120), by image name."""
        return read_boxes(self._beside_table(BOXES, "as only it holds boxes"))

    # Where things are -----------------------------------------------------------------------------------------------

    @property
    def _root(self) -> Path:
        return Path(self.root).expanduser()

    @property
    def _table(self) -> Path:
        if self.csv is not None:
            path = Path(self.csv).expanduser()
            if not path.is_file():
                raise DataError(f"data.csv={self.csv}: there is no such file. {_help()}")
            return path
        for name in TABLES:
            if (self._root / name).is_file():
                return self._root / name
        raise DataError(f"data.root={self.root}: found none of {', '.join(TABLES)} in it; set data.csv. {_help()}")

    def _beside_table(self, name: str, otherwise: str) -> Path:
        for folder in (self._root, self._table.parent):
            if (folder / name).is_file():
                return folder / name
        raise DataError(
            f"data.root={self.root}: found no {name} in it nor beside {self._table}; get it from {SOURCE}, {otherwise}"
        )

    def _files(self) -> dict[str, Path]:
        """Return the path of every PNG by its name; listing a folder costs less than asking for 112,120 files."""
        found: dict[str, Path] = {}
        for folder in (self._root / name for name in FOLDERS):
            if not folder.is_dir():
                continue
            try:
                with os.scandir(folder) as entries:
                    shown = [entry for entry in entries if not is_hidden(entry.name)]
                    names = [entry.name for entry in shown if entry.name.endswith(".png") and entry.is_file()]
            except OSError as error:
                raise DataError(f"{folder}: cannot be listed ({error})") from error
            remember(names)
            for name in names:
                if name in found:
                    raise DataError(f"{name}: lies both in {found[name].parent} and in {folder}; remove one of the two")
                found[name] = folder / name
        return found

    # What is kept ---------------------------------------------------------------------------------------------------

    def _filtered(self, entries: dict[str, Entry]) -> dict[str, Entry]:
        kept = {name: entry for name, entry in entries.items() if self._passes(entry)}
        by_age = self.min_age is not None or self.max_age is not None
        unknown = sum(entry.age is None for entry in entries.values()) if by_age else 0
        if unknown:
            log.info("%s: the age of %d images is not known; they are left out", self._name, unknown)
        if not kept:
            raise DataError(
                f"{self._table}: none of its {len(entries)} images passes the filters view={self.view}, sex={self.sex}"
                f", min_age={self.min_age}, max_age={self.max_age}, only_labels={sorted(self.only_labels)}"
            )
        return kept

    def _passes(self, entry: Entry) -> bool:
        if self.view not in (entry.view, "both") or self.sex not in (entry.sex, "both"):
            return False
        if self.only_labels and self.only_labels.isdisjoint(entry.labels or (NO_FINDING,)):
            return False
        if self.min_age is None and self.max_age is None:
            return True
        low, high = self.min_age or 0, MAX_AGE if self.max_age is None else self.max_age
        return entry.age is not None and low <= entry.age <= high

    @cached_property
    def _official(self) -> tuple[frozenset[str], frozenset[str]]:
        """NIH's training and test list."""
        train, test = (read_list(self._beside_table(name, _OR_STRATIFY)) for name in LISTS.values())
        shared = sorted({name[:8] for name in train} & {name[:8] for name in test})
        if shared:
            raise DataError(
                f"{LISTS['train']} and {LISTS['test']} share {len(shared)} patients, e.g. {shared[0]}: they are not "
                f"NIH's lists, get these from {SOURCE}"
            )
        return train, test


# Files ----------------------------------------------------------------------------------------------------------------


# Messages -------------------------------------------------------------------------------------------------------------


def _help() -> str:
    return (
        f"Expected is a folder with {TABLES[0]} or {TABLES[2]} (or .gz), {', '.join(LISTS.values())} and the images of "
        f"{SOURCE}. {_SEARCHED}"
    )
