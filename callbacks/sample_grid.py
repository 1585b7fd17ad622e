"""Pictures of what the generator makes, always from the same latents."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

from callbacks.clock import check_cadence, crossed
from callbacks.files import training_goes_on, write_atomically
from callbacks.real_images import real_images, spread
from lightning_modules.protocols import Samples

SMALLEST = 32  # pixels a side of an image in a grid


class SampleGrid(L.Callback):
    """Writes ``samples/images_<clock>.png`` and, once, ``samples/real.png``, and hands them to the loggers.

    Args:
        every_images: Images between two grids.
        count: Images in a grid.
        columns: Images in a row.
        seed: Names the latents of the grid.
        truncation: Factor on the latents; 1 shows the generator as it is.
    """

    needs = Samples

    def __init__(
        self, every_images: int = 20_000, count: int = 64, columns: int = 8, seed: int = 0, truncation: float = 1.0
    ) -> None:
        check_cadence("every_images", every_images)
        if count < 1 or columns < 1:
            raise ValueError(f"count={count}, columns={columns}: must be at least 1")
        self.every_images, self.count, self.columns = every_images, count, columns
        self.seed, self.truncation = seed, truncation

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: Samples) -> None:
        """Write the real images that generated ones can be compared with."""
        path = Path(trainer.default_root_dir) / "samples" / "real.png"
        if not path.exists():
            write_grid(spread(real_images(trainer), "train", self.count), path, self.columns)

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Samples, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a grid on the clock."""
        if not crossed(self.every_images, pl_module):
            return
        images = pl_module.sample(self.count, truncation=self.truncation, seed=self.seed)
        path = Path(trainer.default_root_dir) / "samples" / f"images_{pl_module.images_seen:012d}.png"
        write_grid(enlarged(images), path, self.columns)
        for logger in trainer.loggers:
            if hasattr(logger, "log_picture") and path.exists():  # the record holds numbers only
                logger.log_picture("samples", path, pl_module.images_seen)


def enlarged(images: Tensor) -> Tensor:
    """Repeat the pixels of images (N, C, H, W) that are too small to be seen, as a growing network's are at first."""
    return F.interpolate(images, scale_factor=float(max(1, -(-SMALLEST // min(images.shape[2:])))))


def grid_picture(images: Tensor, columns: int) -> Image.Image:
    """Return images (N, C, H, W) in [-1, 1] as one 8-bit picture.

    One channel is shown grey, three as RGB, two and four as their channels side by side.
    """
    if images.shape[1] not in (1, 3):
        images = images.permute(0, 2, 1, 3).flatten(2).unsqueeze(1)
    grid = make_grid(images.cpu(), nrow=columns, padding=2, pad_value=-1.0)
    pixels = ((grid + 1.0) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if images.shape[1] == 1 else pixels)


def write_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write ``grid_picture`` as a PNG; the file is whole or absent. A full disk costs the picture, not the run."""
    picture = grid_picture(images, columns)
    with training_goes_on(path):
        write_atomically(path, lambda file: picture.save(file, format="PNG"))
