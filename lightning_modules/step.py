"""The step of every family. A family declares phases; ``PhasedModule`` runs them on one clock.

Read a family file (``dcgan.py`` is the shortest) for what is trained; read this file for how a step is carried out.
``synthesis.py`` adds what makes images from latents, ``translation.py`` what makes images from images.
"""

import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_modules.cadence import EVERY_BATCH, Cadence
from lightning_modules.networks.latents import Noise, seeded_generator
from lightning_modules.networks.layers import check_shape
from lightning_modules.run_record import RunRecord
from lightning_modules.schedules import Point, Schedule

Batch = dict[str, Any]


class OtherDataError(RuntimeError):
    """A checkpoint was trained on other images than those at hand."""


@dataclass(frozen=True)
class Phase:
    """One optimizer step of a batch.

    Attributes:
        name: Names the phase in the record; the phase that trains a generator is called "generator".
        optimizer: Index into ``configure_optimizers()``. Only this optimizer's parameters are trained, all
            others are frozen while the phase runs.
        losses: Maps a batch to named, weighted scalars; their sum is minimised. A pure function of batch and clock.
        cadence: In which batches the phase runs.
        observed: Names of what ``losses`` returns beside the losses: recorded, given to ``after``, not minimised.
        after: Called after the optimizer's step with all that ``losses`` returned, detached: the place to clip weights
            and to write state, which ``losses`` may not.
    """

    name: str
    optimizer: int
    losses: Callable[[Batch], dict[str, Tensor]]
    cadence: Cadence = EVERY_BATCH
    observed: tuple[str, ...] = ()
    after: Callable[[dict[str, Tensor]], None] | None = None

    def minimised(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the sum of what ``losses`` returned, without what is only observed."""
        return torch.stack([term for name, term in terms.items() if name not in self.observed]).sum()


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
def observe(network: nn.Module, *inputs: Tensor) -> Tensor:
    """Return what a network answers in its present mode, without moving its buffers.

    A discriminator's batch norm takes its statistics from the batch while it trains; its running ones mix real and
    generated images and say nothing. So it is asked in training mode, with copies of the buffers to write to.
    """
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    return functional_call(network, buffers, inputs).float()


def _quoted(fact: Any) -> str:
    """Return what a checkpoint says, perhaps a stranger's, short and with nothing for the terminal to act on."""
    text = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in str(fact)[:400])
    return f"{text} ..." if len(str(fact)) > 400 else text


def classes_problems(classes: Sequence[str]) -> list[str]:
    """Return what is wrong with names of labels, which "|" joins in tables and which other tools' files hold."""
    odd = [name for name in classes if not re.fullmatch(r"\w[\w .,()/+:'-]{0,99}", name)]
    problems = [f"{_quoted(name)!r}: letters, digits, spaces and .,()/+:'-_ make a name" for name in odd]
    return problems + [f"{_quoted(name)!r} is there twice" for name, count in Counter(classes).items() if count > 1]


