"""Growth of a progressive GAN, on the clock."""

import logging
from typing import Any

import lightning as L

from lightning_modules.protocols import Clocked
from lightning_modules.schedules import Point

log = logging.getLogger(__name__)


class FadeIn(L.Callback):
    """Brings the networks to the stage and alpha of the clock after each batch; says so at a new stage.

    It runs before all other callbacks, so that scores and pictures show what a checkpoint of the same clock holds.

    The module refuses to train networks that are not where the schedule says, so leaving this callback out is an error
    and not a run that never grows.

    Args:
        reset_optimizers: Forget the optimizers' averages at a new stage (the paper's published code does).
    """

    def __init__(self, reset_optimizers: bool = True) -> None:
        self.reset_optimizers = reset_optimizers

    def on_train_start(self, trainer: L.Trainer, pl_module: Clocked) -> None:
        """Begin at the clock of the checkpoint."""
        point = pl_module.schedule.at(pl_module.images_seen)
        pl_module.set_point(point)
        if point.stage > 0 and point.images_seen == point.stage_start:
            # What the checkpoint holds is of the stage before, if the stage began elsewhere when it was written.
            self._begin_stage(trainer, point)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Clocked, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Set stage and alpha, pure functions of the clock, so that a resumed run needs nothing else.

        A new stage is told by the stage of the batch that has ended: a run whose batch was changed in mid-stage need
        not hit the stage's start. What the optimizers forget here is forgotten in the checkpoint of this clock as well.
        """
        point = pl_module.schedule.at(pl_module.images_seen)
        pl_module.set_point(point)
        if point.stage != pl_module.schedule.at(batch["images_seen"]).stage:
            self._begin_stage(trainer, point)

    def _begin_stage(self, trainer: L.Trainer, point: Point) -> None:
        height, width = point.resolution
        log.info("images_seen %d: growing to %dx%d, batch %d", point.images_seen, height, width, point.batch_size)
        if self.reset_optimizers:
            for optimizer in trainer.optimizers:
                optimizer.state.clear()
