"""Tags of a TIFF structure: a TIFF file, or the EXIF of a JPEG or PNG.

Damage is an error in a TIFF. In EXIF, which says only how a picture is turned, it is passed over.
"""

import struct
from dataclasses import dataclass

from datamodules.pictures.header import At, PictureError

ORIENTATION = 274
EXIF = b"Exif\0\0"  # before the tags of a JPEG, and by mistake of some PNG
_LETTERS = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MAX_COUNT = 2**22  # values of all tags; a picture of 100 million pixels has fewer strips
_MAX_DIRECTORIES = 10_000  # where counting the pages ends


@dataclass(frozen=True, slots=True)
class Directory:
    """One directory (IFD) of a file: in a TIFF, one page.

    Attributes:
        values: Integers of each tag that was wanted and is there; text is given as its bytes' numbers.
    """

    values: dict[int, tuple[int, ...]]

    def one(self, tag: int, default: int) -> int:
        """Return the first value of a tag."""
        return self.values.get(tag, (default,))[0]


def read_directories(at: At, wanted: frozenset[int], at_most: int = _MAX_DIRECTORIES) -> list[Directory]:
    """Follow a chain of directories.

    Args:
        at: The structure's bytes, counted from its "II" or "MM".
        wanted: Tags to read.
        at_most: Directories to read.

    Raises:
        PictureError: If it is no TIFF structure, or damaged.
    """
    order = {b"II": "<", b"MM": ">"}.get(at(0, 2))
    version = struct.unpack(f"{order}H", at(2, 2))[0] if order else 0
    if order is None or version not in (42, 43):
        raise PictureError("its tags do not begin like those of a TIFF")
    chain = _Chain(at, order, version == 43, wanted)
    position = chain.first()
    found: dict[int, Directory] = {}
    read = 0
    while position and len(found) < at_most:
        if position in found:
            raise PictureError("its directories go round in a circle")
        directory, following = chain.read(position)
        read += sum(map(len, directory.values.values()))
        if read > _MAX_COUNT:
            raise PictureError("its tags hold more values than those of the largest picture that is read")
        found[position], position = directory, following
    return list(found.values())


@dataclass(frozen=True, slots=True)
class _Chain:
    """How directories are written: byte order, and BigTIFF's wider numbers."""

    at: At
    order: str
    big: bool
    wanted: frozenset[int]

    def first(self) -> int:
        """Return where the first directory is."""
        return self._number("Q", 8) if self.big else self._number("I", 4)

    def read(self, position: int) -> tuple[Directory, int]:
        """Return a directory and where the next one is; 0 = none."""
        count_letter, entry, link = ("Q", "HHQ8s", "Q") if self.big else ("H", "HHI4s", "I")
        start, size = position + struct.calcsize(f"<{count_letter}"), struct.calcsize(f"<{entry}")
        count = self._number(count_letter, position)
        if not 0 < count < 4096:
            raise PictureError(f"one of its directories has {count} entries")
        values: dict[int, tuple[int, ...]] = {}
        for tag, kind, length, field in struct.iter_unpack(self.order + entry, self.at(start, count * size)):
            if tag in self.wanted and tag not in values:
                values[tag] = self._values(kind, length, field)
        return Directory(values), self._number(link, start + count * size)

    def _values(self, kind: int, count: int, field: bytes) -> tuple[int, ...]:
        if kind not in _LETTERS or not 0 < count <= _MAX_COUNT:
            raise PictureError(f"one of its tags is damaged (type {kind}, {count} values)")
        form = f"{self.order}{count}{_LETTERS[kind]}"
        size = struct.calcsize(form)
        inline = size <= len(field)
        return struct.unpack(form, field[:size] if inline else self.at(self._offset(field), size))

    def _offset(self, field: bytes) -> int:
        return struct.unpack(self.order + ("Q" if self.big else "I"), field)[0]

    def _number(self, letter: str, position: int) -> int:
        return struct.unpack(self.order + letter, self.at(position, struct.calcsize(f"<{letter}")))[0]


def orientation_of(exif: bytes) -> int:
    """Return the orientation, 1 to 8, that EXIF names; 1 (as stored) where it names none, or one that does not exist.

    What is damaged or cut off beside it does not matter: viewers turn such a picture, too.
    """
    exif = exif.removeprefix(EXIF)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == ORIENTATION:
                return valid_orientation(struct.unpack_from(f"{order}{_LETTERS[kind]}", exif, entry + 8)[0])
    except (struct.error, KeyError):
        pass
    return 1


def valid_orientation(value: int) -> int:
    """Return the value of the tag if it is one of the eight that exist, else 1."""
    return value if 1 <= value <= 8 else 1
