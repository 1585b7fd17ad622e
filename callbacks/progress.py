"""The progress bar, on the clock."""

import logging
import time
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from callbacks.clock import check_cadence, crossed
from lightning_modules.gan import GANModule

log = logging.getLogger(__name__)


class Progress(L.Callback):
    """Shows images seen, images/s, time left, losses and last score: a bar on a terminal, else a line now and then.

    Args:
        every_images: Images between two lines where there is no terminal.
    """

    def __init__(self, every_images: int = 20_000) -> None:
        check_cadence("every_images", every_images)
        self.every_images = every_images
        self._bar: tqdm | None = None

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: GANModule) -> None:
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
        self, trainer: L.Trainer, pl_module: GANModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on; the numbers shown are the newest that were logged, so that nothing waits for the device."""
        if self._bar is not None:
            if pl_module.latest:
                self._bar.set_postfix_str(_numbers(pl_module.latest), refresh=False)
            self._bar.update(pl_module.images_seen - self._bar.n)
        elif crossed(self.every_images, pl_module):
            seconds = time.monotonic() - self._started
            speed = (pl_module.images_seen - self._first) / max(seconds, 1e-9)
            left = pl_module.schedule.at(pl_module.images_seen).images_left / max(speed, 1e-9)
            share = pl_module.images_seen / pl_module.schedule.total_images
            log.info(
                "images_seen %d (%.0f %%)  %.0f img/s  %s left  %s",
                pl_module.images_seen,
                100 * min(share, 1.0),
                speed,
                tqdm.format_interval(left),
                _numbers(pl_module.latest),
            )

    @rank_zero_only
    def teardown(self, trainer: L.Trainer, pl_module: GANModule, stage: str) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _numbers(latest: dict[str, float]) -> str:
    shown = {name.split("/", 1)[1]: value for name, value in latest.items() if name.startswith(("loss/", "score/"))}
    return "  ".join(f"{name} {value:.3g}" for name, value in shown.items())
