"""The range of a DICOM series, where neither its files nor a unit say what is black and white (MR, NM, PET).

All files of a series are shown alike, so that a volume keeps its contrast from slice to slice.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datamodules.decoding.dicom import read_values
from datamodules.decoding.dicom_headers import header_or_none
from datamodules.files.cache import content_hashes
from datamodules.files.errors import UnreadableImageError
from datamodules.files.files import in_threads, write_json

Range = tuple[float, float]


def series_ranges(paths: Sequence[Path], percentiles: Range, hashes: Path, memo: Path) -> dict[Path, Range]:
    """Return the range of each file: percentiles of all pixels of its series that are not padding.

    A percentile is the smallest value that so many of the pixels do not exceed, without interpolation: the same on
    every machine and in every order of the files.

    Args:
        paths: DICOM files; a file without SeriesInstanceUID is a series of its own.
        percentiles: Which become black and white, each 0 to 100.
        hashes: Where hashes of unchanged files are remembered.
        memo: Where the ranges are remembered, so that a second start need not read all pixels.

    Returns:
        Ranges in the unit that rescaling leads to; none for files that cannot be read.
    """
    known = _remembered(memo)
    contents = dict(zip(paths, content_hashes(paths, hashes), strict=True))
    all_series = _by_series(paths)
    keys = [_key(percentiles, [contents[path] for path in series]) for series in all_series]
    new = {key: series for key, series in zip(keys, all_series, strict=True) if key not in known}
    with ThreadPoolExecutor() as pool:
        measured = pool.map(lambda series: _percentiles(series, percentiles), new.values())
        shown = tqdm(measured, "percentiles", len(new), unit="series", disable=None, leave=False)
        found = {key: limits for key, limits in zip(new, shown, strict=True) if limits is not None}
    known |= found
    if found:
        memo.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(memo, known)
    return {
        path: (known[key][0], known[key][1])
        for key, series in zip(keys, all_series, strict=True)
        if key in known
        for path in series
    }


def _key(percentiles: Range, contents: Sequence[str]) -> str:
    digest = hashlib.sha256(f"{list(percentiles)}".encode())
    digest.update("".join(sorted(contents)).encode())
    return digest.hexdigest()


def _by_series(paths: Sequence[Path]) -> list[list[Path]]:
    series: dict[str, list[Path]] = defaultdict(list)
    for path, header in zip(paths, in_threads(header_or_none, paths), strict=True):
        series[str((header.get("SeriesInstanceUID") if header is not None else None) or path)].append(path)
    return list(series.values())


def _percentiles(paths: Sequence[Path], percentiles: Range) -> list[float] | None:
    """Return two percentiles of all pixels, counted file by file; None if no file can be read."""
    values, counts = np.empty(0), np.empty(0, np.int64)
    for path in paths:
        try:
            measured = read_values(path)
        except UnreadableImageError:  # reading the image will say what is wrong with it
            continue
        more, their_counts = np.unique(measured.values[measured.image], return_counts=True)
        values, places = np.unique(np.concatenate([values, more]), return_inverse=True)
        joined = np.zeros(len(values), np.int64)
        np.add.at(joined, places, np.concatenate([counts, their_counts]))
        counts = joined
    if not len(values):
        return None
    up_to = np.cumsum(counts)
    ranks = [max(1, math.ceil(percentile / 100 * int(up_to[-1]))) for percentile in percentiles]
    low, high = (float(values[np.searchsorted(up_to, rank)]) for rank in ranks)
    return [low, high if high > low else low + max(1.0, abs(low))]


def _remembered(memo: Path) -> dict[str, list[float]]:
    try:
        known = json.loads(memo.read_text())
        sound = all(
            isinstance(limits, list)
            and list(map(type, limits)) == [float, float]
            and -math.inf < limits[0] < limits[1] < math.inf
            for limits in known.values()
        )
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError):  # there is none, or is damaged
        sound = False
    return known if sound else {}
