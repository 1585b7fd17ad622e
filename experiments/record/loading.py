"""What a run has trained, from a run directory or one of its checkpoints, and the images that it makes."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from callbacks.checkpoint import is_intact
from datamodules.base import ImageDataModule
from datamodules.records.records import Intensity
from experiments.configuration import objects
from experiments.configuration.errors import ConfigError
from experiments.configuration.experiment import Experiment, experiment_of
from experiments.configuration.files import Node
from experiments.record.checkpoint_check import check_trained
from experiments.record.run_directory import newest_usable_checkpoint, opened, recorded_config
from lightning_modules.networks.latents import chunk_size, in_chunks
from lightning_modules.protocols import Averages, Clocked, Samples, Translates, can
from lightning_modules.schedules import Schedule
from lightning_modules.step import PhasedModule, classes_problems

Family = TypeVar("Family", bound=Averages, covariant=True)
# What is said of a family that lacks it, and what another that could do the work is called.
_LACKS: dict[type, str] = {
    Samples: "makes no images from latents",
    Translates: "translates no images",
    Averages: "makes no images",
}
_INSTEAD: dict[type, tuple[type, str]] = {
    Samples: (Translates, "; python -m experiments.translate translates images with it"),
    Translates: (Samples, "; python -m experiments.generate makes images with it"),
}


@dataclass(frozen=True)
class Trained(Generic[Family]):
    """What a run has trained.

    Attributes:
        directory: The run directory.
        checkpoint: The checkpoint that was loaded.
        config: The run's configuration, resolved.
        module: The family, in evaluation mode at the stage of its clock.
        intensity: What the values of its images mean.
        weights_sha256: Hash of what its images depend on: weights, buffers and stage of the averaged generator.
    """

    directory: Path
    checkpoint: Path
    config: Node
    module: Family
    intensity: Intensity
    weights_sha256: str


def load_run(path: Path, device: torch.device | str = "cpu") -> Trained[Samples]:
    """Load what makes images from latents; see ``load_trained``."""
    return load_trained(path, device, Samples)


def load_trained(path: Path, device: torch.device | str, what: type[Family]) -> Trained[Family]:
    """Load what a run has trained.

    Args:
        path: A run directory, whose newest usable checkpoint is taken, or a checkpoint in its folder checkpoints/.
        device: Where the networks go.
        what: What the family must be able to do: ``Samples``, ``Translates``, or ``Averages`` = either.

    Raises:
        ConfigError: If there is no run, its checkpoint does not fit its configuration, or the family cannot do it.
    """
    path = path.absolute()
    directory = path if path.is_dir() else path.parent.parent
    if not (directory / "config.yaml").is_file():
        raise ConfigError([f"{path}: is no run directory (it holds no config.yaml), and no checkpoint of one"])
    checkpoint = newest_usable_checkpoint(directory) if path.is_dir() else path
    if checkpoint is None or not checkpoint.is_file():
        raise ConfigError([f"{directory}: holds no usable checkpoint" if path.is_dir() else f"{path}: no such file"])
    config = recorded_config(directory)
    module = _build(config)
    if not is_intact(checkpoint):
        raise ConfigError([f"{checkpoint}: cannot be loaded: it is damaged, or no checkpoint of a Mirage run"])
    content = opened(checkpoint)
    facts = check_trained(checkpoint, content, module).data_facts
    module.load_state_dict(content["state_dict"])
    module.on_load_checkpoint(content)
    module.data_facts = content["data_facts"]
    module.eval().requires_grad_(False).to(device)
    if not can(module, what):
        other, said = _INSTEAD.get(what, (Clocked, ""))
        raise ConfigError([f"{directory}: {type(module).__name__} {_LACKS[what]}{said if can(module, other) else ''}"])
    intensity = Intensity(**facts.intensity.model_dump())
    return Trained(directory, checkpoint, config, module, intensity, _hash(module))


def untrained(config: Node) -> PhasedModule:
    """Return the family as a run of this configuration begins: with the weights that its seed draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment_of(config).seed)
        return _build(config)


