"""Does the health watch name failures, and does it leave healthy runs alone?

``python -m experiments.benchmarks.instruments.health``.

Failures are made on purpose in small runs on kidney CT phantoms at 32x32. Each finished run adds its signals as one row
to ``runs.jsonl`` in the folder; rows that are there are not run again, so that a killed study goes on. The table is
computed from the rows with the limits of ``callbacks/health.py``, which were set on the seeds of ``--calibrate``.
"""

import argparse
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F

from callbacks.divergence import DivergedError
from callbacks.files import append_rows
from callbacks.health import DIVERGING, HEALTHY, PERSISTENT, STARTING, judge
from callbacks.preemption import Preemption
from callbacks.sample_grid import write_grid
from experiments.benchmarks.instruments.tables import finished
from experiments.configuration import files
from experiments.configuration.experiment import experiment_of
from experiments.record.tracking import JSONLinesLogger, read_rows
from experiments.running.parts import build
from experiments.running.trainer import build_trainer
from lightning_modules.cadence import Every
from lightning_modules.losses import gradient_penalty
from lightning_modules.protocols import Clocked, Judges, Samples, can
from lightning_modules.step import Batch

IMAGES, BATCH = 9_600, 16
EVERY = IMAGES // 40  # images between two measurements
IN_TIME = 0.2  # a failure must be named within this share of a run
CALIBRATION_SEED = 100  # seeds from here on are for setting limits, those below for testing them

COMMON = (
    "schedule.resolution=[32,32]",
    "data.kind=kidney_ct",
    "data.count=2000",
    "trainer.accelerator=cpu",
    *(f"callbacks.{name}=null" for name in ("losses", "rank_agreement", "score", "samples", "progress", "checkpoint")),
    f"callbacks.health.every_images={EVERY}",
)
SIZE = (f"schedule.batch_size={BATCH}", f"schedule.total_images={IMAGES}", "callbacks.ema.half_life_images=500")
FAMILIES = {
    "dcgan": (
        "dcgan_chest_phantoms_64",
        (*SIZE, "module.generator_channels=16", "module.discriminator_channels=8"),
    ),
    "wgan_gp": (
        "wgan_gp_mammogram_phantoms_80x64",
        (
            *SIZE,
            "data.view=both",
            "module.generator_channels=16",
            "module.discriminator_channels=8",
            "module.critic_steps=2",
            "module.learning_rate=5e-4",
        ),
    ),
}


# Failures -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """Something that is wrong with a run on purpose.

    Attributes:
        verdict: What it must be called.
        make: Breaks a module.
        begins: Share of the run at which it sets in.
    """

    verdict: str
    make: Callable[[Any], None]
    begins: float = 0.0


def collapse(module: Any) -> None:
    """Reward the generator for images that are alike, from 30 % of the run on: its weights do collapse."""
    losses: Callable[[Batch], dict[str, Tensor]] = module.generator_losses

    def alike(batch: Batch) -> dict[str, Tensor]:
        terms = losses(batch)
        if module.images_seen < 0.3 * IMAGES:
            return terms
        images = module.generator(module.draw_latents(len(batch["image"]), "generator"))
        return {**terms, "alike": 1000.0 * images.var(dim=0).mean()}

    module.generator_losses = alike


def constant_labels(module: Any) -> None:
    """Label generated images as real for the discriminator."""
    if hasattr(module, "critic"):
        module.critic_losses = lambda batch: _constant_wasserstein(module, batch)
    else:
        module.discriminator_losses = lambda batch: _constant_logistic(module, batch)


def high_rate(module: Any) -> None:
    """Multiply both learning rates by a hundred."""
    module.learning_rate *= 100.0


def many_critic_steps(module: Any) -> None:
    """Train the discriminator ten times as often as it should be."""
    phases = module.phases()
    slower = tuple(
        replace(phase, cadence=Every(10 * phase.cadence.batches(1))) if phase.name == "generator" else phase
        for phase in phases
    )
    module.phases = lambda: slower


def _constant_logistic(module: Any, batch: Batch) -> dict[str, Tensor]:
    real, fake = _real_and_fake(module, batch)
    return {
        "adversarial": F.softplus(-module.discriminator(real)).mean() + F.softplus(-module.discriminator(fake)).mean()
    }


def _constant_wasserstein(module: Any, batch: Batch) -> dict[str, Tensor]:
    real, fake = _real_and_fake(module, batch)
    epsilon = torch.rand(len(real), 1, 1, 1, generator=module.random("penalty"), device=module.device)
    penalty = module.penalty_weight * gradient_penalty(module.critic, real, fake, epsilon)
    return {"wasserstein": -module.critic(real).mean() - module.critic(fake).mean(), "penalty": penalty}


def _real_and_fake(module: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return batch["image"], module.generator(module.draw_latents(len(batch["image"]), "critic"))


FAILURES = {
    "collapsed generator": Failure("generator collapsing", collapse, begins=0.3),
    "constant labels": Failure("discriminator learns nothing", constant_labels),
    "learning rate x 100": Failure(DIVERGING, high_rate),
    "critic ten times as often": Failure("discriminator too strong", many_critic_steps),
}


# Running --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One run of the study; ``failure`` is a key of ``FAILURES`` or "healthy"."""

    failure: str
    family: str
    seed: int


