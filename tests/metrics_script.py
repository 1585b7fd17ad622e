"""Somebody else's LightningModule with Mirage's metrics: python tests/metrics_script.py DEVICES FOLDER."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import lightning as L
import torch
from torch.nn import functional as F
from torchmetrics import MetricCollection

from lightning_modules.metrics.features import FeatureExtractor, RandomConvNet
from lightning_modules.metrics.torchmetrics_scores import (
    DensityCoverage,
    FrechetDistance,
    KernelDistance,
    MultiScaleStructuralSimilarity,
    PrecisionRecall,
    SlicedWasserstein,
)

COUNT, BATCH, AT_MOST = 40, 10, 13


class Exact(FeatureExtractor):
    """Means of four rows of grey levels: sums of them are exact, in whatever order they are added."""

    score_name, dimensions = "exact", 4

    def identity(self):
        return {"extractor": "exact"}

    def features(self, images):
        return F.adaptive_avg_pool2d(images, (4, 1)).flatten(1)


def pictures(count=COUNT, seed=0):
    """Grey levels of 8 bits, as multiples of 1/128, smoother than noise."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randint(-96, 96, (count, 1, 4, 4), generator=random).float()
    fine = torch.randint(-24, 24, (count, 1, 16, 16), generator=random).float()
    return (F.interpolate(coarse, (16, 16)) + fine) / 128.0


def generated(images):
    return (images.flip(3) / 2.0 + 0.25).roll(1, dims=2)


class Theirs(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.exact = FrechetDistance(Exact())
        self.kept = FrechetDistance(Exact(), reset_real_features=False)
        self.frechet = FrechetDistance(RandomConvNet())
        self.first = KernelDistance(RandomConvNet(), at_most=AT_MOST)
        net = RandomConvNet()
        together = [KernelDistance(net), PrecisionRecall(net), DensityCoverage(net), SlicedWasserstein()]
        self.together = MetricCollection(together)
        self.pairs = MultiScaleStructuralSimilarity()

    def training_step(self, batch, batch_idx):
        return (self.weight - batch.mean()).square()

    def validation_step(self, batch, batch_idx):
        fake = generated(batch)
        for metric in (self.exact, self.frechet, self.first, self.together):
            metric.update(batch, real=True)
            metric.update(fake, real=False)
        if self.current_epoch == 0:
            self.kept.update(batch, real=True)
        self.kept.update(fake, real=False)
        self.pairs.update(fake, batch)
        for name in ("exact", "kept", "frechet", "first", "pairs"):
            self.log(name, getattr(self, name))

    def on_validation_epoch_end(self):
        self.log_dict(self.together.compute())
        self.together.reset()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Record(L.Callback):
    def __init__(self):
        self.epochs = []

    def on_validation_end(self, trainer, pl_module):
        self.epochs.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def shares(rank, size, empty):
    """One process has more images than the other, or all of them."""
    real, fake = pictures(23, seed=1), generated(pictures(31, seed=2))
    if size == 1:
        return real, fake
    cuts = (23, 31) if empty else (5, 24)
    return [x[:cut] if rank == 0 else x[cut:] for x, cut in zip((real, fake), cuts, strict=True)]


def of_shares(rank, size, empty):
    real, fake = shares(rank, size, empty)
    net = RandomConvNet()
    found = {}
    for metric in (FrechetDistance(Exact()), KernelDistance(net), DensityCoverage(net), SlicedWasserstein()):
        for part in real.split(4):
            metric.update(part, real=True)
        for part in fake.split(4):
            metric.update(part, real=False)
        value = metric.compute()
        found |= value if isinstance(value, dict) else {type(metric).__name__: value}
        if isinstance(metric, FrechetDistance):
            found["images"] = metric.statistics(real=False).count
    similarity = MultiScaleStructuralSimilarity()
    similarity.update(fake, fake.flip(3))
    found["similarity"] = similarity.compute()
    return {name: float(value) for name, value in found.items()}


def main(devices, folder):
    record = Record()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        limit_train_batches=1,
        num_sanity_val_steps=0,
        callbacks=[record],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    loader = torch.utils.data.DataLoader(pictures(), BATCH // devices)
    module = Theirs()
    trainer.fit(module, loader, loader)
    rank = trainer.global_rank
    found = {"epochs": record.epochs, "state": list(module.state_dict())}
    for name, empty in (("uneven", False), ("empty", True)):
        found[name] = of_shares(rank, devices, empty)
    torch.save(found, f"{folder}/{devices}-{rank}.pt")
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
