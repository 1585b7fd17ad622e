"""The adversarial step. A family declares phases; ``GANModule`` runs them on one clock.

Read a family file (``dcgan.py`` is the shortest) for what is trained; read this file for how a step is carried out.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_modules.networks.latents import Prior, draw, sample_latents, seeded_generator
from lightning_modules.networks.layers import check_shape
from lightning_modules.schedules import Point, Schedule

Batch = dict[str, Any]


class OtherDataError(RuntimeError):
    """A checkpoint was trained on other images than those at hand."""


class Score(NamedTuple):
    """A periodic score: its name, a hash of what two scores must share to be compared, and its value."""

    name: str
    fingerprint: str
    value: float


@dataclass(frozen=True)
class Phase:
    """One optimizer step of an adversarial batch.

    Attributes:
        name: Names the phase in the record; the phase that trains the generator is called "generator".
        optimizer: Index into ``configure_optimizers()``. Only this optimizer's parameters are trained, all
            others are frozen while the phase runs.
        losses: Maps a batch to named, weighted scalars; their sum is minimised. A pure function of batch and clock.
        every: Run in every n-th batch, the last of each n: with a critic at 1 and a generator at 5, the generator
            follows five critic steps (n_critic, lazy regularisation).
        after: Called after the optimizer's step, e.g. to clip weights.
    """

    name: str
    optimizer: int
    losses: Callable[[Batch], dict[str, Tensor]]
    every: int = 1
    after: Callable[[], None] | None = None

    def due(self, batch_index: int) -> bool:
        """Tell whether the phase runs in this batch."""
        return (batch_index + 1) % self.every == 0


class LossRecord:
    """Running sums of the losses. They stay on the device, so that the step never waits for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._first_bad: dict[str, Tensor] = {}

    def add(self, name: str, loss: Tensor, images_seen: int) -> None:
        """Add one detached scalar and remember the clock of the first one that is not finite."""
        if name not in self._sums:
            self._sums[name] = torch.zeros((), device=loss.device)
            self._counts[name] = 0
            self._first_bad[name] = torch.full((), -1, dtype=torch.int64, device=loss.device)
        loss, first_bad = loss.float(), self._first_bad[name]
        self._sums[name] += loss
        self._counts[name] += 1
        self._first_bad[name] = torch.where(torch.isfinite(loss) | (first_bad >= 0), first_bad, images_seen)

    def means(self) -> dict[str, Tensor]:
        """Return the mean of each loss since the last reset, on the device."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def first_bad(self) -> tuple[str, int] | None:
        """Return name and clock of the first loss that was not finite, or None. Waits for the device."""
        seen = {name: int(clock) for name, clock in self._first_bad.items()}
        bad = {name: clock for name, clock in seen.items() if clock >= 0}
        return min(bad.items(), key=lambda item: item[1]) if bad else None

    def reset(self) -> None:
        """Start the means anew."""
        self._sums.clear()
        self._counts.clear()
        self._first_bad.clear()

    def to(self, device: torch.device) -> None:
        """Move what a checkpoint has brought to the device; processes can exchange nothing else there."""
        for tensors in (self._sums, self._first_bad):
            tensors.update({name: tensor.to(device) for name, tensor in tensors.items()})

    def state_dict(self, gather: Callable[[Tensor], Tensor]) -> dict[str, list]:
        """Return plain numbers that ``load_state_dict`` continues from.

        Args:
            gather: Stacks a scalar of every process; each process has means of its own.
        """
        return {name: [gather(total).flatten().tolist(), self._counts[name]] for name, total in self._sums.items()}

    def load_state_dict(self, state: dict[str, list], rank: int = 0) -> None:
        """Continue the means of a saved record; with another number of processes, their mean."""
        self.reset()
        for name, (totals, count) in state.items():
            total = totals[rank] if rank < len(totals) else sum(totals) / len(totals)
            self.add(name, torch.tensor(total), images_seen=0)
            self._counts[name] = int(count)


@torch.no_grad()
def observe(network: nn.Module, images: Tensor) -> Tensor:
    """Return what a network answers in its present mode, without moving its buffers.

    A discriminator's batch norm takes its statistics from the batch while it trains; its running ones mix real and
    generated images and say nothing. So it is asked in training mode, with copies of the buffers to write to.
    """
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    return functional_call(network, buffers, (images,)).float()


def _quoted(fact: Any) -> str:
    """Return what a checkpoint says, perhaps a stranger's, short and with nothing for the terminal to act on."""
    text = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in str(fact)[:400])
    return f"{text} ..." if len(str(fact)) > 400 else text


