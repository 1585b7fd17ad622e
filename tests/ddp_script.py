"""What test_ddp.py runs with one or two processes: python tests/ddp_script.py TASK DEVICES FOLDER."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import lightning as L
import torch
from torch import nn

from callbacks.preemption import Preemption
from callbacks.rank_agreement import RankAgreement
from datamodules.phantoms import Phantoms
from experiments.configuration.experiment import TrainerSettings
from experiments.running.trainer import build_trainer
from lightning_modules.cadence import Every
from lightning_modules.ema import frozen_copy
from lightning_modules.losses import (
    gradient_penalty,
    logistic_discriminator_loss,
    non_saturating_generator_loss,
)
from lightning_modules.networks.latents import seeded_generator
from lightning_modules.schedules import ConstantSchedule
from lightning_modules.step import Phase
from lightning_modules.synthesis import Synthesis

SIZE, BATCH, TOTAL = (8, 8), 8, 80


class GivenNoiseGAN(Synthesis):
    """Small networks without batch norm; each process takes its share of noise that the whole batch shares."""

    def __init__(self, schedule):
        super().__init__(schedule, 0, SIZE, 1, latent_dim=4, gradient_clip_norm=None)
        self.generator = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Unflatten(1, (1, *SIZE)))
        self.generator_ema = frozen_copy(self.generator)
        self.critic = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Softplus(), nn.Linear(16, 1), nn.Flatten(0))

    def configure_optimizers(self):
        return [torch.optim.SGD(network.parameters(), 0.05) for network in (self.critic, self.generator)]

    def phases(self):
        return (Phase("critic", 0, self.critic_losses), Phase("generator", 1, self.generator_losses, Every(2)))

    def share(self, use, *shape):
        whole = torch.rand(BATCH, *shape, generator=seeded_generator("cpu", self.images_seen, use))
        return whole[self.global_rank :: self.trainer.world_size]

    def critic_losses(self, batch):
        real, fake = batch["image"], self.generator(self.share("critic", 4)).detach()
        penalty = gradient_penalty(self.critic, real, fake, self.share("penalty", 1, 1, 1))
        return {"adversarial": logistic_discriminator_loss(self.critic(real), self.critic(fake)), "penalty": penalty}

    def generator_losses(self, batch):
        return {"adversarial": non_saturating_generator_loss(self.critic(self.generator(self.share("generator", 4))))}


class Disagree(L.Callback):
    """Changes one weight on one process, as a lost gradient would."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.images_seen == 16 and trainer.global_rank == 1:
            with torch.no_grad():
                pl_module.critic[1].bias[0] += 1e-3


def roll_back(devices, folder):
    """Train the tiny run with a loss that is NaN on one process at clock 48."""
    start = os.environ.get("MIRAGE_START")  # conftest forgets it, which the second process must not
    from conftest import tiny_config

    if start:
        os.environ["MIRAGE_START"] = start
    from test_faults import ROLL_BACK, Poison

    from experiments.running import training

    build = training.build

    def with_poison(experiment):
        parts = build(experiment)
        parts.callbacks.insert(0, Poison(48, 1, only_rank=1))
        return parts

    training.build = with_poison
    training.train(tiny_config("dcgan", Path(folder), *ROLL_BACK, f"trainer.devices={devices}"))


def main(task, devices, folder):
    torch.manual_seed(0)
    schedule = ConstantSchedule(SIZE, BATCH, TOTAL)
    module = GivenNoiseGAN(schedule)
    initial = {key: value.clone() for key, value in module.state_dict().items()}
    data = Phantoms(schedule, 0, f"{folder}/cache", kind="kidney_ct", count=40)
    settings = TrainerSettings(accelerator="cpu", devices=devices)
    callbacks = [*([Disagree()] if task == "disagree" else []), RankAgreement(every_images=8)]
    trainer = build_trainer(settings, None, callbacks, [], Path(folder), Preemption())
    trainer.fit(module, datamodule=data)
    if trainer.is_global_zero:
        state = {"state_dict": module.state_dict(), "initial": initial, "images_seen": module.images_seen}
        torch.save(state, f"{folder}/{task}-{devices}.pt")


if __name__ == "__main__":
    if sys.argv[1] == "roll_back":
        roll_back(int(sys.argv[2]), sys.argv[3])
    else:
        main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
