"""Versions of reading: which rules made pixels out of files.

A reader, a layout or the resizing that gives other pixels than before gets a new version: one more ``Change`` below. A
cache is built anew, and a run on the old pixels refused, only where a change concerns one of the files. Version 1 is
said nowhere: caches and runs from before there were versions keep their names and fingerprints.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from datamodules.decoding.dicom_headers import can_show_otherwise
from datamodules.decoding.readers import DICOM, picture_header
from datamodules.files.errors import UnreadableImageError
from datamodules.files.files import in_threads, write_json
from datamodules.pictures.header import PictureHeader

Rule = tuple[str, int]  # name of a reader or layout, and its version


class Change(NamedTuple):
    """What one version has changed.

    Attributes:
        what: In a few words, for users: "16-bit colours keep all of their bits".
        concerns: Tells whether it can have changed the pixels of a file; of a layout it is not asked.
    """

    what: str
    concerns: Callable[[Path], bool] = lambda path: True


def _was_reduced(path: Path) -> bool:
    """Return whether version 1 read a picture otherwise: with fewer bits, not turned, one page of several, not at all.

    Decided by the header, so that a file of another format than its name says is found too.
    """
    try:
        header = picture_header(path)
    except UnreadableImageError:  # neither version reads it
        return False
    turned_or_cut = header.orientation != 1 or header.pages > 1 or header.page > 0
    return turned_or_cut or (_reduced_tiff(header) if header.kind == "TIFF" else _reduced(header))


def _reduced(header: PictureHeader) -> bool:
    wide = header.bits > 8 and (header.kind != "PNG" or header.colour != "grey" or header.further > 0)
    sixteen_per_pixel = header.kind == "BMP" and bool(header.problem)
    return wide or header.transparent is not None or sixteen_per_pixel


def _reduced_tiff(header: PictureHeader) -> bool:
    """Return False only for the plain kinds, which Pillow read as tifffile does."""
    plain = header.sample == "unsigned" and not header.further and not header.problem
    grey = header.bits == 8 or (header.bits == 16 and not header.white_is_zero)
    return not (plain and (grey if header.colour == "grey" else header.colour == "RGB" and header.bits == 8))


RESIZING = "resizing"
_SIDE = Change("the breast's side is seen along the borders, else told by tags or table; it was the brighter half")
# Names are those of readers and of layouts (``ImageDataModule.layout_rule``); they become part of a cache's name. The
# first change makes version 2. Pictures are told by suffix; a change asks what the file is.
CHANGES: dict[str, tuple[Change, ...]] = {
    "png": (
        Change("colours and alpha of 16 bits are whole, orientation and tRNS count, animations don't", _was_reduced),
    ),
    "jpeg": (Change("the orientation counts, more than 8 bits are read, several pictures are refused", _was_reduced),),
    "tiff": (Change("all depths, white is zero, packed bits; several pages are refused", _was_reduced),),
    "bmp": (Change("16 bits per pixel are refused", _was_reduced),),
    "dicom": (
        Change(
            "windows in functional groups are followed; compressed images of 8 bits in 16, and signed ones, are read",
            can_show_otherwise,
        ),
    ),
    RESIZING: (),
    **dict.fromkeys((f"mammography_{layout}" for layout in ("cbis_ddsm", "inbreast", "vindr", "folder")), (_SIDE,)),
}
_PICTURES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff", ".tiff": "tiff", ".bmp": "bmp"}


def newest(name: str) -> Rule:
    """Return the present version of a layout or of the resizing."""
    return name, 1 + len(CHANGES.get(name, ()))


def rule_of(path: Path) -> Rule:
    """Return the reader of a file, with the version that last can have changed its pixels.

    A reader is named by the file's suffix; one that is listed nowhere is a reader of its own, e.g. "nii".
    """
    name = _reader_of(path)
    numbered = enumerate(CHANGES.get(name, ()), 2)
    return name, max((version for version, change in numbered if change.concerns(path)), default=1)


def _reader_of(path: Path) -> str:
    suffix = path.suffix.lower()
    return "dicom" if suffix in DICOM else _PICTURES.get(suffix, suffix.lstrip(".") or "no suffix")


def rules_of(paths: Sequence[Path], contents: Sequence[str], memo: Path) -> list[Rule]:
    """Return ``rule_of`` each file; what was found for a content is remembered, as headers are slow on network disks.

    Args:
        paths: The files.
        contents: Hash of each one's bytes.
        memo: Where it is remembered: of content and suffix the number of changes that were asked, and the version.
    """
    known = _remembered(memo)
    keys = [f"{content} {path.suffix.lower()}" for path, content in zip(paths, contents, strict=True)]

    def found(i: int) -> Rule:
        name, version = _reader_of(paths[i]), known.get(keys[i], [])
        return (name, version[1]) if version[:1] == [len(CHANGES.get(name, ()))] else rule_of(paths[i])

    rules = in_threads(found, range(len(paths)))
    fresh = {key: [len(CHANGES.get(name, ())), version] for key, (name, version) in zip(keys, rules, strict=True)}
    if any(known.get(key) != entry for key, entry in fresh.items()):
        memo.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(memo, {**known, **fresh})
    return rules


def _remembered(memo: Path) -> dict[str, list[int]]:
    try:
        known = json.loads(memo.read_text())
        sound = all(isinstance(entry, list) and list(map(type, entry)) == [int, int] for entry in known.values())
    except (OSError, ValueError, RecursionError, AttributeError):  # there is none, or it is damaged
        sound = False
    return known if sound else {}


def name_ending(rules: Iterable[Rule]) -> str:
    """Return what a cache's name ends with, e.g. "-dicom2-png2"; nothing where all rules are the first."""
    return "".join(f"-{name}{version}" for name, version in _later(rules))


def sentences(rules: Iterable[Rule]) -> list[str]:
    """Return what has changed since version 1, e.g. "png 2: 16-bit colours keep all of their bits"."""
    return [
        f"{name} {number}: {CHANGES[name][number - 2].what}"
        for name, version in _later(rules)
        for number in range(2, version + 1)
    ]


def _later(rules: Iterable[Rule]) -> list[Rule]:
    return sorted({(name, version) for name, version in rules if version > 1})
