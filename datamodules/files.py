"""Writing files so that a kill leaves the old file or the new one, never half of one.

The twin of ``callbacks/files.py``: the data packages import none of the others.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write beside the target (whose folder must be there), flush to the disk, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write plain values atomically as JSON."""
    write_atomically(path, lambda file: file.write(json.dumps(content).encode()))
