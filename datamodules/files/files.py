"""Finding files, and writing them so that a kill leaves the old file or the new one, never half of one.

Writing is the twin of ``callbacks/files.py``: the data packages import none of the others.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from datamodules.files.pseudonyms import remember

Item = TypeVar("Item")
Result = TypeVar("Result")

# What systems and file servers leave beside the files of a user: thumbnails, what was deleted, earlier states, indexes.
# Names that begin with a dot (.snapshot, .@__thumb, .Trash-1000, .ipynb_checkpoints) are hidden anyway.
LEFT_BY_SYSTEMS = {
    *("@eadir", "#recycle", "#snapshot", "@sharebin", "@sharesnap", "@tmp", "@syno"),  # Synology
    *("@recycle", "@recently-snapshot", "@transcode"),  # QNAP
    *("~snapshot", "trashbox"),  # NetApp, Buffalo
    *("$recycle.bin", "recycler", "recycled", "system volume information", "found.000"),  # Windows: folders
    *("thumbs.db", "ehthumbs.db", "desktop.ini"),  # Windows: files
    *("__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder"),  # macOS
    "lost+found",  # ext2 to ext4
}


def is_hidden(name: str) -> bool:
    """Return whether a file or a folder of this name is hidden, or left by a system rather than by the user."""
    return name.startswith(".") or name.casefold() in LEFT_BY_SYSTEMS


def walk_files(root: Path) -> Iterator[Path]:
    """Yield all files below a folder, also through links, without what ``is_hidden`` and what lies in such folders.

    A folder is entered once, by its own place rather than by a link to it: links in a circle end, names stay.
    """
    entered: set[tuple[int, int]] = set()
    starts = [root]
    for start in starts:  # grows with the links that are found
        for folder, inside, names in os.walk(start):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                inside.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            inside[:] = sorted(name for name in inside if not is_hidden(name))
            starts += [path for name in inside if (path := Path(folder, name)).is_symlink()]
            yield from (Path(folder, name) for name in names if not is_hidden(name))


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Apply a function to each of many files: on network disks the time goes into waiting for each of them."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(function, items))


def find_files(root: Path, suffixes: set[str]) -> list[Path]:
    """Return what ``walk_files`` finds with one of the suffixes, sorted."""
    found = sorted(path for path in walk_files(root) if path.suffix.lower() in suffixes and path.is_file())
    remember(path.relative_to(root).as_posix() for path in found)
    return found


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write beside the target (whose folder must be there), flush to the disk, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # "x" below: what lies there may be a link to elsewhere
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _sync_directory(directory: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_link(path: Path) -> Path:
    """Return a path below a cache, or raise OSError if it is a symbolic link: writing to it would write elsewhere."""
    if path.is_symlink():
        raise OSError(f"{path} is a symbolic link, which Mirage never makes there; remove it")
    return path


def write_json(path: Path, content: Any) -> None:
    """Write plain values atomically as JSON."""
    write_atomically(path, lambda file: file.write(json.dumps(content).encode()))
