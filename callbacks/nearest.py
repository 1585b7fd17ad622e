"""Generated images beside the training images that are nearest to them."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch.nn import functional as F

from callbacks.clock import check_cadence, crossed, log_numbers
from callbacks.divergence import assert_finite
from callbacks.real_images import real_images, spread
from callbacks.sample_grid import enlarged, write_grid
from lightning_modules.metrics.neighbours import nearest_images
from lightning_modules.protocols import Samples


class NearestTraining(L.Callback):
    """Writes ``samples/nearest_<clock>.png`` and logs ``nearest/ratio``.

    In the picture every generated image is followed by the training image that is nearest in pixels. The ratio compares
    the mean distance of generated images to their nearest training image with that of held-out images: about 1 if the
    generator is as far from the training images as new patients are, near 0 if it copies them. Blurred images lie
    nearer to everything, so a ratio below 1 proves nothing by itself.

    Args:
        every_images: Images between two pictures.
        count: Generated images, and held-out images for the ratio, at most.
        columns: Pairs in a row.
        seed: Names the latents.
        split: Held-out images: "val" or "test".
    """

    needs = Samples

    def __init__(
        self, every_images: int = 100_000, count: int = 32, columns: int = 4, seed: int = 0, split: str = "val"
    ) -> None:
        check_cadence("every_images", every_images)
        if count < 1 or columns < 1:
            raise ValueError(f"count={count}, columns={columns}: must be at least 1")
        if split not in ("val", "test"):
            raise ValueError(f"split={split!r}: must be val or test")
        self.every_images, self.count, self.columns = every_images, count, columns
        self.seed, self.split = seed, split

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Samples, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the picture on the clock, unless training has diverged."""
        if crossed(self.every_images, pl_module):
            assert_finite(trainer, pl_module)  # asks all processes
            self._write(trainer, pl_module)

    @rank_zero_only
    def _write(self, trainer: L.Trainer, pl_module: Samples) -> None:
        data = real_images(trainer)
        images = F.interpolate(pl_module.sample(self.count, seed=self.seed), pl_module.image_size)
        held_out = spread(data, self.split, self.count).to(images.device) if data.size(self.split) else images[:0]
        # One reading of the training images for both: the other processes wait.
        found, neighbours = nearest_images(torch.cat([images, held_out]), data.images("train", 64))
        distances, usual = found.split([len(images), len(held_out)])
        pairs = enlarged(torch.stack([images, neighbours[: len(images)]], dim=1).flatten(0, 1))
        path = Path(trainer.default_root_dir) / "samples" / f"nearest_{pl_module.images_seen:012d}.png"
        write_grid(pairs, path, 2 * self.columns)
        numbers = {"nearest/distance": float(distances.mean())}
        if len(held_out):
            numbers["nearest/ratio"] = float(distances.mean() / usual.mean())
        log_numbers(trainer, pl_module, numbers)
