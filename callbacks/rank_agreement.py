"""Stops a multi-process run whose processes no longer hold the same weights."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from callbacks.clock import check_cadence, crossed
from lightning_modules.protocols import Clocked


class RankAgreement(L.Callback):
    """Compares a checksum of all trained weights and their averages between the processes; does nothing with one.

    Data-parallel training that loses a gradient somewhere goes on silently with different networks on every process.

    Args:
        every_images: Images between two comparisons.
    """

    def __init__(self, every_images: int = 100_000) -> None:
        check_cadence("every_images", every_images)
        self.every_images = every_images

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Clocked, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare on the clock.

        Raises:
            RuntimeError: On every process, if the checksums differ.
        """
        if trainer.world_size == 1 or not crossed(self.every_images, pl_module):
            return
        gathered = pl_module.all_gather(weight_checksum(pl_module))
        assert isinstance(gathered, Tensor)
        sums = gathered.flatten().tolist()
        if len(set(sums)) > 1:
            raise RuntimeError(
                f"the processes hold different weights at images_seen={pl_module.images_seen} (checksums {sums}); "
                "a loss was probably differentiated with loss.backward() instead of manual_backward"
            )


def weight_checksum(module: Clocked) -> Tensor:
    """Return the sum of all parameters' bits, as one int64: equal weights have equal sums, exactly."""
    sums = [
        parameter.detach().contiguous().view(torch.int32).sum(dtype=torch.int64) for parameter in module.parameters()
    ]
    return torch.stack(sums).sum()
