"""What no object of a run can check alone: whether data, networks, schedule, callbacks and processes fit together."""

from typing import cast

from lightning.fabric.plugins.environments import ClusterEnvironment

from callbacks.ema import GeneratorEMA
from callbacks.fade_in import FadeIn
from callbacks.fid import FrechetScore
from callbacks.paired_error import PairedError
from callbacks.real_images import RealPairs
from datamodules.files.errors import DataError
from experiments.configuration.errors import ConfigError, did_you_mean
from experiments.running import processes, shared_memory
from experiments.running.parts import Parts
from lightning_modules.metrics.features import ExtractorError
from lightning_modules.protocols import Averages, Translates, can
from lightning_modules.schedules import ProgressiveSchedule, Schedule


def check_together(parts: Parts, launcher: ClusterEnvironment | None) -> None:
    """Check what no object can check alone, and that the data is there.

    Raises:
        ConfigError: With every problem.
    """
    try:
        world_size = processes.world_size(parts.settings, launcher)
        problems = problems_of_sharing(parts.schedule, world_size)
        local = processes.devices_per_machine(parts.settings)
        problems += shared_memory.problems(parts.data, parts.schedule, world_size, local)
    except ConfigError as error:
        problems = error.problems
    problems += problems_of_shape(parts)
    if parts.module.image_channels != parts.data.channels:
        problems.append(
            f"module.image_channels={parts.module.image_channels}: the images of {type(parts.data).__name__} have "
            f"{parts.data.channels}"
        )
    problems += problems_of_pairs(parts)
    problems += [
        f"module.classes: {type(parts.data).__name__} has no class {name!r}"
        f"{did_you_mean(name, list(parts.data.classes)) or '; it has ' + (', '.join(parts.data.classes) or 'none')}"
        for name in parts.module.classes
        if name not in parts.data.classes
    ]
    if launcher is None:  # else the processes of a machine must meet first: one fetches for all
        problems += _problems_of_extractors(parts)
    for check in (parts.data.check, parts.pseudonyms.check):
        try:
            check()
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)


def problems_of_pairs(parts: Parts) -> list[str]:
    """Return what keeps a translator from its sources: there are none, of other channels, or not of the targets."""
    family, data = type(parts.module).__name__, type(parts.data).__name__
    translates, has_sources = can(parts.module, Translates), hasattr(parts.data, "source_channels")
    if translates != has_sources:
        what = "translates, and {data} has no sources" if translates else "does not translate, and {data} is of pairs"
        return [f"data: {family} {what.format(data=data)}; take another data set or family"]
    if not translates:
        return []
    pairs = cast(RealPairs, parts.data)
    asking = [("data", family)] if parts.module.needs_pairs else []
    asking += [("callbacks", "PairedError") for callback in parts.callbacks if isinstance(callback, PairedError)]
    problems = [
        f"{key}: {what} needs pairs, and sources and targets of {data} do not belong together"
        for key, what in asking
        if not pairs.paired
    ]
    if parts.module.source_channels != pairs.source_channels:
        problems.append(
            f"module.source_channels={parts.module.source_channels}: the sources of {data} have {pairs.source_channels}"
        )
    return problems


def _problems_of_extractors(parts: Parts) -> list[str]:
    """Return what a periodic score needs and cannot get, before the data is prepared, which may take hours."""
    problems = []
    for callback in parts.callbacks:
        if isinstance(callback, FrechetScore):
            try:
                callback.extractor.prepare()
            except ExtractorError as error:
                problems.append(f"callbacks.score.extractor={type(callback.extractor).__name__}: {error}")
    return problems


def problems_of_sharing(schedule: Schedule, world_size: int) -> list[str]:
    """Return the batches that so many processes cannot share equally."""
    problems = []
    for size in sorted({point.batch_size for point in schedule.stages()}):
        if size % world_size:
            below, above = size // world_size * world_size, -(-size // world_size) * world_size
            nearest = f"{below} or {above}" if below else f"{above}"
            problems.append(
                f"schedule: a batch of {size} cannot be shared equally by {world_size} processes (trainer.devices x "
                f"trainer.num_nodes); use {nearest}"
            )
    return problems


def problems_of_shape(parts: Parts) -> list[str]:
    """Return what keeps schedule, networks and callbacks from having one size, or from changing together."""
    final, size = parts.schedule.resolutions()[-1], parts.module.image_size
    problems = _problems_of_growth(parts) + _problems_of_average(parts)
    if tuple(size) != tuple(final):
        problems.append(f"module.image_size={list(size)}: schedule.resolution is {list(final)}")
    return problems


def _problems_of_growth(parts: Parts) -> list[str]:
    family, schedule = type(parts.module).__name__, type(parts.schedule).__name__
    has_callback = any(isinstance(callback, FadeIn) for callback in parts.callbacks)
    if not parts.module.grows:
        if parts.schedule.stages()[-1].stage > 0:
            return [f"schedule={schedule}: {family} does not grow; use lightning_modules.schedules.ConstantSchedule"]
        return [f"callbacks.fade_in: {family} does not grow; remove it"] if has_callback else []
    if not isinstance(parts.schedule, ProgressiveSchedule):
        return [f"schedule={schedule}: {family} grows; use lightning_modules.schedules.ProgressiveSchedule"]
    return [] if has_callback else [f"callbacks: {family} grows and needs callbacks.fade_in.FadeIn"]


def _problems_of_average(parts: Parts) -> list[str]:
    if not can(parts.module, Averages):
        return []
    count = sum(isinstance(callback, GeneratorEMA) for callback in parts.callbacks)
    if count == 1:
        return []
    return [
        f"callbacks: {count} are a callbacks.ema.GeneratorEMA, exactly one must be: scores, pictures and exports are "
        "of the averaged generator (callbacks.ema.decay_per_step=0 with half_life_images=null and ramp_up=null keeps "
        "it equal to the live one)"
    ]