def unfinished(module: Averages) -> str:
    """Return what whoever uses a generator that is still growing should know, or nothing."""
    if module.schedule.has_grown(module.images_seen):
        return ""
    point = module.schedule.at(module.images_seen)
    now, then = ("x".join(map(str, size)) for size in (point.resolution, module.image_size))
    fading = f", faded in by {point.alpha:.0%}" if point.alpha < 1.0 else ""
    at_the_end = f"; at the end they will be {then}" if now != then else ""
    return f"the generator is at stage {point.stage}{fading}: its images are {now}{at_the_end}"


def generate(
    module: Samples,
    start: int,
    count: int,
    seed: int,
    truncation: float = 1.0,
    labels: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield images start .. start + count - 1 of a seed's list, each batch (n, C, H, W) with its first index.

    They are the averaged generator's. Always in float32 and in the same chunks (see ``in_chunks``), so that image i is
    a function of (seed, i).

    Args:
        module: The family, in evaluation mode.
        start: First image.
        count: Number of images.
        seed: Names the list.
        truncation: See ``Synthesis.sample``.
        labels: One multi-hot row (K,) that all images are given, or None.
    """
    size = chunk_size(module.schedule.at(module.images_seen).resolution)
    repeated = None if labels is None else labels.expand(size, -1)

    def make(first: int) -> Tensor:
        with torch.autocast(module.device.type, enabled=False), same_bits_each_time(module.device):
            return module.sample(size, repeated, truncation, seed, start=first)

    yield from in_chunks(make, start, count, size)


def translated(module: Translates, sources: Iterable[Tensor], seed: int, start: int = 0) -> Iterator[Tensor]:
    """Yield the translation (C, H, W) of each source (source_channels, H, W) in [-1, 1], on the CPU.

    They are the averaged generator's. Always in float32 and one by one, since sources may differ in size: image i is a
    function of (seed, i, source).

    Args:
        module: The family, in evaluation mode.
        sources: The sources.
        seed: Of what a noisy network draws.
        start: Place of the first source in its list.
    """
    for place, source in enumerate(sources, start):
        with torch.autocast(module.device.type, enabled=False), same_bits_each_time(module.device):
            image = module.translate(source[None], seed, start=place)[0].cpu()
        yield image


def same_bits_each_time(device: torch.device) -> AbstractContextManager:
    """Let a GPU compute convolutions in full float32, in the same way each time."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def data_of(experiment: Experiment, changes: Node | None = None) -> ImageDataModule:
    """Return the data set of an experiment, set up.

    Args:
        experiment: A checked top level.
        changes: Values that replace those of its ``data`` node.

    Raises:
        ConfigError: If the node cannot become a data set.
        DataError: If the data cannot be used.
    """
    node = {**experiment.data, **(changes or {})}
    problems = objects.check(experiment.schedule, "schedule", Schedule)
    problems += objects.check(node, "data", ImageDataModule, supplied=("schedule", "seed"))
    if problems:
        raise ConfigError(problems)
    schedule = objects.build(experiment.schedule, "schedule", Schedule)
    data: ImageDataModule = objects.build(node, "data", ImageDataModule, schedule=schedule, seed=experiment.seed)
    data.check()
    data.setup()
    return data


def _build(config: Node) -> PhasedModule:
    experiment = experiment_of(config)
    supplied = ("schedule", "seed")
    problems = objects.check(experiment.schedule, "schedule", Schedule)
    problems += objects.check(experiment.module, "module", PhasedModule, supplied=supplied)
    if problems:
        raise ConfigError(problems)
    schedule = objects.build(experiment.schedule, "schedule", Schedule)
    module: PhasedModule = objects.build(
        experiment.module, "module", PhasedModule, schedule=schedule, seed=experiment.seed
    )
    if problems := classes_problems(module.classes):
        raise ConfigError([f"module.classes: {problem}" for problem in problems])
    return module


def _hash(module: Averages) -> str:
    point = module.schedule.at(module.images_seen)
    digest = hashlib.sha256(f"{type(module).__name__} stage {point.stage} alpha {point.alpha}".encode())
    for name, tensor in module.generator_ema.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