def cases(calibrate: bool, failures: int = 10, healthy: int = 20) -> Iterator[Case]:
    """Yield runs for setting limits, or for testing them: families take turns."""
    first = CALIBRATION_SEED if calibrate else 0
    for seed in range(first, first + max(failures, healthy)):
        family = list(FAMILIES)[seed % 2]
        if seed < first + failures:
            yield from (Case(failure, family, seed) for failure in FAILURES)
        if seed < first + healthy:
            yield Case("healthy", family, seed)


class StopAt(L.Callback):
    """Ends a run early.

    Args:
        images_seen: The clock at which it ends.
    """

    def __init__(self, images_seen: int) -> None:
        self.images_seen = images_seen

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop at the clock."""
        assert can(pl_module, Clocked)
        trainer.should_stop = trainer.should_stop or pl_module.images_seen >= self.images_seen


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Train one run and return its row: what it was, and its signals."""
    name, overrides = FAMILIES[case.family]
    parts = build(experiment_of(files.load(name, [*COMMON, *overrides, f"seed={case.seed}"])))
    callbacks, module = parts.callbacks, parts.module
    assert can(module, Judges)
    if case.failure in FAILURES:
        failure = FAILURES[case.failure]
        failure.make(module)
        # What comes later is not looked at.
        callbacks = [*callbacks, StopAt(int((failure.begins + 1.25 * IN_TIME) * parts.schedule.total_images))]
    started, diverged_at = time.monotonic(), None
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        directory = Path(scratch)
        preemption = Preemption()
        loggers = [JSONLinesLogger(directory)]
        trainer = build_trainer(parts.settings, None, callbacks, loggers, directory, preemption)
        try:
            trainer.fit(parts.module, datamodule=parts.data)
        except DivergedError:
            diverged_at = parts.module.images_seen
        if preemption.stopped:
            raise KeyboardInterrupt
        rows = read_rows(directory / "metrics.jsonl")
    picture = folder / f"{case.failure} {case.family} {case.seed}.png".replace(" ", "_")
    if diverged_at is None and can(module, Samples):
        write_grid(module.sample(32, ema=False), picture, columns=8)
    signals = [
        {"images_seen": row["images_seen"]}
        | {key.removeprefix("health/"): value for key, value in row.items() if isinstance(value, float)}
        for row in rows
    ]
    return {
        **vars(case),
        "total_images": parts.schedule.total_images,
        "diverged_at": diverged_at,
        "seconds": round(time.monotonic() - started, 1),
        "signals": signals,
    }