def check_rate(name: str, value: float) -> None:
    """Raise ValueError unless a learning rate or a weight is a positive, finite number."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}={value}: must be a positive number")


class GANModule(L.LightningModule, ABC):
    """Base of every family: runs the phases, keeps the clock, draws the noise, samples.

    A subclass sets ``generator`` and ``generator_ema`` and writes ``configure_optimizers``, ``phases`` and its losses.

    Args:
        schedule: What depends on time; the same object that the data module holds.
        seed: Seed of every random draw of a step, together with clock, rank and use.
        image_size: Height and width of the images at the end of training, in pixels.
        image_channels: Channels of the images, 1 to 4.
        latent_dim: Length of a latent vector.
        gradient_clip_norm: Largest 2-norm of a phase's gradient; None = no clipping.

    Attributes:
        grows: Whether the networks follow the schedule's stages.
        prior: Distribution of the latents.
        normalises_latents: Whether the generator divides latents by their length, so that a factor on them is lost.
        images_seen: The clock: real images shown, over all processes; part of the checkpoint.
        losses: Running means of the losses, read and reset by the loss log.
        latest: Newest value of every logged number, for the progress bar and the choice of the best checkpoint.
        scored_at: Clock of the newest score, -1 before the first.
        score: The newest score.
        verdict: What the health watch says of the run, in a few words; empty until it has spoken.
        data_facts: Plain facts of the data set (intensity range, classes, fingerprint) that travel in the checkpoint.
        accept_other_data: Load a checkpoint although it was trained on other images.
        roll_backs: How often the run has gone back to a checkpoint; each time multiplies all learning rates by
            ``roll_back_factor``.
    """

    grows = False
    prior: Prior = "normal"
    normalises_latents = False
    roll_back_factor = 0.5
    generator: nn.Module
    generator_ema: nn.Module

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        image_size: Sequence[int],
        image_channels: int,
        latent_dim: int,
        gradient_clip_norm: float | None,
    ) -> None:
        super().__init__()
        if len(image_size) != 2:
            raise ValueError(f"image_size={list(image_size)}: give height and width")
        if not 1 <= image_channels <= 4:
            raise ValueError(f"image_channels={image_channels}: must be 1 to 4")
        if latent_dim < 1:
            raise ValueError(f"latent_dim={latent_dim}: must be at least 1")
        if gradient_clip_norm is not None and gradient_clip_norm <= 0:
            raise ValueError(f"gradient_clip_norm={gradient_clip_norm}: must be positive, or null for no clipping")
        self.automatic_optimization = False  # several optimizers with their own cadence
        self.schedule = schedule
        self.seed = seed
        self.image_size, self.image_channels, self.latent_dim = tuple(image_size), image_channels, latent_dim
        self.gradient_clip_norm = gradient_clip_norm
        self.images_seen = 0
        self.losses = LossRecord()
        self.latest: dict[str, float] = {}
        self.scored_at, self.score = -1, Score("", "", float("inf"))
        self.verdict = ""
        self.data_facts: dict[str, Any] = {}
        self.accept_other_data = False
        self.roll_backs = 0

    # What a family writes -------------------------------------------------------------------------------------------

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """Return the phases of a batch in the order in which they run."""

    @abstractmethod
    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the optimizers that the phases refer to by index."""

    def set_point(self, point: Point) -> None:
        """Bring networks that change with time to a point of the schedule; most families have none."""

    def critic_scores(self, images: Tensor) -> Tensor:
        """Score images (N, C, H, W) in [-1, 1] at the clock's resolution as in training, without a trace: (N,).

        Higher means more real. A family answers with ``observe(its discriminator, images)``.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no critic_scores, which the health watch needs: write it, or set "
            "callbacks.health=null"
        )

    def as_shown(self, images: Tensor) -> Tensor:
        """Return real images (N, C, H, W) of the final resolution as the discriminator is shown them at this clock."""
        resolution = self.schedule.at(self.images_seen).resolution
        return F.interpolate(images, resolution, mode="area") if images.shape[2:] != resolution else images

    # The step -------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Run the phases that are due, then advance the clock."""
        if batch["images_seen"] != self.images_seen:
            raise RuntimeError(
                f"the batch was drawn for images_seen={batch['images_seen']}, the module is at {self.images_seen}: "
                "sampler and module have lost each other"
            )
        point = self.schedule.at(self.images_seen)
        check_shape(batch["image"], self.image_channels, point.resolution)
        for phase in self.phases():
            if phase.due(point.batch_index):
                self._run(phase, batch, point.learning_rate_scale * self.roll_back_factor**self.roll_backs)
        self.images_seen += point.batch_size
        if self.images_seen >= self.schedule.total_images:
            self.trainer.should_stop = True

    def on_train_start(self) -> None:
        """Let the configuration decide what it names: a loaded optimizer state brings its old rates and betas along.

        Losses of a checkpoint follow the module to its device.
        """
        self.losses.to(self.device)
        for optimizer in self._optimizers():
            for group in optimizer.param_groups:
                group.update(optimizer.defaults)

    def _optimizers(self) -> list[LightningOptimizer]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _run(self, phase: Phase, batch: Batch, learning_rate_scale: float) -> None:
        optimizer = self._optimizers()[phase.optimizer]
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * learning_rate_scale
        with self.toggled_optimizer(optimizer):
            optimizer.zero_grad(set_to_none=True)
            losses = phase.losses(batch)
            # Lightning calls the step under autocast; a backward pass follows the types of its forward pass by itself.
            with torch.autocast(self.device.type, enabled=False):
                self.manual_backward(torch.stack(list(losses.values())).sum())
            if self.gradient_clip_norm is not None:
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(parameters, self.gradient_clip_norm)
            optimizer.step()
        if phase.after is not None:
            phase.after()
        for name, loss in losses.items():
            self.losses.add(f"{phase.name}/{name}", loss.detach(), self.images_seen)

    # Randomness and sampling ----------------------------------------------------------------------------------------

    def random(self, use: str) -> torch.Generator:
        """Return the generator for one use in the present step, different on every rank."""
        return seeded_generator(self.device, self.seed, self.images_seen, self.global_rank, use)

    def draw_latents(self, n: int, use: str) -> Tensor:
        """Draw latents (n, latent_dim) for one use in the present step."""
        return draw(self.prior, n, self.latent_dim, self.random(f"{use}/latents"))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        labels: Tensor | None = None,
        truncation: float = 1.0,
        seed: int = 0,
        ema: bool = True,
        start: int = 0,
    ) -> Tensor:
        """Generate images start .. start + n - 1 of the endless list that belongs to a seed.

        Image i depends on (seed, i) alone, so processes can share the work and get the images that one would get.

        Args:
            n: Number of images.
            labels: Multi-hot labels (n, K); only a conditional family takes them.
            truncation: Factor on the latents: 1 keeps the prior, 0 gives the image of the mean latent.
            seed: Names the list of images.
            ema: Use the averaged generator, else the live one.
            start: First image of the list.

        Returns:
            Images (n, C, H, W) float32 in [-1, 1] on the module's device; a growing network's are as large as its
            present stage.

        Raises:
            ValueError: If the family cannot do what is asked for.
        """
        if labels is not None:
            raise ValueError(f"{type(self).__name__} is unconditional: it cannot generate given labels")
        if truncation != 1.0 and self.normalises_latents:
            raise ValueError(
                f"truncation={truncation}: {type(self).__name__} normalises its latents, so no factor changes them"
            )
        return self.unclamped_sample(n, truncation, seed, ema, start).clamp(-1.0, 1.0)

    @torch.no_grad()
    def unclamped_sample(self, n: int, truncation: float, seed: int, ema: bool, start: int) -> Tensor:
        """Generate the images of ``sample`` as the discriminator sees them: a linear last layer leaves [-1, 1]."""
        latents = sample_latents(self.prior, n, self.latent_dim, seed, start)
        generator = self.generator_ema if ema else self.generator
        was_training = generator.training
        generator.eval()
        images = generator(latents.to(self.device) * truncation)
        generator.train(was_training)
        return images.float()

    # Checkpoint -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take the facts of the data set along, once it has been read."""
        self.data_facts = self.trainer.datamodule.facts()  # type: ignore[attr-defined]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the clock and what belongs to it, as plain numbers."""
        checkpoint["images_seen"] = self.images_seen
        checkpoint["losses"] = self.losses.state_dict(self.all_gather)  # type: ignore[arg-type]
        checkpoint["latest"] = dict(self.latest)
        checkpoint["data_facts"] = self.data_facts
        checkpoint["roll_backs"] = self.roll_backs

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue at the clock of the checkpoint.

        Raises:
            OtherDataError: If training has begun on other images, unless ``accept_other_data``.
        """
        before = checkpoint["data_facts"]
        changed = [key for key in before if key != "reading" and before[key] != self.data_facts.get(key)]
        if self.data_facts and changed and not self.accept_other_data:
            differences = "; ".join(
                f"{_quoted(key)}: was {_quoted(before[key])}, is {_quoted(self.data_facts.get(key))}" for key in changed
            )
            rules = [rule for rule in self.data_facts.get("reading", []) if rule not in before.get("reading", [])]
            since = f". Files are read by other rules since then: {'; '.join(rules)}" if rules else ""
            raise OtherDataError(
                f"the data is not what the checkpoint was trained on ({differences}){since}; "
                "allow_changes=true goes on with the present data"
            )
        self.images_seen = checkpoint["images_seen"]
        self.set_point(self.schedule.at(self.images_seen))
        self.losses.load_state_dict(checkpoint["losses"], self.global_rank)
        self.latest = dict(checkpoint["latest"])
        # A run that is going back has counted it already; the checkpoint is from before.
        self.roll_backs = max(self.roll_backs, checkpoint.get("roll_backs", 0))
