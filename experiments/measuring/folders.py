"""Folders of image files that are compared: sizes, copies within one of them, and what two of them share."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.decoding.dicom import read_dicom
from datamodules.decoding.dicom_headers import read_header
from datamodules.decoding.readers import DICOM, PICTURES, image_size, read_grey
from datamodules.decoding.value_range import Range, range_of
from datamodules.files.errors import DataError, UnreadableImageError
from datamodules.files.files import is_hidden
from datamodules.records.duplicates import JoinedGroups

Size = tuple[int, int]
SUFFIXES = PICTURES | DICOM | {".tif", ".tiff", ".bmp"}


@dataclass(frozen=True)
class FileSet:
    """Files of a set, in one order.

    Attributes:
        called: How the user named the set.
        folder: Where they lie; None = not in one folder.
        names: A name per file.
        contents: A hash of each one's bytes.
    """

    called: str
    folder: Path | None
    names: list[str]
    contents: list[str]


def image_cache() -> Path:
    """Return where hashes and vectors of images of folders are kept, as in ``configs/_base.yaml``."""
    return Path(os.environ.get("MIRAGE_CACHE") or "~/.cache/mirage").expanduser()


# Sizes ----------------------------------------------------------------------------------------------------------------


def sizes_of(folder: Path, files: Sequence[Path]) -> list[Size]:
    """Return (height, width) of each file, from its header.

    Raises:
        DataError: If some cannot be read: how many, and what is wrong with the first.
    """
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(_size, files))
    bad = [path for path, size in zip(files, found, strict=True) if size is None]
    if bad:
        raise DataError(
            f"{folder}: {len(bad)} of {len(files)} images cannot be read, e.g. {_reason(bad[0])}; repair or remove them"
        )
    return [size for size in found if size is not None]


def has_aspect(size: Size, wanted: Size) -> bool:
    """Return whether an image has an aspect ratio, but for a pixel that rounding may have taken."""
    (h, w), (height, width) = size, wanted
    off = abs(h * width - w * height)
    return off <= max(height, width) or off <= max(h, w) / 2.0


def text_of_size(size: Sequence[int]) -> str:
    """Return height and width as text."""
    return "x".join(map(str, size))


def _size(path: Path) -> Size | None:
    if path.suffix.lower() not in DICOM:
        return image_size(path)
    with suppress(UnreadableImageError, AttributeError, TypeError, ValueError):
        header = read_header(path)
        return int(header.Rows), int(header.Columns)
    with suppress(UnreadableImageError):  # a tag that says nothing of the pixels may be damaged
        height, width = read_dicom(path).shape
        return height, width
    return None


def _reason(path: Path) -> str:
    try:
        (read_dicom if path.suffix.lower() in DICOM else read_grey)(path)
    except UnreadableImageError as error:
        return str(error)
    return f"{path.name}: its header does not say how large it is"


# Values ---------------------------------------------------------------------------------------------------------------


def read_image(path: Path, declared: Range | None, setting: str) -> np.ndarray:
    """Return an image (1, H, W) float32 in its own size, with its range as -1 .. 1.

    Args:
        path: A picture or a DICOM file.
        declared: The range that the user has declared; None = what the file says (see ``range_of``). Of DICOM files in
            the unit that rescaling leads to (CT: HU), clipped; None = as a viewer shows them.
        setting: The key or the option with which it is declared, for messages.

    Raises:
        DataError: If the file cannot be read, or does not say its range.
    """
    if path.suffix.lower() in DICOM:
        values, (low, high) = read_dicom(path, value_range=declared), (0.0, 1.0)
    else:
        values = read_grey(path)
        low, high = range_of(path, values, declared, setting)
    return ((values - low) * (2.0 / (high - low)) - 1.0)[None].astype(np.float32)


# Copies within a folder -----------------------------------------------------------------------------------------------


def copies_among(files: Sequence[Path], contents: Sequence[str]) -> dict[int, int]:
    """Return which files are copies of an earlier one: place of the copy -> place of the first.

    Files that cannot be read are copies of nothing: equal ones are one damage that befell many images.

    Args:
        files: The files.
        contents: A hash of each one's bytes.
    """
    first: dict[str, int] = {}
    places = [first.setdefault(content, i) for i, content in enumerate(contents)]
    copies = {i: place for i, place in enumerate(places) if i != place}
    unreadable = {place for place in set(copies.values()) if _size(files[place]) is None}
    return {i: place for i, place in copies.items() if place not in unreadable}


def said_of_copies(which: str, copies: int, files: int) -> tuple[str, ...]:
    """Return what is said of copies: of generated images they are a finding and stay, of others they are left out."""
    if not copies:
        return ()
    done = "they stay, for a generator that repeats itself is judged by it" if which == "generated" else "left out"
    return (f"{copies} of {files} {which} files are copies of another one, byte by byte: {done}",)


def join_groups(groups: Sequence[str], copies: dict[int, int]) -> list[str]:
    """Return the groups after joining those that share a file: it is one patient under two names."""
    joined = JoinedGroups()
    for copy, first in copies.items():
        joined.join(groups[first], groups[copy])
    return [joined.name(group) for group in groups]


# What two sets share --------------------------------------------------------------------------------------------------


def overlap(ours: FileSet, theirs: FileSet) -> list[str]:
    """Return what two sets share, in sentences: one folder lies in the other, or files are equal."""
    if ours.folder is not None and theirs.folder is not None:
        here, there = ours.folder.resolve(), theirs.folder.resolve()
        if here == there:
            return [f"{ours.called} and {theirs.called} are one folder; name two"]
        for (inner, one), (outer, other) in (((here, ours), (there, theirs)), ((there, theirs), (here, ours))):
            if inner.is_relative_to(outer) and not any(map(is_hidden, inner.relative_to(outer).parts)):
                return [f"{one.called} lies in {other.called}, so its images are in both; move it elsewhere"]
    name = dict(zip(theirs.contents, theirs.names, strict=True))
    pairs = zip(ours.contents, ours.names, strict=True)
    equal = [(mine, name[content]) for content, mine in pairs if content in name]
    if not equal:
        return []
    return [
        f"{ours.called}: {len(equal)} of its {len(ours.names)} files also lie in {theirs.called}, e.g. {equal[0][0]} "
        f"as {equal[0][1]}; remove them from one of the two"
    ]
