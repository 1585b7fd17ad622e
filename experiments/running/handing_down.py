"""What a process knows from the one that started it: where a run begins, handed down to those that Lightning starts.

Nothing heavy is imported: a signal may come while torch is being imported, and ``run.py`` then asks who started it.
"""

import json
import os
from pathlib import Path

_VARIABLE = "MIRAGE_START"


def hand_down(directory: Path, checkpoint: Path | None) -> None:
    """Tell the processes that this one will start; its pid tells them from any later child of theirs."""
    os.environ[_VARIABLE] = json.dumps([os.getpid(), str(directory), str(checkpoint) if checkpoint else None])


def handed_down() -> tuple[Path, Path | None] | None:
    """Return the run directory and the checkpoint from which it goes on, or None if no first process has said them."""
    text = os.environ.get(_VARIABLE)
    if not text:
        return None
    parent, directory, checkpoint = json.loads(text)
    if parent != os.getppid():
        return None
    return Path(directory), Path(checkpoint) if checkpoint else None


def started_by_the_first_process() -> bool:
    """Tell whether Lightning started this process from the first one."""
    return handed_down() is not None


def launched_rank() -> int:
    """Return this process's number among those that torchrun or SLURM has started, 0 if they have started none."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def forget() -> None:
    """End the handing down: runs that this process starts later are no part of the one that has ended."""
    os.environ.pop(_VARIABLE, None)
