"""From a configuration to a trained run. ``run.py`` is its command line."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.loggers import Logger

from callbacks.divergence import DivergedError, DivergenceWatch
from callbacks.fid import FrechetScore
from callbacks.files import append_rows
from callbacks.preemption import Preempted, Preemption
from datamodules.files.errors import DataError
from datamodules.files.pseudonyms import Pseudonyms
from experiments.configuration import files, objects
from experiments.configuration.errors import ConfigError
from experiments.configuration.experiment import Experiment
from experiments.configuration.files import Node
from experiments.configuration.redaction import redacted
from experiments.record import run_directory
from experiments.record.checkpoint_check import check_resumable
from experiments.record.report import write_report
from experiments.record.tracking import JSONLinesLogger, wandb_logger
from experiments.running import processes
from experiments.running.agreement import check_together
from experiments.running.faults import FaultError, OutOfMemoryError, explain, is_out_of_memory
from experiments.running.logs import log_file, quiet
from experiments.running.parts import Parts, build, checked, recorded
from experiments.running.trainer import build_trainer, warn_of_slow_precision
from lightning_modules.metrics.features import FeatureExtractor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run as one process trains it.

    Attributes:
        parts: What its configuration has built.
        start: Its directory, and the checkpoint that it goes on from.
        launcher: What has started the processes, if it was not Lightning.
        loggers: Where its numbers go.
        preemption: Knows whether a signal has asked for an end.
        first: Whether this is the process that writes.
    """

    parts: Parts
    start: run_directory.Start
    launcher: ClusterEnvironment | None
    loggers: Sequence[Logger]
    preemption: Preemption
    first: bool

    def new_trainer(self) -> L.Trainer:
        """Return a trainer; one that has stopped cannot be used again."""
        parts, directory = self.parts, self.start.directory
        return build_trainer(parts.settings, self.launcher, parts.callbacks, self.loggers, directory, self.preemption)


def train(config: Node) -> Path:
    """Run an experiment to its end and return its run directory.

    Args:
        config: Plain, resolved values, from ``configuration.files.load``.

    Raises:
        ConfigError: With everything that is wrong with the configuration.
        DataError: If the data cannot be used.
        DivergedError: If training left the finite numbers.
        Preempted: If a signal stopped it; ``resume=auto`` goes on.
    """
    experiment = checked(config)
    launcher = processes.external_launcher()
    parts = build(experiment)
    check_together(parts, launcher)
    config = recorded(experiment)
    with ExitStack() as held:
        start = processes.agree_on_start(launcher, parts.settings, lambda: decide_start(experiment, config, held))
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
        run = Run(parts, start, launcher, loggers, Preemption(), first)
        parts.module.accept_other_data = experiment.allow_changes
        warn_of_slow_precision(parts.settings)
        try:
            fit(run)
        except Exception as error:
            if launcher is not None and not first and not isinstance(error, FaultError):  # which is this process's own
                processes.leave_to_the_first_process(start.directory)
            raise
        finally:
            if first:
                processes.forget_start()
            if mirror is not None:
                mirror.close(failed=sys.exc_info()[0] is not None, preempted=run.preemption.stopped)
    return start.directory


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


def fit(run: Run) -> None:
    """Train, and leave the run directory with its state and report whatever happens.

    Raises:
        Preempted: If a signal stopped training before its end.
        FaultError: If the machine ended it, e.g. memory ran out.
    """
    parts, start = run.parts, run.start
    done = start.checkpoint is not None and run_directory.clock_of(start.checkpoint) >= parts.schedule.total_images
    try:
        if start.checkpoint is not None and not done:
            check_fits(start.checkpoint, parts)
        if start.checkpoint is not None and run.first:
            run_directory.set_aside_overtaken(start.directory, run_directory.clock_of(start.checkpoint))
        if done:  # a run that was killed between its last checkpoint and its report
            log.info(
                "all %d images have been shown; to go on: resume=%s allow_changes=true and more schedule.total_images",
                parts.schedule.total_images,
                start.directory,
            )
        else:
            _fit_with_roll_backs(run)
    except Exception as error:
        fault = explain(error)
        if run.first and not isinstance(error, processes.ProcessDiedError):  # which has written its own
            state = "diverged" if isinstance(error, DivergedError) else "failed"
            run_directory.write_status(start.directory, state, reason=_reason(error, fault, parts.pseudonyms))
        if fault and is_out_of_memory(error):
            raise OutOfMemoryError(fault, parts.module.images_seen) from error
        if fault:
            raise FaultError(f"{fault} (images_seen={parts.module.images_seen})") from error
        raise
    finished = done or parts.module.images_seen >= parts.schedule.total_images
    images_seen = run_directory.clock_of(start.checkpoint) if done and start.checkpoint else parts.module.images_seen
    if run.preemption.stopped and not finished:
        if run.first:
            run_directory.write_status(start.directory, "preempted", images_seen=images_seen)
        saves = any(isinstance(callback, L.pytorch.callbacks.Checkpoint) for callback in parts.callbacks)
        what_next = (
            f"resume={start.directory} goes on" if saves else "nothing was saved (no callback saves checkpoints)"
        )
        raise Preempted(f"stopped by a signal at images_seen={images_seen}; {what_next}")
    if run.first:
        run_directory.write_status(start.directory, "finished" if finished else "interrupted", images_seen=images_seen)
        write_report(start.directory)


def _fit_with_roll_backs(run: Run) -> None:
    """Train to the end; when training diverges, go back as often as ``callbacks.divergence`` allows.

    The number of times lies in the checkpoints, so that a run that is killed and resumed does the same again.
    """
    parts, start = run.parts, run.start
    allowed = next((c.roll_backs for c in parts.callbacks if isinstance(c, DivergenceWatch)), 0)
    checkpoint = start.checkpoint
    while True:
        trainer = run.new_trainer()
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
            if run.first:
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
