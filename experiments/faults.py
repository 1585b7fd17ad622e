"""What to tell a user about an error that is not Mirage's: what happened, and what to do."""

import errno
import re

import torch


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
    if match := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", text):
        return (
            f"a process that reads images (pid {match[1]}) was killed, often because memory ran out; resume=auto goes "
            "on, data.num_workers=0 reads without such processes"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error}); free some space, resume=auto goes on"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out; torch has no class of its own for that on CPUs."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
