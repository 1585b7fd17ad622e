"""Processes that read batches: their signals, and the memory that they share with training."""

import mmap
import signal
from collections.abc import Sequence
from typing import Any

from torch import Tensor

READ_AHEAD = 2  # batches that each reading process prepares


class SharedMemoryError(RuntimeError):
    """A reading process got no shared memory for its batch; the message ends with the system's reason."""


def move_to_shared_memory(batch: Any) -> dict[str, Any]:
    """Move the tensors to where the training process can read them.

    torch does the same when the batch is sent, in a thread whose errors reach nobody: training would wait for ever.
    """
    try:
        return {key: value.share_memory_() if isinstance(value, Tensor) else value for key, value in batch.items()}
    except RuntimeError as error:
        raise SharedMemoryError(str(error).partition("\n")[0]) from error


def outlive_a_signal(worker: int) -> None:
    """Let a reading process live through the first signal of each kind.

    Ctrl-C and schedulers signal all processes of a job. The one that trains finishes its step and saves, for which it
    needs the readers; it ends them itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def shared_bytes(values: Sequence[int], workers: int) -> int:
    """Return the bytes of shared memory that the readers of one training process hold at most.

    Batches lie there from when they are read until they were trained on: those read ahead, one that Lightning fetches
    early, and the present one. Each tensor takes whole pages; the queues' semaphores take one each (counted with torch
    2.14 and Lightning 2.6).

    Args:
        values: Number of float32 values of each tensor of a batch.
        workers: Number of reading processes.
    """
    if not workers:
        return 0
    pages_of_a_batch = sum(-(-4 * count // mmap.PAGESIZE) for count in values)
    batches, semaphores = READ_AHEAD * workers + 2, 3 * workers + 9
    return (batches * pages_of_a_batch + semaphores) * mmap.PAGESIZE
