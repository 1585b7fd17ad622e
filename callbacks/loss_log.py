"""Losses, learning rates and speed in the record."""

import time
from typing import Any

import lightning as L
import torch

from callbacks.clock import check_cadence, crossed, log_numbers
from callbacks.divergence import assert_finite_losses
from lightning_modules.protocols import Clocked


class LossLog(L.Callback):
    """Logs the mean of every loss since the last row, the learning rate scale, images/s and peak memory.

    Args:
        every_images: Images between two rows.
    """

    def __init__(self, every_images: int = 5_000) -> None:
        check_cadence("every_images", every_images)
        self.every_images = every_images
        self._since: tuple[float, int] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Clocked) -> None:
        """Start the clock of the speed."""
        self._since = time.monotonic(), pl_module.images_seen

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Clocked, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log on the clock. The means wait for the device, which is why this is not done in every batch."""
        if not crossed(self.every_images, pl_module):
            return
        assert_finite_losses(trainer, pl_module)
        means = {
            f"loss/{name}": float(trainer.strategy.reduce(mean, reduce_op="mean"))
            for name, mean in pl_module.losses.means().items()
        }
        pl_module.losses.reset()
        assert self._since is not None
        started, images = self._since
        self._since = time.monotonic(), pl_module.images_seen
        numbers = {
            **means,
            "learning_rate_scale": pl_module.learning_rate_scale(pl_module.schedule.at(batch["images_seen"])),
            "speed/images_per_second": (pl_module.images_seen - images) / max(self._since[0] - started, 1e-9),
        }
        if pl_module.device.type == "cuda":
            numbers["memory/peak_gib"] = torch.cuda.max_memory_allocated(pl_module.device) / 2**30
        log_numbers(trainer, pl_module, numbers)
