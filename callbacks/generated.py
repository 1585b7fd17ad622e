"""What a family has made, and what its discriminator is told: the one place that knows what images are made from."""

from typing import cast

import lightning as L
import torch
from torch import Tensor

from callbacks.real_images import RealPairs, even_rows, real_images
from lightning_modules.protocols import Averages, Samples, Translates, can


class EmptySplitError(RuntimeError):
    """A callback looks at a part of the data in which there is nothing."""


def check_sources(trainer: L.Trainer, callback: L.Callback, split: str) -> None:
    """Raise EmptySplitError if a split of a translator's data has no sources or no targets."""
    data = real_pairs(trainer)
    if not min(data.size(split), data.source_size(split)):
        what = f"{data.source_size(split)} sources and {data.size(split)} targets"
        raise EmptySplitError(
            f"{type(callback).__name__} looks at split {split!r}, which has {what}: raise data.{split}_fraction, or "
            "name another split"
        )


def real_pairs(trainer: L.Trainer) -> RealPairs:
    """Return the data module of a translator."""
    return cast(RealPairs, trainer.datamodule)  # type: ignore[attr-defined]


def how_many(trainer: L.Trainer, module: Averages, split: str, count: int) -> int:
    """Return how many images a family can make: of a translator not more than there are sources in a split."""
    return min(count, real_pairs(trainer).source_size(split)) if can(module, Translates) else count


def share_of(trainer: L.Trainer, count: int) -> range:
    """Return this process's part of images 0 .. count - 1, which follow each other; the last may have none."""
    per_process = -(-count // trainer.world_size)
    first = trainer.global_rank * per_process
    return range(first, min(first + per_process, count))


def generated(
    trainer: L.Trainer, module: Averages, split: str, count: int, seed: int, start: int, stop: int, ema: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Make some of the images that belong to a seed; a translator's are of sources from all over a split.

    Args:
        trainer: The trainer of the run.
        module: What makes them.
        split: Whose sources a translator is given.
        count: Images of the whole list; see ``how_many``.
        seed: Names the list.
        start: First image.
        stop: Image behind the last.
        ema: Use the averaged generator, else the live one.

    Returns:
        The images (stop - start, C, H, W), not clamped, and what a conditional discriminator is told of them.
    """
    if can(module, Translates):
        data = real_pairs(trainer)
        sources = data.sources(split, even_rows(data.source_size(split), count)[start:stop]).to(module.device)
        return module.unclamped_translation(sources, seed, ema, start), sources
    assert can(module, Samples)
    labels = module.sample_labels(stop - start, seed, start)
    return module.unclamped_sample(stop - start, labels, seed=seed, ema=ema, start=start), labels


def told_of_real(trainer: L.Trainer, module: Averages, split: str, count: int) -> Tensor | None:
    """Return what a conditional discriminator is told of the real images of ``spread``: labels, sources, or nothing."""
    data = real_images(trainer)
    rows = even_rows(data.size(split), count)
    if can(module, Translates):
        pairs = real_pairs(trainer)
        return pairs.sources(split, rows).to(module.device) if pairs.paired else None
    return module.labels_of({"label": data.labels(split, rows)}).to(module.device) if module.classes else None


def broadcast_buffers(trainer: L.Trainer, module: Averages) -> None:
    """Give every process the first one's batch-norm statistics: each saw other images, only the first's are saved."""
    if trainer.world_size > 1:
        for buffer in module.generator_ema.buffers():
            torch.distributed.broadcast(buffer, src=0)
