"""Stops a run in good order when the machine is wanted back."""

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

import lightning as L
import torch

from lightning_modules.protocols import Clocked

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Preempted(Exception):
    """A signal asked for the machine; the run has saved what it needs to go on, if a callback saves checkpoints."""


class Preemption(L.Callback):
    """Ends training after the present step when any process gets SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C.

    A handler only notes the signal. After each batch the processes agree, so that all of them stop at the same clock,
    whether one got the signal or all did; then the checkpoint callback saves because training stops. Lightning's own
    handler answers the signal with a broadcast wherever the process happens to be, and hangs when all processes do
    so; it also ends with exit code 0, as if the run had finished.

    A second Ctrl-C ends at once.

    Attributes:
        stopped: Whether training was ended by a signal.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._noted: int | None = None
        self._pid = os.getpid()
        self._group: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Clocked) -> None:
        """Take the signals over from Lightning, which puts back what was there before when training ends."""
        self._pid = os.getpid()
        if trainer.world_size > 1 and self._group is None:
            # Agreement through the hosts' memory: a collective on the GPUs would wait for them after each batch.
            self._group = torch.distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Clocked, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree on stopping. This callback comes before the one that saves checkpoints, which saves when it stops."""
        if not self._any_process_noted():
            return
        self.stopped = trainer.should_stop = True
        what = signal.Signals(self._noted).name if self._noted is not None else "another process got a signal"
        how = (
            "after saving a checkpoint"
            if trainer.checkpoint_callbacks
            else "without a checkpoint: no callback saves one"
        )
        log.warning("%s: stopping at images_seen=%d %s", what, pl_module.images_seen, how)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a child that was forked while the handler was in place
            return
        if number == signal.SIGINT and self._noted == signal.SIGINT:
            raise KeyboardInterrupt
        self._noted = number

    def _any_process_noted(self) -> bool:
        if self._group is None:
            return self._noted is not None
        noted = torch.tensor([float(self._noted is not None)])
        torch.distributed.all_reduce(noted, group=self._group)
        return bool(noted)
