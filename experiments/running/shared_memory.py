"""What reading processes need of the memory that they share with training, and what a container gives them."""

import math
import shutil
import sys

from datamodules.base import ImageDataModule
from lightning_modules.schedules import Point, Schedule

FOLDER = "/dev/shm"  # where Linux keeps it; other systems have no limit of their own for it
MIB = 2**20
WHAT_TO_DO = (
    "data.num_workers=0 needs none and is the fastest for the image cache; or give the container more: "
    "--shm-size of docker and podman, an emptyDir with medium: Memory on /dev/shm in Kubernetes"
)


def problems(data: ImageDataModule, schedule: Schedule, world_size: int, local: int) -> list[str]:
    """Return what keeps the reading processes of a machine from holding the batches of the largest stage.

    Args:
        data: Says what one process's readers need.
        schedule: Gives the batches.
        world_size: Processes over all machines, which share each batch.
        local: Processes of this machine, which share its memory.
    """
    if not data.num_workers or sys.platform != "linux":
        return []

    def needed(point: Point) -> int:
        return local * data.shared_bytes(-(-point.batch_size // world_size), point.resolution)

    largest = max(schedule.stages(), key=needed)
    total, free = _total_and_free()
    if needed(largest) <= free:
        return []
    (height, width), enough = largest.resolution, total - free + needed(largest)
    return [
        f"data.num_workers={data.num_workers}: reading {largest.batch_size} images of {height}x{width} per batch takes "
        f"{needed(largest) / MIB:.1f} MiB of shared memory, {FOLDER} has {free / MIB:.1f} MiB free of "
        f"{total / MIB:.1f}; {WHAT_TO_DO} (at least {math.ceil(enough / MIB)} MiB in all)"
    ]


def _total_and_free() -> tuple[int, int]:
    try:
        usage = shutil.disk_usage(FOLDER)
    except OSError:  # some containers have none
        return 0, 0
    return usage.total, usage.free
