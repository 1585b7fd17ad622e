"""A training step without a trainer, for measuring: the phases of a family, its optimizers, the averaged generator."""

from collections.abc import Callable
from typing import Literal, cast

import lightning as L

from lightning_modules.ema import ema_update
from lightning_modules.protocols import Averages, can
from lightning_modules.schedules import Point
from lightning_modules.step import PhasedModule


def bare_step(module: PhasedModule, point: Point, batch_size: int, precision: str) -> Callable[[], None]:
    """Return a function that trains one batch as training does, average included, on batches that are made up.

    All phases run, also those that are due in some batches only.

    Args:
        module: The family, on its device.
        point: Where in its growth the module is to be measured.
        batch_size: Images of the batch.
        precision: "32-true" or "bf16-mixed".
    """
    module.set_point(point)
    fabric = L.Fabric(
        accelerator="gpu" if module.device.type == "cuda" else "cpu",
        devices=1,
        precision=cast(Literal["32-true", "bf16-mixed"], precision),
    )
    fabric.setup(module, *module.configure_optimizers(), move_to_device=False)
    batch = module.example_batch(batch_size, point)

    def step() -> None:
        with fabric.autocast():
            for phase in module.phases():
                module.run_phase(phase, batch, point)
        if can(module, Averages):
            ema_update(module.generator_ema, module.generator, 0.999)
        module.images_seen += batch_size

    return step
