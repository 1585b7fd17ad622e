"""Mammograms: CBIS-DDSM, INbreast, VinDr-Mammo or any folder of DICOM, PNG or JPEG files.

Prepared as in D. Korkinof et al., "Perceived Realism of High-Resolution Generative Adversarial Network-derived
Synthetic Mammograms", Radiology: Artificial Intelligence 3(2):e190181, 2021: the file's default window, then resizing
that keeps the aspect ratio. Images with implants, clips or magnification can be left out.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.base import ImageDataModule
from datamodules.batches.augmentation import Augmentation
from datamodules.batches.breast import Side, fuller_half, isolate_breast, pad_to_aspect, padded_size, seen_side
from datamodules.batches.samplers import Schedule
from datamodules.decoding.dicom import read_dicom
from datamodules.decoding.dicom_ranges import Range, series_ranges
from datamodules.decoding.readers import DICOM, PICTURES, image_size, read_grey
from datamodules.decoding.value_range import range_of
from datamodules.files.errors import DataError, UnreadableImageError
from datamodules.files.files import walk_files
from datamodules.records.mammography_layouts import UNKNOWN, Found, cbis_ddsm, folder, inbreast, read_rows, vindr
from datamodules.records.mammography_tags import REASONS
from datamodules.records.patients import one_name_per_patient
from datamodules.records.records import Intensity, Record
from datamodules.records.versions import Rule, newest

log = logging.getLogger(__name__)
_Sides = tuple[Side | None, Side | None]  # told, seen

EXPECTED = {
    "cbis_ddsm": "TCIA's folders CBIS-DDSM/<case>/<study>/<series>/*.dcm, or PNG files <case>=full.png, "
    "e.g. Mass-Test_P_00116_RIGHT_MLO=full.png",
    "inbreast": "files <image>_<patient>_MG_<L|R>_<CC|ML>_ANON.dcm",
    "vindr": "files images/<study>/<image>.dicom and the CSVs of the download",
    "folder": "DICOM, PNG or JPEG files (data.csv says whose they are)",
}


class Mammography(ImageDataModule):
    """Mammograms with the labels LEFT, RIGHT, CC and MLO (side and view, as far as they are known).

    Values are display grey in [0, 1]. Images keep their aspect ratio: they are padded with background at the side away
    from the breast, and equally above and below, never cropped or squashed.

    Args:
        schedule: What depends on time.
        seed: Seed of split, order and augmentation.
        cache_dir: Where decoded images are kept.
        root: Folder of the data set.
        layout: How its files are arranged.
        csv: Layout "folder": a CSV with columns file (below root), patient and, if known, view, side and exclude.
        content: CBIS-DDSM: whole mammograms, or the crops of their lesions.
        view: Which views are used; images of unknown view are left out unless it is "both".
        flip_to: Mirror images so that all breasts lie at this border; None = off. Where the breast lies is told by the
            border with more breast along it, because what "left" means differs between data sets: some show the left
            breast at the left border, some at the right, some both (CBIS-DDSM). Where the borders do not tell, it is
            what the file's PatientOrientation says, else the border that the file's or table's side names. How often
            the borders contradict these is logged. With it, augmentation must not flip.
        isolate_breast: Set everything but the breast to background: labels, markers, white strips of film scanners.
        value_range: The values that are black and white. PNG and JPEG: stored values, and none may lie outside; needed
            for 16-bit files, whose values may fill 12 bits as well as 16; None = 0 to 255 for 8-bit files, 0 to 65535
            for 16-bit files of Mirage's. DICOM: in the unit that rescaling leads to (CT: HU), in place of all windows
            of the files; what lies outside becomes black or white; None = the file's window, and without one all that
            its bits can hold.
        percentile_range: DICOM, for values without a unit (MR, NM): the percentiles, e.g. (1, 99), of each series'
            pixels that are black and white, in place of all windows of the files.
        window: DICOM: which of the file's windows or VOI LUTs is used, counted from 0.
        exclude: Reasons, of "implant", "magnification" (also partial views), "clips" and "for_processing" (the
            detector's raw image, which looks unlike what is shown to readers), for which images are left out, according
            to their tags or to the column exclude of ``csv``. Files of several frames (tomosynthesis) always are
            ("multi_frame").
        exclude_csv: A CSV with a column file or image_id that lists images to leave out.
        missing_ok: Share of the images listed by CSVs that may be absent.
        val_fraction: Share of the images held out for validation, by patient.
        test_fraction: Share of the images held out for testing, by patient.
        max_unreadable: Share of the files that may be unreadable.
        num_workers: Processes that read batches.
        augmentation: Random changes of training images; None = off.
    """

    classes = ("LEFT", "RIGHT", "CC", "MLO")
    mirrored = {"LEFT": "RIGHT", "RIGHT": "LEFT"}
    questions = (("LEFT", "RIGHT"), ("CC", "MLO"))
    range_settings = "data.value_range (of DICOM in the file's unit, e.g. HU) or data.percentile_range"
    intensity = Intensity(
        0.0, 1.0, 16, "display grey", "MONOCHROME2 after the file's default window; 0 = background, 1 = white"
    )

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        cache_dir: str,
        root: str,
        layout: Literal["cbis_ddsm", "inbreast", "vindr", "folder"],
        csv: str | None = None,
        content: Literal["full", "crops"] = "full",
        view: Literal["CC", "MLO", "both"] = "both",
        flip_to: Literal["left", "right"] | None = None,
        isolate_breast: bool = False,
        value_range: tuple[float, float] | None = None,
        percentile_range: tuple[float, float] | None = None,
        window: int = 0,
        exclude: tuple[str, ...] = ("for_processing",),
        exclude_csv: str | None = None,
        missing_ok: float = 0.0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        max_unreadable: float = 0.0,
        num_workers: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(
            schedule, seed, cache_dir, val_fraction, test_fraction, max_unreadable, num_workers, augmentation
        )
        if layout not in EXPECTED:
            raise ValueError(f"layout={layout!r}: must be one of {', '.join(EXPECTED)}")
        if csv is not None and layout != "folder":
            raise ValueError(f'csv={csv}: only layout="folder" takes one, the layout {layout} has its own')
        if content != "full" and layout != "cbis_ddsm":
            raise ValueError(f'content={content!r}: only layout="cbis_ddsm" has crops')
        unknown = sorted(set(exclude) - set(REASONS))
        if unknown:
            raise ValueError(f"exclude={unknown}: must be of {', '.join(REASONS)}")
        if value_range is not None and not value_range[0] < value_range[1]:
            raise ValueError(f"value_range={list(value_range)}: black must be below white")
        if percentile_range is not None and not 0 <= percentile_range[0] < percentile_range[1] <= 100:
            raise ValueError(f"percentile_range={list(percentile_range)}: must rise, from 0 to 100")
        if value_range is not None and percentile_range is not None:
            raise ValueError("value_range and percentile_range: give one of them")
        if not 0 <= missing_ok <= 1:
            raise ValueError(f"missing_ok={missing_ok}: is a share, it lies in 0 to 1")
        if window < 0:
            raise ValueError(f"window={window}: must not be negative")
        if flip_to is not None and self.augmentation.limits.flip_lr > 0:
            raise ValueError(
                f"flip_to={flip_to}: augmentation.flip_lr={self.augmentation.limits.flip_lr:g} would mirror breasts "
                "back to the other border; set data.augmentation.flip_lr=0, or data.flip_to=null"
            )
        self.root, self.layout, self.csv, self.content = root, layout, csv, content
        self.view, self.flip_to, self.isolate_breast = view, flip_to, isolate_breast
        self.value_range, self.percentile_range, self.window = value_range, percentile_range, window
        self.exclude, self.exclude_csv, self.missing_ok = tuple(exclude), exclude_csv, missing_ok
        self._read_sides: dict[str, _Sides] = {}

    def check(self) -> None:
        """Raise DataError unless the folder is there and holds an image, and the CSVs are there."""
        expected = f"Expected for data.layout={self.layout} are {EXPECTED[self.layout]}"
        if not self.root:
            raise DataError(f"data.root is not set: pass data.root=FOLDER or set MIRAGE_MAMMOGRAPHY. {expected}")
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise DataError(f"data.root={self.root}: there is no such folder. {expected}")
        suffixes = DICOM if self.layout == "inbreast" else DICOM | PICTURES
        if not any(path.suffix.lower() in suffixes for path in walk_files(root)):
            raise DataError(f"data.root={self.root}: holds no such file. {expected}")
        for key, path in (("csv", self.csv), ("exclude_csv", self.exclude_csv)):
            if path is not None and not Path(path).expanduser().is_file():
                raise DataError(f"data.{key}={path}: there is no such file")

    def records(self) -> list[Record]:
        """Return the images that are to be used; those left out are counted in the log."""
        root, records, left_out = Path(self.root).expanduser(), [], Counter[str]()
        listed = self._listed_exclusions()
        for found in self._find(root):
            name = found.path.relative_to(root).as_posix()
            reason = self._reason_to_leave_out(found, listed & {name, found.path.name, found.path.stem})
            if reason:
                left_out[reason] += 1
                continue
            labels = tuple(label for label in (found.side, found.view) if label in self.classes)
            # The side of tag, name or table is the patient's; a breast mostly lies at the border of that name.
            side = found.chest_wall or (found.side and found.side.lower())
            told = {"side": side} if self._depends_on_side(found) else {}
            records.append(Record(name, found.patient, labels, found.path, told, found.about))
        records = self._with_ranges(records)
        for reason, count in sorted(left_out.items()):
            log.info("%s: left out %d images: %s", self._name, count, reason)
        if left_out and not records:
            raise DataError(f"data.root={self.root}: every image is left out ({dict(left_out)})")
        if not records:
            raise DataError(f"data.root={self.root}: no image found. Expected are {EXPECTED[self.layout]}")
        return records

    def read(self, record: Record) -> np.ndarray:
        """Return display values (1, H, W) in [0, 1] in the aspect ratio of the final resolution."""
        assert record.path is not None
        if record.group.startswith(UNKNOWN):
            raise UnreadableImageError(f"{record.path.name}: its header cannot be read, so its patient is not known")
        if record.path.suffix.lower() in DICOM:
            values = read_dicom(record.path, self.window, record.told.get("range"))
        else:
            values = read_picture(record.path, self.value_range)
        side: Side = "left"  # as good as the other where it is not told: nothing is mirrored, cut out or padded beside
        if "side" in record.told:
            values, side = self._placed(values, record)
        return pad_to_aspect(values, side, *self.schedule.resolutions()[-1])[None]

    def _placed(self, values: np.ndarray, record: Record) -> tuple[np.ndarray, Side]:
        """Return an image (H, W) cut out and mirrored as asked, and the border at which its breast lies then."""
        told = record.told["side"]
        if self.isolate_breast:
            values = isolate_breast(values, told)
        seen = seen_side(values)
        self._read_sides[record.name] = (told, seen)
        side = seen or told or fuller_half(values)
        if self.flip_to is not None and side != self.flip_to:
            return values[:, ::-1], self.flip_to
        return values, side

    def read_settings(self) -> dict[str, Any]:
        """Return what the pixels depend on besides the files."""
        height, width = self.schedule.resolutions()[-1]
        return {
            "aspect": [height // math.gcd(height, width), width // math.gcd(height, width)],
            "flip_to": self.flip_to,
            "isolate_breast": self.isolate_breast,
            "value_range": None if self.value_range is None else [float(value) for value in self.value_range],
            "window": self.window,
        }

    def attributes(self, record: Record) -> dict[str, str]:
        """Return side and view, which its labels are, and what header or table say of the patient."""
        of = {label: name for name, labels in zip(("side", "view"), self.questions, strict=True) for label in labels}
        return {**record.about, **{of[label]: label for label in record.labels}}

    def layout_rule(self, record: Record) -> Rule:
        """Return the version of the layout; only images that depend on the side of the breast have another than 1."""
        name, version = newest(f"mammography_{self.layout}")
        return name, version if "side" in record.told else 1

    def say_of_files(self) -> None:
        """Say, of the images that were read now, where what was told of their sides is not what is seen."""
        read = sorted(self._read_sides.items())
        self._read_sides = {}
        unseen = [name for name, (_, seen) in read if seen is None]
        same = [name for name, (told, seen) in read if told and seen == told]
        other = [name for name, (told, seen) in read if told and seen and seen != told]
        if other:
            log.warning(
                "%s: the side that tags, names or table tell disagrees with the pixels, which are followed: the breast "
                "lies at the other border in %d images and at the border of that name in %d, e.g. %s",
                self._name,
                len(other),
                len(same),
                (same if 0 < len(same) < len(other) else other)[0],  # of the fewer: there the side may be wrong
            )
        if unseen:
            log.warning(
                "%s: in %d images the borders do not show where the breast lies, e.g. %s; the side that tags, names or "
                "table tell is taken for the border, else the half with more breast",
                self._name,
                len(unseen),
                unseen[0],
            )

    def _depends_on_side(self, found: Found) -> bool:
        """Return whether another side would give other pixels: not where nothing is mirrored, cut out or padded."""
        if self.flip_to is not None or self.isolate_breast:
            return True
        size = found.size or image_size(found.path)
        return size is None or padded_size(*size, *self.schedule.resolutions()[-1])[1] > size[1]

    def _find(self, root: Path) -> list[Found]:
        """Return the images of the layout, each patient under one name."""
        found = self._find_in_layout(root)
        known = [one for one in found if not one.patient.startswith(UNKNOWN)]
        files = [one.path.name for one in known]
        names = one_name_per_patient([one.patient for one in known], [one.tag for one in known], files, self._name)
        renamed = {one.path: name for one, name in zip(known, names, strict=True)}
        return [replace(one, patient=renamed.get(one.path, one.patient)) for one in found]

    def _find_in_layout(self, root: Path) -> list[Found]:
        if self.layout == "cbis_ddsm":
            return cbis_ddsm(root, self.content, self.missing_ok)
        if self.layout == "inbreast":
            return inbreast(root, self.missing_ok)
        if self.layout == "vindr":
            return vindr(root, self.missing_ok)
        return folder(root, Path(self.csv).expanduser() if self.csv else None, self.missing_ok)

    def _with_ranges(self, records: list[Record]) -> list[Record]:
        """Tell DICOM files the range that is declared for them."""
        paths = [one.path for one in records if one.path is not None and one.path.suffix.lower() in DICOM]
        if records and not paths and self.percentile_range is not None:
            raise DataError(
                f"data.percentile_range={list(self.percentile_range)}: holds for DICOM files, and there is none; "
                "PNG and JPEG files take data.value_range"
            )
        ranges = self._declared_ranges(paths)
        if ranges:
            self.intensity = replace(self.intensity, meaning=self._declared_meaning())
        return [
            replace(one, told={**one.told, "range": list(ranges[one.path])}) if one.path in ranges else one
            for one in records
        ]

    def _declared_meaning(self) -> str:
        if self.value_range is not None:
            low, high = self.value_range
            return f"values from {low:g} (0 = black) to {high:g} (1 = white), of DICOM files after their rescaling"
        assert self.percentile_range is not None
        low, high = self.percentile_range
        return f"values from percentile {low:g} (0 = black) to {high:g} (1 = white) of each DICOM series"

    def _declared_ranges(self, paths: Sequence[Path]) -> dict[Path, Range]:
        if self.value_range is not None:
            return dict.fromkeys(paths, (float(self.value_range[0]), float(self.value_range[1])))
        if self.percentile_range is None or not paths:
            return {}
        folder = self.cache_dir / "hashes"
        try:
            memo = folder / f"{self._name}-percentiles.json"
            return series_ranges(paths, self.percentile_range, folder / f"{self._name}.json", memo)
        except OSError as error:
            raise DataError(f"data.cache_dir={self.cache_dir}: {error}") from error

    def _listed_exclusions(self) -> set[str]:
        if self.exclude_csv is None:
            return set()
        path = Path(self.exclude_csv).expanduser()
        rows = read_rows(path, ())
        column = next((name for name in ("file", "image_id") if name in rows[0]), None)
        if column is None:
            raise DataError(f"{path}: has no column file or image_id; it has {list(rows[0])}")
        return {row[column] for row in rows if row[column]}

    def _reason_to_leave_out(self, found: Found, listed: set[str]) -> str | None:
        if listed:
            return "listed in data.exclude_csv"
        reasons = [reason for reason in found.excluded if reason in (*self.exclude, "multi_frame")]
        if reasons:
            return reasons[0]
        if self.view != "both" and found.view != self.view:
            return "the view is not known" if found.view is None else f"the view is not {self.view}"
        return None


# Pixels -----------------------------------------------------------------------------------------------------------


def read_picture(path: Path, value_range: tuple[float, float] | None) -> np.ndarray:
    """Read a PNG or JPEG as display values (H, W) in [0, 1].

    Raises:
        DataError: If no range is given and the file does not say what white is; see ``range_of``.
        UnreadableImageError: If it is damaged, not grey, or has values outside the range.
    """
    values = read_grey(path)
    black, white = range_of(path, values, value_range, "data.value_range")
    return ((values - black) / (white - black)).astype(np.float32)
