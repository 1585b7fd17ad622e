"""What to tell a user about an error that is not Mirage's: what happened, and what to do."""

import errno
import re
import traceback

import torch

from datamodules.batches.reading_processes import SharedMemoryError
from experiments.running.shared_memory import WHAT_TO_DO


class FaultError(RuntimeError):
    """The machine ended the run; the message says what happened and what to do."""


class OutOfMemoryError(FaultError):
    """Memory ran out.

    Args:
        message: What happened.
        images_seen: The clock at which it did.
    """

    def __init__(self, message: str, images_seen: int) -> None:
        super().__init__(message)
        self.images_seen = images_seen


def explain(error: BaseException) -> str | None:
    """Return a sentence for an error that the machine has caused, or None for one that needs its traceback."""
    text = str(error)
    if is_out_of_memory(error):
        return f"out of memory ({' '.join(text.split())[:200]})"
    if reason := _shared_memory_is_full(error):
        return f"a process that reads images got no shared memory ({reason}); {WHAT_TO_DO}; resume=auto goes on"
    if match := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", text):
        return (
            f"a process that reads images (pid {match[1]}) was killed, often because memory or shared memory ran out; "
            "resume=auto goes on, data.num_workers=0 reads without such processes"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error}); free some space, resume=auto goes on"
    return None


def _shared_memory_is_full(error: BaseException) -> str | None:
    """Return the reason if that is what an error says.

    It comes from a reader that puts its batch there, from one that was killed when it wrote to pages that there are not
    (torch's own error then hides the signal, which is its cause), or from the queues: their semaphores lie there.
    """
    if isinstance(error, SharedMemoryError):  # which brings the reader's traceback along
        return str(error).strip().split("\n")[-1].partition("SharedMemoryError: ")[2]
    for text in (str(error), str(error.__cause__)):
        if "killed by signal: Bus error" in text:
            return text.partition(". It is possible")[0]
    in_a_queue = any("multiprocessing" in frame.filename for frame in traceback.extract_tb(error.__traceback__))
    return str(error) if isinstance(error, OSError) and error.errno == errno.ENOSPC and in_a_queue else None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out; torch has no class of its own for that on CPUs."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
