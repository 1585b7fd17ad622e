"""A training step without a trainer, for measuring: the phases of a family, its optimizers, the averaged generator."""

from collections.abc import Callable

import torch
from torch import nn

from lightning_modules.ema import ema_update
from lightning_modules.protocols import Averages, can
from lightning_modules.schedules import Point
from lightning_modules.step import PhasedModule


def bare_step(module: PhasedModule, point: Point, batch_size: int, precision: str) -> Callable[[], None]:
    """Return a function that trains one batch as ``PhasedModule.training_step`` and the callback ``GeneratorEMA`` do.

    All phases run, also those that are due in some batches only.

    Args:
        module: The family, on its device.
        point: Where in its growth the module is to be measured.
        batch_size: Images of the batch.
        precision: "32-true" or "bf16-mixed".
    """
    module.set_point(point)
    optimizers = module.configure_optimizers()
    batch = module.example_batch(batch_size, point)

    def step() -> None:
        for phase in module.phases():
            optimizer = optimizers[phase.optimizer]
            trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
            frozen = [p for p in _trainable(module) if id(p) not in trained]
            for parameter in frozen:
                parameter.requires_grad_(False)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(module.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
                terms = phase.losses(batch)
            phase.minimised(terms).backward()
            for group in optimizer.param_groups:
                group.update(module.optimizer_values(phase, point))
            optimizer.step()
            if phase.after is not None:
                phase.after({name: term.detach() for name, term in terms.items()})
            for parameter in frozen:
                parameter.requires_grad_(True)
        if can(module, Averages):
            ema_update(module.generator_ema, module.generator, 0.999)
        module.images_seen += batch_size

    return step


def _trainable(module: PhasedModule) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
