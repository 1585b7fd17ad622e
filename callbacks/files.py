"""Writing files so that a kill or a power cut leaves the old file or the new one, never half of one."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger(__name__)


def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], verify: Callable[[Path], bool] | None = None
) -> None:
    """Write beside the target, flush to the disk, rename.

    Args:
        path: The target; its folder is created.
        write: Writes the content to an open file.
        verify: Says whether the written file is good; if not, the target stays as it was.

    Raises:
        OSError: If the file cannot be written, or is not good.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # "x" below: what lies there may be a link to elsewhere
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if verify is not None and not verify(temporary):
            raise OSError(f"{temporary} was not written whole")
        temporary.replace(path)
        _sync_directory(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def training_goes_on(path: Path) -> Iterator[None]:
    """Log a write that fails instead of ending the run: a picture is not worth a week of training."""
    try:
        yield
    except OSError as error:
        log.error("could not write %s (%s); training goes on", path, error)


class Rows:
    """A file with one JSON object per line. Rows that a full disk refuses are written with a later one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[dict[str, Any]] = []

    def append(self, row: dict[str, Any]) -> None:
        """Append a row, and before it those that wait."""
        self._waiting.append(row)
        with training_goes_on(self.path):
            append_rows(self.path, self._waiting)
            self._waiting.clear()


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a JSON-lines file. A row that was cut off before gets its line end, so that only it is lost.

    Raises:
        OSError: If not all of them can be written; then none is.
    """
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with path.open("ab+", buffering=0) as file:  # a buffer would try once more when the file is closed
        size = file.seek(0, os.SEEK_END)
        if size > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                content = b"\n" + content
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(size)
            raise


def sweep_temporaries(folder: Path) -> None:
    """Remove what killed writers left below a folder."""
    for left_over in folder.rglob(".*.tmp"):
        left_over.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
