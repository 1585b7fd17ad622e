"""From a configuration to a trained run: check, build, fit, report. ``run.py`` is its command line."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from callbacks.checkpoint import AtomicCheckpointIO
from callbacks.divergence import DivergedError, DivergenceWatch
from callbacks.ema import GeneratorEMA
from callbacks.environment import EnvironmentRecord
from callbacks.fade_in import FadeIn
from callbacks.fid import FrechetScore
from callbacks.files import append_rows
from callbacks.paired_error import PairedError
from callbacks.preemption import Preempted, Preemption
from callbacks.real_images import RealPairs
from datamodules.base import ImageDataModule
from datamodules.files.errors import DataError
from datamodules.files.pseudonyms import Pseudonyms
from experiments.configuration import files, objects
from experiments.configuration.errors import ConfigError, did_you_mean
from experiments.configuration.experiment import Experiment, TrainerSettings, experiment_of
from experiments.configuration.files import Node
from experiments.configuration.redaction import RedactingFormatter, redacted
from experiments.record import run_directory
from experiments.record.checkpoint_check import check_resumable
from experiments.record.report import write_report
from experiments.record.tracking import JSONLinesLogger, wandb_logger
from experiments.running import processes, shared_memory
from experiments.running.faults import FaultError, OutOfMemoryError, explain, is_out_of_memory
from lightning_modules.metrics.features import ExtractorError, FeatureExtractor
from lightning_modules.protocols import Averages, Translates, can
from lightning_modules.schedules import ProgressiveSchedule, Schedule
from lightning_modules.step import PhasedModule, classes_problems

log = logging.getLogger(__name__)


@dataclass
class Parts:
    """What a configuration builds."""

    schedule: Schedule
    data: ImageDataModule
    module: PhasedModule
    callbacks: list[L.Callback]
    settings: TrainerSettings
    pseudonyms: Pseudonyms


def train(config: Node) -> Path:
    """Run an experiment to its end and return its run directory.

    Args:
        config: Plain, resolved values, from ``config.load``.

    Raises:
        ConfigError: With everything that is wrong with the configuration.
        DataError: If the data cannot be used.
        DivergedError: If training left the finite numbers.
        Preempted: If a signal stopped it; ``resume=auto`` goes on.
    """
    experiment = checked(config)
    launcher = processes.external_launcher()
    parts = build(experiment)
    settings = parts.settings
    check_together(parts, launcher)
    config = recorded(experiment)
    with ExitStack() as held:
        start = processes.agree_on_start(launcher, settings, lambda: decide_start(experiment, config, held))
        first = processes.is_first_process(launcher)
        config, given = run_directory.with_own_extractors(start.directory, config), config
        held.enter_context(log_file(start.directory / "log.txt", parts.pseudonyms.hide) if first else quiet())
        if first:
            announce(start)
        keep_extractors(parts, given, config)
        mirror = None
        if first and experiment.tracking != "disabled":
            mirror = wandb_logger(start.directory, experiment.tracking, experiment.wandb_project, config)
        loggers = [JSONLinesLogger(start.directory), *([mirror] if mirror else [])]
        preemption = Preemption()
        parts.module.accept_other_data = experiment.allow_changes
        warn_of_slow_precision(settings)

        def new_trainer() -> L.Trainer:
            return build_trainer(settings, launcher, parts.callbacks, loggers, start.directory, preemption)

        try:
            fit(new_trainer, parts, start, first, preemption)
        except Exception as error:
            if launcher is not None and not first and not isinstance(error, FaultError):  # which is this process's own
                processes.leave_to_the_first_process(start.directory)
            raise
        finally:
            if first:
                processes.forget_start()
            if mirror is not None:
                mirror.close(failed=sys.exc_info()[0] is not None, preempted=preemption.stopped)
    return start.directory


def checked(config: Node) -> Experiment:
    """Check names and types at the top level and in every node; nothing is built.

    Raises:
        ConfigError: With every problem that was found.
    """
    try:
        experiment = experiment_of(config)
    except ConfigError as error:  # which has named what is no node
        nodes = {key: node for key, node in config.items() if isinstance(node, dict)}
        raise ConfigError([*error.problems, *problems_of_nodes(nodes)]) from error
    if problems := problems_of_nodes(vars(experiment)):
        raise ConfigError(problems)
    return experiment


class _NoSchedule:
    """Stands where a refused schedule would: what an object asks of it cannot be checked, and is no other problem."""

    def __getattr__(self, name: str) -> Any:
        raise ConfigError([])


def build(experiment: Experiment) -> Parts:
    """Check every node, then build every object; weights are drawn from the experiment's seed.

    Raises:
        ConfigError: With every problem that was found.
    """
    problems = problems_of_nodes(vars(experiment))
    if problems:
        raise ConfigError(problems)
    callbacks = {name: node for name, node in experiment.callbacks.items() if node is not None}
    schedule: Any = _NoSchedule()
    try:
        schedule = objects.build(experiment.schedule, "schedule", Schedule)
    except ConfigError as error:
        problems += error.problems
    torch.manual_seed(experiment.seed)
    shared = {"schedule": schedule, "seed": experiment.seed}
    built: dict[str, Any] = {}
    for key, base, node, supplied in (
        ("module", PhasedModule, experiment.module, shared),
        ("data", ImageDataModule, experiment.data, shared),
        *((f"callbacks.{name}", L.Callback, node, {}) for name, node in callbacks.items()),
    ):
        try:
            built[key] = objects.build(node, key, base, **supplied)
        except ConfigError as error:
            problems += error.problems
    try:
        settings = objects.build_plain(TrainerSettings, experiment.trainer, "trainer")
    except ConfigError as error:
        problems += error.problems
    module = built.get("module")
    problems += problems_of_family(module, built) if module is not None else []
    if problems:
        raise ConfigError(problems)
    pseudonyms = Pseudonyms(experiment.wandb_project, Path(experiment.runs_dir))
    data, module = built.pop("data"), built.pop("module")
    data.real_batches = module.real_batches
    return Parts(schedule, data, module, list(built.values()), settings, pseudonyms)


def problems_of_family(module: PhasedModule, built: Node) -> list[str]:
    """Return what the callbacks ask of a family that it cannot do, and what is wrong with its classes.

    Args:
        module: The family.
        built: The callbacks by their keys, and other objects.
    """
    family = type(module).__name__
    problems = [
        f"{key}: {type(callback).__name__} needs a family that {needs.__name__.lower()}, which {family} does not; set "
        "it to null"
        for key, callback in built.items()
        if (needs := getattr(callback, "needs", None)) and not can(module, needs)
    ]
    if can(module, Averages) and all(phase.name != "generator" for phase in module.phases()):
        problems.append(f'module: no phase of {family} is called "generator"; the average follows the one that is')
    return problems + [f"module.classes: {problem}" for problem in classes_problems(module.classes)]


def problems_of_nodes(nodes: Node) -> list[str]:
    """Return every problem of the names and types of the nodes that are there; nothing is built."""
    shared, problems = ("schedule", "seed"), []
    for key, base, supplied in (
        ("schedule", Schedule, ()),
        ("data", ImageDataModule, shared),
        ("module", PhasedModule, shared),
    ):
        problems += objects.check(nodes[key], key, base, supplied) if key in nodes else []
    for name, node in nodes.get("callbacks", {}).items():
        problems += objects.check(node, f"callbacks.{name}", L.Callback) if node is not None else []
    return problems + objects.check_plain(TrainerSettings, nodes.get("trainer", {}), "trainer")


def recorded(experiment: Experiment) -> Node:
    """Return the configuration as a run keeps it: every default written out, nothing that belongs to one launch."""
    of_a_launch = ("resume", "run_id", "allow_changes", "tracking")
    config = {key: value for key, value in vars(experiment).items() if key not in of_a_launch}
    for key in ("schedule", "data", "module"):
        config[key] = objects.completed(config[key])
    callbacks = {name: node and objects.completed(node) for name, node in experiment.callbacks.items()}
    trainer = vars(objects.build_plain(TrainerSettings, experiment.trainer, "trainer"))
    return {**config, "callbacks": callbacks, "trainer": trainer}


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


def decide_start(experiment: Experiment, config: Node, held: ExitStack) -> run_directory.Start:
    """Find or name the run directory, refuse changed hyper-parameters, and create it. First process only.

    Args:
        experiment: The checked top level.
        config: What the run records.
        held: Keeps the lock of the run directory until it is closed.

    Raises:
        ConfigError: If the run cannot be continued with this configuration.
    """
    start = run_directory.find_start(Path(experiment.runs_dir), experiment.name, experiment.resume, experiment.run_id)
    if (start.directory / "config.yaml").is_file():
        changes = run_directory.changed_hyper_parameters(start.directory, config)
        if changes and not experiment.allow_changes:
            raise ConfigError(
                [f"{start.directory} was started with other hyper-parameters (allow_changes=true goes on)", *changes]
            )
        if not experiment.allow_changes:
            config = run_directory.with_own_extractors(start.directory, config)
    try:
        start.directory.mkdir(parents=True, exist_ok=True)
        held.enter_context(run_directory.lock(start.directory))
        run_directory.create(start.directory, config)
        run_directory.write_status(start.directory, "running", pid=os.getpid())
    except OSError as error:
        raise ConfigError([f"runs_dir={experiment.runs_dir}: cannot be written to ({error})"]) from error
    return start


def build_trainer(
    settings: TrainerSettings,
    launcher: Any,
    callbacks: list[L.Callback],
    loggers: Sequence[Logger],
    directory: Path,
    preemption: Preemption,
) -> L.Trainer:
    """Return a trainer for one endless epoch that the module's clock stops."""
    devices = processes.devices_per_machine(settings)
    several = devices * settings.num_nodes > 1 or launcher is not None
    environment = EnvironmentRecord(directory / "versions.json", run_directory.versions)
    # Phases train one network at a time, so each backward leaves parameters of the others unused.
    strategy: Strategy | str = DDPStrategy(find_unused_parameters=True) if several else "auto"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about loggers and progress bars that we bring ourselves
        return L.Trainer(
            accelerator="gpu" if processes.uses_gpu(settings) else "cpu",
            devices=devices,
            num_nodes=settings.num_nodes,
            strategy=strategy,
            precision=settings.precision,
            deterministic=settings.deterministic,
            # Batch norm of a generator sees the whole batch, as on one GPU; torch has no such layer for the CPU.
            sync_batchnorm=several and processes.uses_gpu(settings),
            # Networks grow, then the average moves, before any other callback looks at them.
            callbacks=[preemption, environment, *sorted(callbacks, key=_place)],
            logger=list(loggers),
            plugins=[AtomicCheckpointIO(), *([launcher] if launcher else [])],
            default_root_dir=directory,
            max_epochs=-1,
            max_steps=-1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=any(isinstance(callback, L.pytorch.callbacks.Checkpoint) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
        )


def _place(callback: L.Callback) -> int:
    return 0 if isinstance(callback, FadeIn) else 1 if isinstance(callback, GeneratorEMA) else 2


def fit(
    new_trainer: Callable[[], L.Trainer],
    parts: Parts,
    start: run_directory.Start,
    first: bool,
    preemption: Preemption,
) -> None:
    """Train, and leave the run directory with its state and report whatever happens.

    Raises:
        Preempted: If a signal stopped training before its end.
        FaultError: If the machine ended it, e.g. memory ran out.
    """
    done = start.checkpoint is not None and run_directory.clock_of(start.checkpoint) >= parts.schedule.total_images
    try:
        if start.checkpoint is not None and not done:
            check_fits(start.checkpoint, parts)
        if start.checkpoint is not None and first:
            run_directory.set_aside_overtaken(start.directory, run_directory.clock_of(start.checkpoint))
        if done:  # a run that was killed between its last checkpoint and its report
            log.info(
                "all %d images have been shown; to go on: resume=%s allow_changes=true and more schedule.total_images",
                parts.schedule.total_images,
                start.directory,
            )
        else:
            _fit_with_roll_backs(new_trainer, parts, start, first)
    except Exception as error:
        fault = explain(error)
        if first and not isinstance(error, processes.ProcessDiedError):  # which has written its own
            state = "diverged" if isinstance(error, DivergedError) else "failed"
            run_directory.write_status(start.directory, state, reason=_reason(error, fault, parts.pseudonyms))
        if fault and is_out_of_memory(error):
            raise OutOfMemoryError(fault, parts.module.images_seen) from error
        if fault:
            raise FaultError(f"{fault} (images_seen={parts.module.images_seen})") from error
        raise
    finished = done or parts.module.images_seen >= parts.schedule.total_images
    images_seen = run_directory.clock_of(start.checkpoint) if done and start.checkpoint else parts.module.images_seen
    if preemption.stopped and not finished:
        if first:
            run_directory.write_status(start.directory, "preempted", images_seen=images_seen)
        saves = any(isinstance(callback, L.pytorch.callbacks.Checkpoint) for callback in parts.callbacks)
        what_next = (
            f"resume={start.directory} goes on" if saves else "nothing was saved (no callback saves checkpoints)"
        )
        raise Preempted(f"stopped by a signal at images_seen={images_seen}; {what_next}")
    if first:
        run_directory.write_status(start.directory, "finished" if finished else "interrupted", images_seen=images_seen)
        write_report(start.directory)


def _fit_with_roll_backs(
    new_trainer: Callable[[], L.Trainer], parts: Parts, start: run_directory.Start, first: bool
) -> None:
    """Train to the end; when training diverges, go back as often as ``callbacks.divergence`` allows.

    The number of times lies in the checkpoints, so that a run that is killed and resumed does the same again.
    """
    allowed = next((c.roll_backs for c in parts.callbacks if isinstance(c, DivergenceWatch)), 0)
    checkpoint = start.checkpoint
    while True:
        trainer = new_trainer()
        try:
            with processes.ended_together(trainer, start.directory):
                trainer.fit(parts.module, datamodule=parts.data, ckpt_path=checkpoint)
            error = getattr(trainer.strategy.checkpoint_io, "error", None)
            if error and parts.module.images_seen >= parts.schedule.total_images:
                raise FaultError(f"the last checkpoint could not be written ({error}); resume=auto does the end again")
            return
        except DivergedError as error:
            checkpoint = trainer.strategy.broadcast(run_directory.newest_usable_checkpoint(start.directory), src=0)
            if parts.module.record.roll_backs >= allowed or checkpoint is None:
                raise
            check_fits(checkpoint, parts)
            parts.module.record.roll_backs += 1
            if first:
                log.warning(
                    "%s Going back to it with %g times the learning rates (%d of %d)",
                    str(error).partition(" The newest")[0],
                    parts.module.roll_back_factor**parts.module.record.roll_backs,
                    parts.module.record.roll_backs,
                    allowed,
                )
                run_directory.set_aside_overtaken(start.directory, run_directory.clock_of(checkpoint))
                mark_resumed(start.directory, run_directory.clock_of(checkpoint))


def check_fits(checkpoint: Path, parts: Parts) -> None:
    """Check that training can go on from a checkpoint, perhaps a stranger's.

    Raises:
        ConfigError: If any of it is not what this run would have written.
    """
    check_resumable(checkpoint, run_directory.opened(checkpoint), parts.module, parts.callbacks)


def _reason(error: Exception, fault: str | None, pseudonyms: Pseudonyms) -> str:
    """Return why a run failed, as its directory may tell it: without patients, names of their files and secrets."""
    if isinstance(error, DataError):  # quotes tables, too, which hold whatever they hold
        return "DataError: the data cannot be used; the terminal said why (it may name patients, so this file does not)"
    return redacted(pseudonyms.hide(fault or f"{type(error).__name__}: {error}"))


def keep_extractors(parts: Parts, given: Node, config: Node) -> None:
    """Let periodic scores go on with the extractors that the run began with, and say so.

    Args:
        parts: What the given configuration has built.
        given: The configuration of this launch.
        config: The same with the run's own extractors.
    """
    scores = iter([callback for callback in parts.callbacks if isinstance(callback, FrechetScore)])
    for name, node in given["callbacks"].items():
        if node is not None and issubclass(objects.locate(node[files.TARGET], L.Callback), FrechetScore):
            callback, own = next(scores), config["callbacks"][name]["extractor"]
            if own != node["extractor"]:
                instead = type(callback.extractor).__name__
                callback.extractor = objects.build(own, f"callbacks.{name}.extractor", FeatureExtractor)
                log.warning(
                    "callbacks.%s: goes on with %s, as this run began, not with %s: their scores are not compared "
                    "(allow_changes=true changes over)",
                    name,
                    type(callback.extractor).__name__,
                    instead,
                )


def announce(start: run_directory.Start) -> None:
    """Say where the run lies and mark in its records where it goes on."""
    if start.checkpoint is None:
        log.info("run directory %s", start.directory)
        clock = -1
    else:
        log.info("resuming from %s", start.checkpoint)
        clock = run_directory.clock_of(start.checkpoint)
    mark_resumed(start.directory, clock)


def mark_resumed(directory: Path, clock: int) -> None:
    """Mark in the records that the run goes on from a clock; rows behind it will be done again."""
    for name in ("metrics.jsonl", "scores.jsonl"):
        if (directory / name).exists():
            append_rows(directory / name, [{"resumed_at": clock}])


def warn_of_slow_precision(settings: TrainerSettings) -> None:
    """Say so when a processor only emulates bf16."""
    slow = settings.precision == "bf16-mixed" and not processes.uses_gpu(settings)
    if slow and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        log.warning(
            "trainer.precision=bf16-mixed: this processor has no bf16 instructions and emulates them, up to 80 times "
            "slower than 32-true"
        )


class _LogFile(logging.FileHandler):
    """A log file that a full disk cuts short, without a word per line about it."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing: what is logged is on the terminal as well."""

    def close(self) -> None:
        """Close the file; lines that the disk has not taken are lost."""
        with suppress(OSError):
            super().close()


@contextmanager
def log_file(path: Path, hide: Callable[[str], str]) -> Iterator[None]:
    """Copy what is logged, warnings included, into a file, without secrets and what else ``hide`` replaces."""
    handler = _LogFile(path)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", hide))
    logging.captureWarnings(True)
    logging.getLogger().addHandler(handler)
    for package in ("callbacks", "datamodules", "experiments"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


@contextmanager
def quiet() -> Iterator[None]:
    """Let only errors of the other processes through."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
