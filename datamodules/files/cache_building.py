"""The building of a cache: every file is read once; a killed build goes on where it was."""

import fcntl
import itertools
import json
import logging
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from datamodules.files.cache import Extremes, ImageCache, extremes_of
from datamodules.files.errors import UnreadableImageError
from datamodules.files.files import refuse_link, write_json

log = logging.getLogger(__name__)


JOURNAL_EVERY = 2_000  # images; what a kill during a build costs at most


class Files(NamedTuple):
    """What the share of unreadable files is taken of.

    Attributes:
        per_image: Number of files with the bytes of each image; if one is unreadable, all are.
        others: Number of files that are not to be read.
    """

    per_image: Sequence[int]
    others: int = 0

    def count_unreadable(self, names: Sequence[str], readable: Iterable[str]) -> int:
        """Return the number of files of the images ``names`` (the first ones) that are not among the readable."""
        known = set(readable)
        return sum(count for name, count in zip(names, self.per_image, strict=False) if name not in known)

    def refusal(self, count: str, max_unreadable: float, reasons: Sequence[str]) -> UnreadableImageError:
        """Return what to raise where more files are unreadable than may be."""
        return UnreadableImageError(
            f"{count} of {self.total} files cannot be used, more than data.max_unreadable={max_unreadable:g} allows: "
            + "; ".join(reasons[-5:])
        )

    @property
    def total(self) -> int:
        """Number of all files."""
        return sum(self.per_image) + self.others


def open_or_build(
    directories: Sequence[Path],
    names: Sequence[str],
    read: Callable[[int], Sequence[np.ndarray]],
    shapes: Sequence[tuple[int, int, int]],
    bits: int,
    max_unreadable: float,
    files: Files | None = None,
    extremes: Callable[[int], Extremes] | None = None,
) -> list[ImageCache]:
    """Return the caches in ``directories``, one per size of image; those that are not there are built first, together.

    Each file is read once for all of them. A build that was killed goes on where it was.

    Args:
        directories: Final place of each cache; its name holds the key.
        names: Name of each image.
        read: Returns image i as unsigned integers (C, H, W), once per size, or raises UnreadableImageError.
        shapes: (C, H, W) of the images of each cache.
        bits: Bits per value; up to 8 are stored in one byte, up to 16 in two.
        max_unreadable: Share of the files that may be unreadable. They are left out and listed.
        files: How many files there are; None = one per image.
        extremes: Returns those of image i, once it has been read; None = of what is kept of it.

    Raises:
        UnreadableImageError: If more than that share is unreadable, also where the caches were built under another.
        OSError: If a cache is damaged, or was built from other files than the others were.
    """
    files = files or Files([1] * len(names))
    parent = directories[0].parent
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # the cache holds patient images
    if not all(directory.exists() for directory in directories):
        with ExitStack() as locks:
            for directory in sorted(directories):  # in one order for all, so that nobody waits in a circle
                locks.enter_context(_lock(directory.with_suffix(".lock")))
            dtype = np.dtype("uint8" if bits <= 8 else "uint16")
            missing = [i for i, directory in enumerate(directories) if not directory.exists()]
            if missing:
                parts = [_Part(directories[i], shapes[i], dtype) for i in missing]
                _build(
                    parts,
                    names,
                    lambda n: [images[i] for images in [read(n)] for i in missing],
                    max_unreadable,
                    files,
                    extremes,
                )
    caches = [ImageCache(directory) for directory in directories]
    for cache in caches[1:]:
        if cache.names != caches[0].names:
            raise OSError(
                f"the caches {caches[0].directory} and {cache.directory} hold different images (a file could be read "
                "for one and not for the other); delete both"
            )
    unreadable = files.count_unreadable(names, caches[0].names)
    if unreadable > max_unreadable * files.total:
        raise files.refusal(str(unreadable), max_unreadable, caches[0].unreadable)
    return caches


