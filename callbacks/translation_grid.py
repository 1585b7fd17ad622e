"""Pictures of what a translator makes of held-out sources, always of the same ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from callbacks.clock import check_cadence, crossed
from callbacks.generated import check_sources, real_pairs
from callbacks.real_images import RealPairs, even_rows
from callbacks.sample_grid import enlarged, write_grid
from lightning_modules.protocols import Translates


class TranslationGrid(L.Callback):
    """Writes ``samples/images_<clock>.png`` and, once, ``samples/real.png``, and hands them to the loggers.

    In the first, a row is a source, its translation and, if the data is paired, the target and the difference:
    translation minus target, grey where they agree, lighter where the translation is. In the second, a row is a source
    and a target.

    Args:
        every_images: Images between two grids.
        count: Rows, at most; there may be fewer sources.
        split: Whose sources are shown: "train", "val" or "test".
        seed: Of what a noisy network draws.
    """

    needs = Translates

    def __init__(self, every_images: int = 20_000, count: int = 8, split: str = "val", seed: int = 0) -> None:
        check_cadence("every_images", every_images)
        if count < 1:
            raise ValueError(f"count={count}: must be at least 1")
        if split not in ("train", "val", "test"):
            raise ValueError(f"split={split!r}: must be train, val or test")
        self.every_images, self.count, self.split, self.seed = every_images, count, split, seed

    def on_fit_start(self, trainer: L.Trainer, pl_module: Translates) -> None:
        """Refuse an empty split."""
        check_sources(trainer, self, self.split)

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: Translates) -> None:
        """Write the sources and targets that translations can be compared with."""
        path = Path(trainer.default_root_dir) / "samples" / "real.png"
        if not path.exists():
            data = real_pairs(trainer)
            sources = self._sources(data)
            write_rows([sources, self._targets(data, len(sources))], path)

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Translates, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a grid on the clock."""
        if not crossed(self.every_images, pl_module):
            return
        data = real_pairs(trainer)
        sources = self._sources(data)
        made = pl_module.translate(sources.to(pl_module.device), seed=self.seed).cpu()
        target = self._targets(data, len(sources)) if data.paired else None
        compared = [] if target is None else [target, (made - target) / 2.0]
        path = Path(trainer.default_root_dir) / "samples" / f"images_{pl_module.images_seen:012d}.png"
        write_rows([sources, made, *compared], path)
        for logger in trainer.loggers:
            if hasattr(logger, "log_picture") and path.exists():  # the record holds numbers only
                logger.log_picture("samples", path, pl_module.images_seen)

    def _sources(self, data: RealPairs) -> Tensor:
        return data.sources(self.split, even_rows(data.source_size(self.split), self.count))

    def _targets(self, data: RealPairs, count: int) -> Tensor:
        """Return targets, those of ``_sources`` if the data is paired."""
        return data.select(self.split, even_rows(data.size(self.split), count))


def write_rows(columns: Sequence[Tensor], path: Path) -> None:
    """Write images (N, C, H, W) of several kinds as a PNG, image i of each in row i; see ``write_grid``.

    Kinds may differ in channels: one channel is repeated where others have three; of two and four the first is shown.
    """
    shown = [images if images.shape[1] in (1, 3) else images[:, :1] for images in columns]
    most, count = max(images.shape[1] for images in shown), min(map(len, shown))
    together = [enlarged(images[:count]).expand(-1, most, -1, -1) for images in shown]
    write_grid(torch.stack(together, dim=1).flatten(0, 1), path, len(columns))
