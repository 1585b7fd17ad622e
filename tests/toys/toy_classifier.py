"""A classifier in its smallest form, and what a classifier needs of callbacks: a score of which more is better."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from callbacks.clock import crossed
from callbacks.scores import ScoreLog
from lightning_modules.protocols import Classifies
from lightning_modules.run_record import Score
from lightning_modules.schedules import Schedule
from lightning_modules.step import Batch, Phase, PhasedModule


class ToyClassifier(PhasedModule):
    """Logistic regression on pixels.

    Args:
        schedule: What depends on time.
        seed: Seed of every random draw of a step.
        image_size: Height and width in pixels.
        classes: Names of the labels.
        image_channels: Channels of the images.
    """

    def __init__(
        self, schedule: Schedule, seed: int, image_size: Sequence[int], classes: Sequence[str], image_channels: int = 1
    ) -> None:
        super().__init__(schedule, seed, image_size, image_channels, gradient_clip_norm=None)
        self.classes = tuple(classes)
        self.network = nn.Linear(image_channels * image_size[0] * image_size[1], len(classes))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(self.network.parameters(), 1e-2)]

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("classifier", 0, self.classifier_losses),)

    def classifier_losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"bce": F.binary_cross_entropy_with_logits(self.classify(batch["image"]), self.labels_of(batch))}

    def classify(self, images: Tensor) -> Tensor:
        """Return logits (N, K)."""
        return self.network(images.flatten(1)).float()


class ToyAccuracy(L.Callback):
    """Scores the share of held-out images whose labels are all right, and divides the rates by ten when it stands."""

    needs = Classifies

    def __init__(self, every_images: int) -> None:
        self.every_images, self.best, self.scores = every_images, -1.0, ScoreLog()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not crossed(self.every_images, pl_module):
            return
        data = trainer.datamodule
        rows = torch.arange(data.size("val")).numpy()
        with torch.no_grad():
            right = (pl_module.classify(data.select("val", rows)) > 0) == (data.labels("val", rows) > 0.5)
        value = trainer.strategy.broadcast(float(right.all(dim=1).float().mean()), src=0)
        score = Score("score/accuracy", "toy", value, "higher")
        if score.beats(self.best):
            self.best = value
        else:
            pl_module.record.drop_rates(pl_module.images_seen, 0.1)
        self.scores.add(trainer, pl_module, score, {"metric": "accuracy", "real": len(rows), "split": "val"})