class _Part:
    """A cache that is being built, in a folder beside its final place.

    The journal says how many files have been dealt with; what was written after its last entry is written again.
    """

    def __init__(self, directory: Path, shape: tuple[int, int, int], dtype: np.dtype) -> None:
        self.directory, self.shape, self.dtype = directory, shape, dtype
        self.folder = directory.with_name(f".{directory.name}.building")
        self.bytes_per_image = int(np.prod(shape)) * dtype.itemsize

    def progress(self) -> dict[str, Any]:
        """Return what the journal says, or that nothing has been done."""
        try:
            journal = json.loads((self.folder / "journal.json").read_text())
            kept = len(journal["names"])
            whole = kept + len(journal["unreadable"]) == journal["done"]
            whole = whole and (self.folder / "images.bin").stat().st_size >= kept * self.bytes_per_image
            for name in ("crc32.bin", "extremes.bin"):
                whole = whole and (self.folder / name).stat().st_size >= kept * 4
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            whole = False
        return journal if whole else {"done": 0, "names": [], "unreadable": []}

    def open(self, kept: int) -> None:
        """Continue after so many images."""
        refuse_link(self.folder).mkdir(exist_ok=True, mode=0o700)
        self.file = refuse_link(self.folder / "images.bin").open("ab")
        self.checksums = refuse_link(self.folder / "crc32.bin").open("ab")
        self.extremes = refuse_link(self.folder / "extremes.bin").open("ab")
        for file, size in ((self.file, self.bytes_per_image), (self.checksums, 4), (self.extremes, 4)):
            file.truncate(kept * size)
            file.seek(0, os.SEEK_END)

    def write(self, name: str, image: np.ndarray, extremes: Extremes) -> None:
        if image.shape != self.shape or image.dtype != self.dtype:
            raise RuntimeError(f"{name}: got {image.shape} {image.dtype}, expected {self.shape} {self.dtype}")
        content = np.ascontiguousarray(image).tobytes()
        self.file.write(content)
        self.checksums.write(np.uint32(zlib.crc32(content)).tobytes())
        self.extremes.write(np.array(extremes, np.uint16).tobytes())

    def note(self, journal: dict[str, Any]) -> None:
        """Bring images and journal to the disk, in this order."""
        for file in (self.file, self.checksums, self.extremes):
            file.flush()
            os.fsync(file.fileno())
        write_json(self.folder / "journal.json", journal)

    def finish(self, journal: dict[str, Any]) -> None:
        for file in (self.file, self.checksums, self.extremes):
            file.close()
        shape = [len(journal["names"]), *self.shape]
        index = {key: journal[key] for key in ("names", "unreadable")} | {"shape": shape, "dtype": self.dtype.name}
        write_json(self.folder / "index.json", index)
        self.folder.rename(self.directory)
        (self.directory / "journal.json").unlink()


def _build(
    parts: list[_Part],
    names: Sequence[str],
    read: Callable[[int], Sequence[np.ndarray]],
    max_unreadable: float,
    files: Files,
    extremes: Callable[[int], Extremes] | None,
) -> None:
    journal = min((part.progress() for part in parts), key=lambda found: found["done"])
    unreadable = files.count_unreadable(names[: journal["done"]], journal["names"])
    for part in parts:
        part.open(len(journal["names"]))
    for i, result in _read_all(read, journal["done"], len(names)):
        failed = isinstance(result, UnreadableImageError)
        too_many = failed and unreadable + files.per_image[i] > max_unreadable * files.total
        if too_many or (i and i % JOURNAL_EVERY == 0):
            for part in parts:  # also for the build that goes on after data.max_unreadable was raised
                part.note(journal)
        if too_many:
            count = f"at least {unreadable + files.per_image[i]}"  # the rest is not read
            raise files.refusal(count, max_unreadable, [*journal["unreadable"], str(result)])
        if isinstance(result, UnreadableImageError):
            journal["unreadable"].append(str(result))
            unreadable += files.per_image[i]
        else:
            for part, image in zip(parts, result, strict=True):
                part.write(names[i], image, extremes(i) if extremes else extremes_of(image))
            journal["names"].append(names[i])
        journal["done"] = i + 1
    for part in parts:
        part.note(journal)
        part.finish(journal)


def _read_all(
    read: Callable[[int], Sequence[np.ndarray]], start: int, total: int
) -> Iterator[tuple[int, Sequence[np.ndarray] | UnreadableImageError]]:
    """Yield every image from ``start`` on in order, decoded on all cores (decoders release Python's lock)."""

    def read_or_error(i: int) -> Sequence[np.ndarray] | UnreadableImageError:
        try:
            return read(i)
        except UnreadableImageError as error:
            return error

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: deque[Future] = deque()
    with (
        ThreadPoolExecutor(cores) as pool,
        tqdm(total=total, initial=start, desc="image cache", unit="img", disable=None, leave=False) as bar,
    ):
        upcoming = iter(range(start, total))
        for i in range(start, total):
            for ahead in itertools.islice(upcoming, 4 * cores - len(waiting)):  # bounds the images that wait in memory
                waiting.append(pool.submit(read_or_error, ahead))
            yield i, waiting.popleft().result()
            bar.update()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; it is released by the system if the process dies."""
    with refuse_link(path).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another process is building %s; waiting for it", path.with_suffix("").name)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
