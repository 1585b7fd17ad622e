"""The progress bar, on the clock."""

import logging
import time
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from callbacks.clock import check_cadence, crossed
from lightning_modules.protocols import Clocked

log = logging.getLogger(__name__)

# Later stages are slower: the time left at the present speed would be far too short.
WITHOUT_TIME_LEFT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"


class Progress(L.Callback):
    """Shows clock, stage, alpha, images/s, time left, health, losses and last score: a bar on a terminal, else lines.

    Args:
        every_images: Images between two lines where there is no terminal.
    """

    def __init__(self, every_images: int = 20_000) -> None:
        check_cadence("every_images", every_images)
        self.every_images = every_images
        self._bar: tqdm | None = None

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: Clocked) -> None:
        """Begin at the clock of the checkpoint."""
        self._started, self._first = time.monotonic(), pl_module.images_seen
        bar = tqdm(
            total=pl_module.schedule.total_images,
            initial=pl_module.images_seen,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.05,
            disable=None,  # where there is no terminal
        )
        self._bar = None if bar.disable else bar

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Clocked, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on; the numbers shown are the newest that were logged, so that nothing waits for the device."""
        if self._bar is not None:
            self._bar.bar_format = WITHOUT_TIME_LEFT if _will_grow(pl_module) else None
            self._bar.set_postfix_str(_status(pl_module), refresh=False)
            self._bar.update(pl_module.images_seen - self._bar.n)
        elif crossed(self.every_images, pl_module):
            now, images_seen = time.monotonic(), pl_module.images_seen
            speed = (images_seen - self._first) / max(now - self._started, 1e-9)
            self._started, self._first = now, images_seen
            left = pl_module.schedule.at(images_seen).images_left / max(speed, 1e-9)
            at_least = "at least " if _will_grow(pl_module) else ""  # later stages are slower
            log.info(
                "images_seen %d (%.0f %%)  %.3g img/s  %s%s left  %s",
                images_seen,
                100 * min(images_seen / pl_module.schedule.total_images, 1.0),
                speed,
                at_least,
                tqdm.format_interval(left),
                _status(pl_module),
            )

    @rank_zero_only
    def teardown(self, trainer: L.Trainer, pl_module: Clocked, stage: str) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _will_grow(module: Clocked) -> bool:
    return module.schedule.at(module.images_seen).stage < module.schedule.stages()[-1].stage


def _status(module: Clocked) -> str:
    """Return growth, health and the newest numbers."""
    return "  ".join(part for part in (_growth(module), module.record.verdict, _numbers(module.record.latest)) if part)


def _growth(module: Clocked) -> str:
    """Return resolution and fade-in of a growing network, else nothing."""
    if not module.grows:
        return ""
    point = module.schedule.at(module.images_seen)
    return f"{point.resolution[0]}x{point.resolution[1]} alpha {point.alpha:.2f}"


def _numbers(latest: dict[str, float]) -> str:
    shown = {name.split("/", 1)[1]: value for name, value in latest.items() if name.startswith(("loss/", "score/"))}
    return "  ".join(f"{name} {value:.3g}" for name, value in shown.items())
