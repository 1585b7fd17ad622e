"""Exponential moving average of the generator."""

from typing import Any

import lightning as L

from lightning_modules.ema import ema_decay, ema_update
from lightning_modules.protocols import Averages


class GeneratorEMA(L.Callback):
    """Updates ``generator_ema`` after every step of the generator; nothing is ever swapped.

    Give one of ``half_life_images`` and ``decay_per_step``. The average is part of the module, so it lies in every
    checkpoint.

    Args:
        half_life_images: Images after which an old weight counts half (Karras 2019: 10,000).
        decay_per_step: Decay per step of the generator (Karras 2018: 0.999).
        ramp_up: The half-life is at most this share of the images seen (Karras 2020b: 0.05); None = no ramp-up.
            Only with ``half_life_images``.
        start_images: Until here the average equals the live generator.
    """

    needs = Averages

    def __init__(
        self,
        half_life_images: float | None = None,
        decay_per_step: float | None = None,
        ramp_up: float | None = None,
        start_images: int = 0,
    ) -> None:
        if (half_life_images is None) == (decay_per_step is None):
            raise ValueError("give one of half_life_images and decay_per_step, and set the other to null")
        if half_life_images is not None and half_life_images <= 0:
            raise ValueError(f"half_life_images={half_life_images}: must be positive")
        if decay_per_step is not None and not 0 <= decay_per_step < 1:
            raise ValueError(f"decay_per_step={decay_per_step}: must lie in 0 to below 1")
        if ramp_up is not None and (ramp_up <= 0 or half_life_images is None):
            raise ValueError(f"ramp_up={ramp_up}: must be positive, and needs half_life_images")
        if start_images < 0:
            raise ValueError(f"start_images={start_images}: must not be negative")
        self.half_life_images, self.decay_per_step = half_life_images, decay_per_step
        self.ramp_up, self.start_images = ramp_up, start_images

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Averages, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average towards the generator if this batch had a generator step."""
        point = pl_module.schedule.at(batch["images_seen"])
        phase = next(phase for phase in pl_module.phases() if phase.name == "generator")
        if phase.cadence.due(point.batch_index):
            decay = self._decay(point.batch_size * phase.cadence.cycle(point.batch_index), pl_module.images_seen)
            ema_update(pl_module.generator_ema, pl_module.generator, decay)

    def _decay(self, images: int, images_seen: int) -> float:
        if images_seen <= self.start_images:
            return 0.0
        if self.half_life_images is None:
            assert self.decay_per_step is not None
            return self.decay_per_step
        return ema_decay(images, images_seen, self.half_life_images, self.ramp_up)
