"""Which stored values of a picture are black and white: what was declared, or what the file says, or a refusal.

A depth of 16 bits is no range: 12-bit detectors are stored in such files, and black to white is then 0 to 4095. So they
need a range, unless they say that they fill their bits, as the PNG files of ``writers`` do.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from datamodules.decoding.readers import full_value, is_deep, texts_of
from datamodules.files.errors import DataError, UnreadableImageError

Range = tuple[float, float]
BYTE, DEEP = (0.0, 255.0), (0.0, 65535.0)
FEW = 0.1  # share of a range below which a set is named; 12 bits in 16 fill 0.06
UNLIKE = 3.0  # ratio of two sets' shares from which they are named; 14 bits in 16 fill a quarter


# Text of every PNG file. A reader may rely on it: the darkest grey is 0, the brightest the largest that the bits hold.
MARK = {"Synthetic": "yes", "Software": "Mirage"}


def range_of(path: Path, values: np.ndarray, declared: Range | None, setting: str) -> Range:
    """Return the stored values of a picture that are black and white.

    Args:
        path: A PNG, JPEG, TIFF or BMP file.
        values: What ``read_grey`` returned of it.
        declared: The range that the user has declared; None = what the file says.
        setting: The key or the option with which it is declared, for messages.

    Raises:
        DataError: If nothing was declared and the file does not say it: a missing setting, not a damaged file.
        UnreadableImageError: If a value lies outside, or a file of 8 bits cannot reach white: it would be black.
    """
    low, high = float(values.min()), float(values.max())
    if declared is not None and declared[1] > BYTE[1] and not is_deep(path):
        raise UnreadableImageError(
            f"{path.name}: has 8 bits, which do not reach {_written(setting, declared)}; keep files of 8 bits apart "
            "from those of more, or save all alike"
        )
    if declared is None:
        declared = _said_by(path)
    if declared is None:
        whole = low >= 0 and high <= DEEP[1] and np.array_equal(values, np.rint(values))
        raise DataError(
            f"{path.name}: has {'16 bits with values' if whole else 'values of more than 16 bits or fractions,'} "
            f"{low:g} .. {high:g}, and does not say which of them are black and white; set {setting}, e.g. "
            f"{_written(setting, (0, 4095))} for 12-bit or {_written(setting, DEEP)} for 16-bit values"
        )
    black, white = declared
    if low < black or high > white:
        raise UnreadableImageError(
            f"{path.name}: values {low:g} .. {high:g} lie outside {_written(setting, (black, white))}"
        )
    return black, white


def ends_of(values: np.ndarray) -> np.ndarray:
    """Return the lowest and the highest value of an image without the outermost 0.5 % (burnt-in text, dead pixels)."""
    thinned = values.ravel()[:: 1 + values.size // 100_000]
    return np.quantile(thinned, (0.005, 0.995))


def share_used(ends: Iterable[np.ndarray]) -> float:
    """Return the share of their range that images use together, from 0 to 1.

    Args:
        ends: ``ends_of`` each image in [-1, 1].
    """
    lows, highs = zip(*ends, strict=True)
    return float(max(highs) - min(lows)) / 2.0


def unlike_shares(real: float, generated: float, *settings: str) -> str:
    """Return a sentence if two sets use unlike shares of their ranges, or hardly any, and nothing otherwise.

    Args:
        real: ``share_used`` of the real images.
        generated: The same of the generated ones.
        settings: The keys that declare their ranges, where there are any.
    """
    smaller, larger = sorted((real, generated))
    if smaller >= FEW and larger <= UNLIKE * smaller:
        return ""
    return (
        f"real images use {real:.0%} of their range of values, generated ones {generated:.0%}: if that is not what the "
        f"images show, {' or '.join(settings)} is wrong (12-bit values in 16-bit files want 0 to 4095)"
    )


def _written(setting: str, ends: Range) -> str:
    """Return how a range is set: by a key, or by an option of a command line."""
    low, high = (f"{end:g}" for end in ends)
    return f"{setting} {low} {high}" if setting.startswith("--") else f"{setting}=[{low},{high}]"


def _said_by(path: Path) -> Range | None:
    """Return the range of the bits that a picture declares, if it says or if there can be no doubt that it fills them.

    16 bits are where values of fewer are kept. 9 to 15 are not: they are declared because they are used.
    """
    full = full_value(path)
    if full is None or (full == DEEP[1] and not MARK.items() <= texts_of(path).items()):
        return None
    return 0.0, float(full)
