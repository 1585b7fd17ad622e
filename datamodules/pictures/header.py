"""What a picture's own header says of it.

Libraries reduce pictures without a word (16-bit colours to their high byte, several pages to the first), and the mode
that they then name hides it. So the file's header decides, found by the first bytes and not by the file's name.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

At = Callable[[int, int], bytes]  # (offset, count) -> so many bytes, or PictureError

_HEAD = 4096  # bytes that are read at once; the headers of most files end there


class PictureError(ValueError):
    """What is wrong with a picture, in our own words: no text of the file is in them."""


@dataclass(frozen=True, slots=True)
class PictureHeader:
    """What a picture's header says.

    Attributes:
        kind: "PNG", "JPEG", "TIFF" or "BMP".
        height: Rows as stored.
        width: Columns as stored.
        bits: Bits of one value as stored.
        colour: "grey", "RGB" or "palette"; for what is not read, another word.
        further: Channels besides the colours: alpha, or of a meaning that is not said.
        sample: "unsigned", "signed" or "float".
        white_is_zero: Whether small values are white.
        transparent: The colour that a PNG without alpha declares transparent, one value per channel.
        pages: Pictures in the file; thumbnails are not counted.
        page: Place of the picture among the directories of a TIFF.
        orientation: 1 to 8 as in EXIF; 1 = shown as stored.
        problem: Why its form is not read; empty if it is.
    """

    kind: str
    height: int
    width: int
    bits: int
    colour: str
    further: int = 0
    sample: str = "unsigned"
    white_is_zero: bool = False
    transparent: tuple[int, ...] | None = None
    pages: int = 1
    page: int = 0
    orientation: int = 1
    problem: str = ""

    @property
    def shown_size(self) -> tuple[int, int]:
        """(height, width) as shown, with the orientation applied."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def bytes_of(descriptor: int) -> At:
    """Return access to the bytes of an open file; the beginning is read once."""
    head = os.pread(descriptor, _HEAD, 0)

    def at(offset: int, count: int) -> bytes:
        if offset + count <= len(head):
            return head[offset : offset + count]
        data = os.pread(descriptor, count, offset) if offset < 2**63 else b""
        if len(data) != count:
            raise PictureError("its header is cut off")
        return data

    return at


def bytes_in(data: bytes, problem: str = "its header is cut off") -> At:
    """Return access to bytes in memory, which says what is the matter where they end."""

    def at(offset: int, count: int) -> bytes:
        if offset + count > len(data):
            raise PictureError(problem)
        return data[offset : offset + count]

    return at
