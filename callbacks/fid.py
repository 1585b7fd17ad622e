"""The periodic score: Frechet distance between real images and those of the averaged generator."""

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F

from callbacks.checkpoint import is_intact
from callbacks.clock import check_cadence, crossed
from callbacks.divergence import assert_finite
from callbacks.files import training_goes_on, write_atomically
from callbacks.generated import broadcast_buffers, generated, how_many, real_pairs, share_of
from callbacks.real_images import even_rows, real_images
from callbacks.scores import ScoreLog, hash_of
from callbacks.version import code_version
from lightning_modules.metrics.efficientnet import EfficientNetLite0
from lightning_modules.metrics.features import ExtractorError, FeatureExtractor
from lightning_modules.metrics.frechet import GaussianStatistics, frechet_distance
from lightning_modules.metrics.torchmetrics_scores import FrechetDistance
from lightning_modules.protocols import Averages, Translates, can
from lightning_modules.run_record import Score

log = logging.getLogger(__name__)

DEAR = 0.05  # share of a run's time above which scores are said to take much of it
_SCORES = 3  # that a share is taken over


class FrechetScore(L.Callback):
    """Logs ``score/<extractor's name>`` of the averaged generator on the clock, at the start and at the end.

    Always at the final resolution, also while a network grows: pixels of smaller images are repeated, so that scores of
    all stages can be compared. Every process generates and measures its share. Statistics of the real images are
    computed once and kept on disk under a fingerprint of images and extractor. What the score was made of is written to
    ``scores.jsonl`` with it.

    It says how much of the run's time it takes, and warns if that is more than a twentieth. What it does does not
    depend on that: a score's name and clock are the same on every machine.

    Args:
        every_images: Images between two scores.
        count: Images to generate; of a translator at most as many as there are sources in the split.
        split: Real images to compare with: "train", "val" or "test"; a translator is given its sources.
        max_real: Real images to use at most, from all over the split; None = all of it.
        batch_size: Images per forward pass and process.
        seed: Names the generated images; the same ones are used every time.
        extractor: Where the features come from; None = ``EfficientNetLite0``, which needs no download.

    Attributes:
        seconds: Time that scores have taken in this process, with loading the extractor and the real statistics.
    """

    needs = Averages

    def __init__(
        self,
        every_images: int = 50_000,
        count: int = 2_000,
        split: str = "train",
        max_real: int | None = None,
        batch_size: int = 50,
        seed: int = 1,
        extractor: FeatureExtractor | None = None,
    ) -> None:
        check_cadence("every_images", every_images)
        if count < 2:
            raise ValueError(f"count={count}: a distribution needs at least 2 images")
        if split not in ("train", "val", "test"):
            raise ValueError(f"split={split!r}: must be train, val or test")
        if max_real is not None and max_real < 2:
            raise ValueError(f"max_real={max_real}: must be at least 2, or null for all")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        self.every_images, self.count, self.split, self.max_real = every_images, count, split, max_real
        self.batch_size, self.seed = batch_size, seed
        # Not a part of the module: its weights do not belong into checkpoints, nor into data-parallel training.
        self.extractor = extractor or EfficientNetLite0()
        self.seconds = 0.0
        self._real: GaussianStatistics | None = None
        self._generated_at: tuple[int, ...] = ()
        self._log = ScoreLog()

    def on_fit_start(self, trainer: L.Trainer, pl_module: Averages) -> None:
        """Load the extractor on this process's device; fetch its weights once per machine."""
        self._began = time.monotonic()
        if trainer.local_rank == 0:
            self.extractor.prepare()
        trainer.strategy.barrier("score extractor")
        self.extractor.load()
        self.extractor.to(pl_module.device).eval().requires_grad_(False)
        try:
            self.extractor(torch.zeros(1, pl_module.image_channels, *pl_module.image_size, device=pl_module.device))
        except (ValueError, RuntimeError) as error:
            what = f"{pl_module.image_channels} channels of {pl_module.image_size[0]}x{pl_module.image_size[1]} pixels"
            name = type(self.extractor).__name__
            raise ExtractorError(f"callbacks.score.extractor={name}: cannot measure {what} ({error})") from error
        self.seconds = time.monotonic() - self._began
        self._watch = Watch(self.every_images)
        log.info(
            "periodic score: %s of %s generated images, every %s images",
            self.extractor.score_name,
            f"{how_many(trainer, pl_module, self.split, self.count):,}",
            f"{self.every_images:,}",
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: Averages) -> None:
        """Score the untrained generator, so that a falling score has a beginning."""
        if pl_module.images_seen == 0:
            self._score(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Averages, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score on the clock."""
        if crossed(self.every_images, pl_module):
            assert_finite(trainer, pl_module)
            self._score(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Averages) -> None:
        """Say what scores have cost."""
        whole = time.monotonic() - self._began
        log.info("periodic scores took %.3g s, %.2g %% of %.3g s", self.seconds, 100 * self.seconds / whole, whole)

    def _score(self, trainer: L.Trainer, module: Averages) -> None:
        started = time.monotonic()
        self._take(trainer, module)
        ended = time.monotonic()
        self.seconds += ended - started
        # Earlier stages of a growing network are faster: of the last one alone it can be told what a run will take.
        if module.schedule.at(module.images_seen).stage == module.schedule.stages()[-1].stage:
            warning = self._watch.warning(started, ended)
            if warning:
                log.warning("%s", warning)

    def _take(self, trainer: L.Trainer, module: Averages) -> None:
        if self._real is None:
            self._real = self._real_statistics(trainer, module)
        broadcast_buffers(trainer, module)
        fake = self._statistics(module, self._generated(trainer, module))
        name = f"score/{self.extractor.score_name}"
        fingerprint = self._fingerprint(trainer, module, fake.count)
        # One process's value for all: the choice of the best checkpoint must not hang on the last bit.
        value, key = trainer.strategy.broadcast((frechet_distance(self._real, fake), hash_of(fingerprint)[:8]), src=0)
        about = {"generated_at": list(self._generated_at), **fingerprint}
        self._log.add(trainer, module, Score(name, key, value), about)

    def _generated(self, trainer: L.Trainer, module: Averages) -> Iterator[Tensor]:
        """Yield this process's share of images 0 .. count - 1 of the seed, at the final resolution."""
        count = how_many(trainer, module, self.split, self.count)
        share = share_of(trainer, count)
        for start in share[:: self.batch_size]:
            stop = min(start + self.batch_size, share.stop)
            images, _ = generated(trainer, module, self.split, count, self.seed, start, stop)
            images = images.clamp(-1.0, 1.0)
            self._generated_at = tuple(images.shape[2:])
            yield F.interpolate(images, module.image_size) if self._generated_at != module.image_size else images

    def _statistics(self, module: Averages, batches: Iterator[Tensor]) -> GaussianStatistics:
        """Return statistics over all processes."""
        metric = FrechetDistance(self.extractor).to(module.device)
        for images in batches:
            metric.update(images, real=False)
        return metric.statistics(real=False)

    def _real_statistics(self, trainer: L.Trainer, module: Averages) -> GaussianStatistics:
        data = real_images(trainer)
        path = Path(data.cache_dir) / "statistics" / f"{self._real_key(trainer, module)}.pt"
        if (size := min(data.size(self.split), how_many(trainer, module, self.split, self.count))) < 2:
            raise ExtractorError(
                f"callbacks.score.split={self.split!r}: the split has {size} images, a score needs at least 2; raise "
                f"data.{self.split}_fraction or score against train"
            )
        # All processes must take the same way, also where every machine has a cache of its own.
        stored = _stored_statistics(path, self.extractor.dimensions)
        if trainer.strategy.reduce_boolean_decision(stored is not None, all=True):
            assert stored is not None
            return stored
        statistics = self._statistics(module, self._real_images(trainer))
        if trainer.is_global_zero:
            with training_goes_on(path):
                parts = {"mean": statistics.mean, "covariance": statistics.covariance, "count": statistics.count}
                write_atomically(path, lambda file: torch.save(parts, file))
        return statistics

    def _real_images(self, trainer: L.Trainer) -> Iterator[Tensor]:
        """Yield this process's share of ``max_real`` images from all over the split."""
        data = real_images(trainer)
        size = data.size(self.split)
        share = even_rows(size, self.max_real or size)[trainer.global_rank :: trainer.world_size]
        for start in range(0, len(share), self.batch_size):
            yield data.select(self.split, share[start : start + self.batch_size])

    def _real_key(self, trainer: L.Trainer, module: Averages) -> str:
        images = [real_images(trainer).fingerprint(self.split), "even rows", self.max_real]
        what = [*images, self.extractor.identity(), module.device.type]
        return hash_of(what)[:20]

    def _fingerprint(self, trainer: L.Trainer, module: Averages, made: int) -> dict[str, Any]:
        """Return what two scores must share to be compared."""
        assert self._real is not None
        data = real_images(trainer)
        return {
            "metric": "frechet_distance",
            "code_version": code_version(),
            **self.extractor.identity(),
            "generated": made,
            "real": self._real.count,
            "data_set": type(data).__name__,
            "data_fingerprint": data.fingerprint(self.split),
            "split": self.split,
            "resolution": list(module.image_size),
            "upsampling": "repeated pixels",
            "dtype": "float32",
            "device": module.device.type,  # a GPU rounds the factors of a convolution to TF32
            "generator": "ema",
            "seed": self.seed,
            **self._sources(trainer, module),
        }

    def _sources(self, trainer: L.Trainer, module: Averages) -> dict[str, str]:
        return {"sources": real_pairs(trainer).source_fingerprint(self.split)} if can(module, Translates) else {}


class Watch:
    """Tells once if scores take more than a twentieth of a run, from when they began and ended.

    Args:
        every_images: Images between two scores.
    """

    def __init__(self, every_images: int) -> None:
        self.every_images = every_images
        self._first: float | None = None  # when the first score had ended; it took the real statistics, too
        self._spent, self._count, self._said = 0.0, 0, False

    def warning(self, started: float, ended: float) -> str:
        """Return what there is to say after a score, or nothing.

        Args:
            started: When it began, in seconds of any clock.
            ended: When it had ended.
        """
        if self._first is None:
            self._first = ended
            return ""
        self._spent, self._count = self._spent + ended - started, self._count + 1
        share = self._spent / max(ended - self._first, 1e-9)
        if self._said or self._count < _SCORES or share <= DEAR:
            return ""
        self._said = True
        factor = share * (1.0 - DEAR) / (DEAR * max(1.0 - share, 1e-9))
        return (
            f"periodic scores take {share:.0%} of the time, {self._spent / self._count:.3g} s each: "
            f"callbacks.score.every_images={_rounded_up(self.every_images * factor)} (now {self.every_images}) would "
            f"make it {DEAR:.0%}; a smaller callbacks.score.count makes each cheaper"
        )


def _rounded_up(number: float) -> int:
    """Return a number with two digits that count, not below."""
    step = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / step) * step


def _stored_statistics(path: Path, dimensions: int) -> GaussianStatistics | None:
    """Return what an earlier run has computed, or None if there is nothing or it is damaged."""
    if not path.is_file():
        return None
    try:
        if not is_intact(path):
            raise ValueError("it is no archive of torch's, or not whole")
        state = torch.load(path, map_location="cpu", weights_only=True)
        mean, covariance, count = state["mean"].double(), state["covariance"].double(), state["count"]
        if mean.shape != (dimensions,) or covariance.shape != (dimensions, dimensions) or not isinstance(count, int):
            raise ValueError("it holds something else")
    except Exception as error:  # unpickling raises nearly anything on damaged files
        log.warning("%s cannot be used (%s); the statistics are computed again", path, type(error).__name__)
        return None
    return GaussianStatistics(mean, covariance, count)
