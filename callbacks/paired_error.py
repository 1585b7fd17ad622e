"""The periodic score of a translator whose data is paired: how far its translations lie from their targets."""

from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from callbacks.clock import check_cadence, crossed
from callbacks.divergence import assert_finite
from callbacks.generated import broadcast_buffers, check_sources, real_pairs, share_of
from callbacks.real_images import RealPairs, even_rows
from callbacks.scores import ScoreLog, hash_of
from callbacks.version import code_version
from lightning_modules.protocols import Translates
from lightning_modules.run_record import Score


class PairedError(L.Callback):
    """Logs ``score/mean_absolute_error`` of the averaged generator on the clock, at the start and at the end.

    It is the mean over pixels and pairs of |translation - target|, in the unit of the targets. Every process takes its
    share of the pairs. What the score was made of is written to ``scores.jsonl`` with it.

    Args:
        every_images: Images between two scores.
        split: Pairs to measure: "train", "val" or "test".
        max_pairs: Pairs to measure at most, from all over the split; None = all of it.
        batch_size: Pairs per forward pass and process.
        seed: Of what a noisy network draws.
    """

    needs = Translates

    def __init__(
        self,
        every_images: int = 50_000,
        split: str = "val",
        max_pairs: int | None = 2_000,
        batch_size: int = 16,
        seed: int = 1,
    ) -> None:
        check_cadence("every_images", every_images)
        if split not in ("train", "val", "test"):
            raise ValueError(f"split={split!r}: must be train, val or test")
        if max_pairs is not None and max_pairs < 1:
            raise ValueError(f"max_pairs={max_pairs}: must be at least 1, or null for all")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        self.every_images, self.split, self.max_pairs = every_images, split, max_pairs
        self.batch_size, self.seed = batch_size, seed
        self._log = ScoreLog()

    def on_fit_start(self, trainer: L.Trainer, pl_module: Translates) -> None:
        """Refuse an empty split."""
        check_sources(trainer, self, self.split)

    def on_train_start(self, trainer: L.Trainer, pl_module: Translates) -> None:
        """Score the untrained generator, so that a falling score has a beginning."""
        if pl_module.images_seen == 0:
            self._score(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Translates, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score on the clock."""
        if crossed(self.every_images, pl_module):
            assert_finite(trainer, pl_module)
            self._score(trainer, pl_module)

    def _score(self, trainer: L.Trainer, module: Translates) -> None:
        broadcast_buffers(trainer, module)
        data, intensity = real_pairs(trainer), module.data_facts["intensity"]
        pairs = even_rows(data.size(self.split), self.max_pairs or data.size(self.split))
        # Each process's errors at their places, so that their sum does not depend on the number of processes.
        errors = torch.zeros(len(pairs), dtype=torch.float64, device=module.device)
        share = share_of(trainer, len(pairs))
        for start in share[:: self.batch_size]:
            stop = min(start + self.batch_size, share.stop)
            errors[start:stop] = self._errors(data, module, pairs[start:stop], start)
        gathered = module.all_gather(errors).reshape(-1, len(pairs)).sum(dim=0)
        unit = (intensity["high"] - intensity["low"]) / 2.0  # of images in [-1, 1]
        value = float(gathered.mean()) * unit
        about = self._about(trainer, module, len(pairs))
        score = Score("score/mean_absolute_error", hash_of(about)[:8], trainer.strategy.broadcast(value, src=0))
        self._log.add(trainer, module, score, about)

    def _errors(self, data: RealPairs, module: Translates, pairs: np.ndarray, start: int) -> Tensor:
        """Return the mean absolute error of each pair, as images in [-1, 1]."""
        sources, targets = data.sources(self.split, pairs), data.select(self.split, pairs)
        made = module.translate(sources.to(module.device), self.seed, start=start)
        return (made - targets.to(module.device)).abs().double().mean(dim=(1, 2, 3))

    def _about(self, trainer: L.Trainer, module: Translates, pairs: int) -> dict[str, Any]:
        data = real_pairs(trainer)
        return {
            "metric": "mean_absolute_error",
            "unit": module.data_facts["intensity"]["unit"],
            "code_version": code_version(),
            "real": pairs,
            "data_set": type(data).__name__,
            "data_fingerprint": data.fingerprint(self.split),
            "sources": data.source_fingerprint(self.split),
            "split": self.split,
            "resolution": list(module.image_size),
            "generator": "ema",
            "seed": self.seed,
        }