def check_rate(name: str, value: float) -> None:
    """Raise ValueError unless a learning rate or a weight is a positive, finite number."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}={value}: must be a positive number")


class PhasedModule(L.LightningModule, ABC):
    """Base of everything that is trained: runs the phases, keeps the clock, draws what is random, saves all of it.

    A subclass writes ``phases``, ``configure_optimizers`` and its losses.

    Args:
        schedule: What depends on time; the same object that the data module holds.
        seed: Seed of every random draw of a step, together with clock, rank and use.
        image_size: Height and width of the images at the end of training, in pixels.
        image_channels: Channels of the images, 1 to 4.
        gradient_clip_norm: Largest 2-norm of a phase's gradient; None = no clipping.

    Attributes:
        grows: Whether the networks follow the schedule's stages.
        real_batches: Batches of real images that a step is given at once: with 2, ``batch["image"]`` holds twice the
            schedule's batch, of which each half is a batch; the clock counts one.
        images_seen: The clock: real images shown, over all processes; part of the checkpoint.
        losses: Running means of the losses, read and reset by the loss log.
        record: What callbacks measure of the run.
        classes: Names of the labels that the family is told, in the order of its columns; empty = it is told none.
        data_facts: Plain facts of the data set (intensity range, classes, fingerprint) that travel in the checkpoint.
        accept_other_data: Load a checkpoint although it was trained on other images.
        roll_back_factor: Factor on all learning rates for each time that the run has gone back to a checkpoint.
    """

    grows = False
    real_batches = 1
    classes: tuple[str, ...] = ()
    roll_back_factor = 0.5

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        image_size: Sequence[int],
        image_channels: int,
        gradient_clip_norm: float | None,
    ) -> None:
        super().__init__()
        if len(image_size) != 2:
            raise ValueError(f"image_size={list(image_size)}: give height and width")
        if not 1 <= image_channels <= 4:
            raise ValueError(f"image_channels={image_channels}: must be 1 to 4")
        if gradient_clip_norm is not None and gradient_clip_norm <= 0:
            raise ValueError(f"gradient_clip_norm={gradient_clip_norm}: must be positive, or null for no clipping")
        self.automatic_optimization = False  # several optimizers with their own cadence
        self.schedule = schedule
        self.seed = seed
        height, width = image_size
        self.image_size, self.image_channels = (height, width), image_channels
        self.gradient_clip_norm = gradient_clip_norm
        self.images_seen = 0
        self.losses = LossRecord()
        self.record = RunRecord()
        self.data_facts: dict[str, Any] = {}
        self.accept_other_data = False

    # What a family writes -------------------------------------------------------------------------------------------

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """Return the phases of a batch in the order in which they run."""

    @abstractmethod
    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the optimizers that the phases refer to by index."""

    def check_batch(self, batch: Batch, point: Point) -> None:
        """Raise ValueError unless a batch holds images of the family's channels at the point's resolution."""
        check_shape(batch["image"], self.image_channels, point.resolution)

    def example_batch(self, n: int, point: Point) -> Batch:
        """Return a batch of n random images, with labels if it is told any: for measuring what a step takes."""
        images = torch.rand(self.real_batches * n, self.image_channels, *point.resolution, device=self.device) * 2 - 1
        labels = torch.zeros(len(images), len(self.data_facts.get("classes", self.classes)), device=self.device)
        return {"image": images, "label": labels, "images_seen": point.images_seen}

    def set_point(self, point: Point) -> None:
        """Bring networks that change with time to a point of the schedule; most families have none."""

    def process_state(self) -> dict[str, Tensor]:
        """Return what each process has of its own, e.g. a pool of earlier images: of one shape and type on all.

        Shapes and types stay the same over the whole run. A checkpoint holds that of all processes. On resuming,
        process r takes that of process r, or of r modulo their number where there were fewer.
        """
        return {}

    def load_process_state(self, state: dict[str, Tensor]) -> None:
        """Take over what ``process_state`` returned when the checkpoint was written, on the CPU."""

    def optimizer_values(self, phase: Phase, point: Point) -> dict[str, Any]:
        """Return what else changes with the clock in a phase's optimizer besides its rate, e.g. ``{"betas": ...}``."""
        return {}

    # The step -------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Run the phases that are due, then advance the clock."""
        if batch["images_seen"] != self.images_seen:
            raise RuntimeError(
                f"the batch was drawn for images_seen={batch['images_seen']}, the module is at {self.images_seen}: "
                "sampler and module have lost each other"
            )
        point = self.schedule.at(self.images_seen)
        self.check_batch(batch, point)
        for phase in self.phases():
            if phase.cadence.due(point.batch_index):
                self.run_phase(phase, batch, point)
        self.images_seen += point.batch_size
        if self.images_seen >= self.schedule.total_images:
            self.trainer.should_stop = True

    def learning_rate_scale(self, point: Point) -> float:
        """Return the factor on every optimizer's learning rate: the schedule's, of roll-backs, and of drops so far."""
        drops = [factor for clock, factor in self.record.rate_drops if clock <= point.images_seen]
        return point.learning_rate_scale * self.roll_back_factor**self.record.roll_backs * math.prod(drops)

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

    def run_phase(self, phase: Phase, batch: Batch, point: Point) -> None:
        """Train one phase on a batch at a point of the schedule, due or not.

        The caller decides on autocast. A trainer or a Fabric must hold the module and its optimizers.
        """
        optimizer = self._optimizers()[phase.optimizer]
        rate = optimizer.defaults["lr"] * self.learning_rate_scale(point)
        for group in optimizer.param_groups:
            group.update(lr=rate, **self.optimizer_values(phase, point))
        with self._all_frozen_but(optimizer):
            optimizer.zero_grad(set_to_none=True)
            terms = phase.losses(batch)
            # Lightning calls the step under autocast; a backward pass follows the types of its forward pass by itself.
            with torch.autocast(self.device.type, enabled=False):
                self.manual_backward(phase.minimised(terms))
            if self.gradient_clip_norm is not None:
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(parameters, self.gradient_clip_norm)
            optimizer.step()
        terms = {name: term.detach() for name, term in terms.items()}
        if phase.after is not None:
            phase.after(terms)
        for name, term in terms.items():
            self.losses.add(f"{phase.name}/{name}", term, self.images_seen)

    @contextmanager
    def _all_frozen_but(self, optimizer: LightningOptimizer) -> Iterator[None]:
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        frozen = [p for p in self.parameters() if p.requires_grad and id(p) not in trained]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    # What the family is shown and draws -----------------------------------------------------------------------------

    def as_shown(self, images: Tensor) -> Tensor:
        """Return real images (N, C, H, W) of the final resolution as the discriminator is shown them at this clock."""
        resolution = self.schedule.at(self.images_seen).resolution
        return F.interpolate(images, resolution, mode="area") if images.shape[2:] != resolution else images

    def labels_of(self, batch: Batch) -> Tensor:
        """Return the labels (N, K) of a batch in the order of ``classes``."""
        of_data: Sequence[str] = self.data_facts.get("classes", self.classes)
        return batch["label"][:, [of_data.index(name) for name in self.classes]]

    def random(self, use: str) -> torch.Generator:
        """Return the generator for one use in the present step, different on every rank."""
        return seeded_generator(self.device, self.seed, self.images_seen, self.global_rank, use)

    def draw_noise(self, n: int, use: str) -> Noise:
        """Return what a noisy network draws inside for n images and one use in the present step."""

        def noise(layer: str, shape: Sequence[int]) -> Tensor:
            return torch.randn(n, *shape, generator=self.random(f"{use}/noise/{layer}"), device=self.device)

        return noise

    # Checkpoint -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take the facts of the data set along, once it has been read."""
        self.data_facts = self.trainer.datamodule.facts()  # type: ignore[attr-defined]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the clock and what belongs to it, as plain numbers."""
        checkpoint["images_seen"] = self.images_seen
        checkpoint["losses"] = self.losses.state_dict(self.all_gather)  # type: ignore[arg-type]
        checkpoint["latest"] = dict(self.record.latest)
        checkpoint["data_facts"] = self.data_facts
        checkpoint["roll_backs"] = self.record.roll_backs
        checkpoint["rate_drops"] = [list(drop) for drop in self.record.rate_drops]
        checkpoint["process_state"] = {name: self._of_all(tensor) for name, tensor in self.process_state().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue at the clock of the checkpoint.

        Raises:
            OtherDataError: If training has begun on other images, unless ``accept_other_data``.
        """
        before = checkpoint["data_facts"]
        changed = [key for key in before if key != "reading" and before[key] != self.data_facts.get(key)]
        if changed != ["label_rows"] or not self.classes:  # other images have other labels; few families are told any
            changed = [key for key in changed if key != "label_rows"]
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
        self.record.latest = dict(checkpoint["latest"])
        # A run that is going back has counted it already; the checkpoint is from before.
        self.record.roll_backs = max(self.record.roll_backs, checkpoint.get("roll_backs", 0))
        self.record.rate_drops = [(clock, factor) for clock, factor in checkpoint.get("rate_drops", [])]
        if states := checkpoint.get("process_state", {}):
            self.load_process_state({name: all_[self.global_rank % len(all_)] for name, all_ in states.items()})

    def _of_all(self, tensor: Tensor) -> Tensor:
        """Return a tensor of every process, stacked, on the CPU."""
        gathered = self.all_gather(tensor)
        assert isinstance(gathered, Tensor)
        return gathered.reshape(self.trainer.world_size, *tensor.shape).cpu()