# The table ------------------------------------------------------------------------------------------------------------


def verdicts(row: dict[str, Any]) -> list[tuple[int, str]]:
    """Return clock and verdict of each measurement of a run, with the present limits."""
    signals = row["signals"]
    clocks = [measurement["images_seen"] for measurement in signals]
    names = [judge(signals[max(0, n - PERSISTENT) : n], n).name for n in range(1, len(signals) + 1)]
    ended = [(row["diverged_at"], DIVERGING)] if row["diverged_at"] is not None else []
    return [*zip(clocks, names, strict=True), *ended]


def named_after(row: dict[str, Any]) -> float | None:
    """Return the share of the run from a failure's beginning until its right name, or None if it was never named."""
    failure = FAILURES[row["failure"]]
    begins = failure.begins * row["total_images"]
    found = [clock for clock, verdict in verdicts(row) if clock >= begins and verdict == failure.verdict]
    return (found[0] - begins) / row["total_images"] if found else None


def table(rows: list[dict[str, Any]]) -> str:
    """Return what was named, when, and what else was said."""
    lines = [f"{'run':<26} {'named in time':>14} {'share of the run, per seed (- = never)'}"]
    hits = total = 0
    for failure in FAILURES:
        of = [row for row in rows if row["failure"] == failure]
        after = [named_after(row) for row in of]
        in_time = sum(share is not None and share <= IN_TIME for share in after)
        hits, total = hits + in_time, total + len(of)
        shares = " ".join("-" if share is None else f"{share:.2f}" for share in after)
        lines.append(f"{failure:<26} {f'{in_time} of {len(of)}':>14} {shares}")
        lines += [f"    also called: {_said(row)}" for row in of if _said(row)]
    healthy = [row for row in rows if row["failure"] == "healthy"]
    ill = [row for row in healthy if _said(row)]
    lines.append(f"{'all failures':<26} {f'{hits} of {total}':>14}")
    lines.append(f"{'healthy, called ill':<26} {f'{len(ill)} of {len(healthy)}':>14}")
    lines += [f"    {_said(row)}" for row in ill]
    return "\n".join(lines)


def _said(row: dict[str, Any]) -> str:
    """Return the run's wrong verdicts, each with its first clock."""
    right = FAILURES[row["failure"]].verdict if row["failure"] in FAILURES else HEALTHY
    first: dict[str, int] = {}
    for clock, verdict in verdicts(row):
        if verdict not in (right, HEALTHY, STARTING):
            first.setdefault(verdict, clock)
    said = ", ".join(f"{verdict} at {clock}" for verdict, clock in first.items())
    return f"{row['family']} seed {row['seed']}: {said}" if said else ""


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.instruments.health", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/health_study"), help="where rows and samples are kept"
    )
    parser.add_argument(
        "--calibrate", action="store_true", help="the seeds that limits are set on, not those that test"
    )
    parser.add_argument("--failures", type=int, default=10, help="seeds per failure")
    parser.add_argument("--healthy", type=int, default=20, help="healthy runs")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_MODE", "disabled")
    torch.set_num_threads(1)  # small convolutions gain nothing from more
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    record = options.folder / "runs.jsonl"
    wanted = list(cases(options.calibrate, options.failures, options.healthy))
    done = {_key(row): row for row in finished(record)}
    for case in wanted:
        if _key(vars(case)) not in done:
            row = done[_key(vars(case))] = run(case, options.folder)
            append_rows(record, [row])
            said = ", ".join(dict.fromkeys(verdict for _, verdict in verdicts(row)))
            print(f"{case.failure}, {case.family}, seed {case.seed}: {row['seconds']} s, {said}", flush=True)
    print(table([done[_key(vars(case))] for case in wanted]))


def _key(row: dict[str, Any]) -> str:
    return json.dumps([row["failure"], row["family"], row["seed"]])


if __name__ == "__main__":
    main()
