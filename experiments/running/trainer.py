"""Lightning's trainer as a run uses it: one endless epoch that the module's clock stops."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from callbacks.checkpoint import AtomicCheckpointIO
from callbacks.ema import GeneratorEMA
from callbacks.environment import EnvironmentRecord
from callbacks.fade_in import FadeIn
from callbacks.preemption import Preemption
from experiments.configuration.experiment import TrainerSettings
from experiments.record import run_directory
from experiments.running import processes

log = logging.getLogger(__name__)


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


def warn_of_slow_precision(settings: TrainerSettings) -> None:
    """Say so when a processor only emulates bf16."""
    slow = settings.precision == "bf16-mixed" and not processes.uses_gpu(settings)
    if slow and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        log.warning(
            "trainer.precision=bf16-mixed: this processor has no bf16 instructions and emulates them, up to 80 times "
            "slower than 32-true"
        )
