"""When a callback is due, and where its numbers go: both follow the clock ``images_seen``."""

import math
from typing import Any

import lightning as L

from lightning_modules.protocols import Clocked


def crossed(every_images: int, module: Clocked) -> bool:
    """Tell whether the batch that just ended carried the clock over a multiple of ``every_images``, or to the end.

    A pure function of the clock: a resumed run does what the uninterrupted one did, at the same images.
    """
    now = module.images_seen
    if now >= module.schedule.total_images:
        return True
    return now // every_images > _before(module) // every_images


def reached(images: int, module: Clocked) -> bool:
    """Tell whether the batch that just ended carried the clock to so many images, or over them."""
    return _before(module) < images <= module.images_seen


def _before(module: Clocked) -> int:
    """Return the clock before the batch that just ended."""
    return module.images_seen - module.schedule.at(module.images_seen - 1).batch_size


def log_numbers(
    trainer: L.Trainer, module: Clocked, numbers: dict[str, float], words: dict[str, str] | None = None
) -> None:
    """Write numbers, and words beside them, to every logger under the present clock.

    The newest value of each number is kept in the run's record.
    """
    module.record.latest.update(numbers)
    # No step: Lightning's counts optimizer steps, and W&B refuses to go back to an earlier one after a resume.
    row: dict[str, Any] = {**numbers, **(words or {}), "images_seen": module.images_seen}
    for logger in trainer.loggers:
        logger.log_metrics(row)


def check_cadence(name: str, every_images: float) -> None:
    """Raise ValueError unless a cadence is a positive number of images."""
    if not every_images > 0 or math.isinf(every_images):
        raise ValueError(f"{name}={every_images}: must be positive (to leave the callback out, set it to null)")
