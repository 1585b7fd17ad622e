"""Writing files so that a kill or a power cut leaves the old file or the new one, never half of one."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


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
