"""Several processes, one run: who starts them, and how they agree on where the run begins.

Three cases: one process; Lightning starts the others from the first (``trainer.devices`` > 1); torchrun or SLURM
started all of them.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment

from experiments.configuration.errors import ConfigError
from experiments.configuration.experiment import TrainerSettings
from experiments.record.run_directory import Start, read_status, write_status
from experiments.running.handing_down import forget, hand_down, handed_down, started_by_the_first_process


class ProcessDiedError(RuntimeError):
    """Another process of the run has died; the message says which and how."""


def external_launcher() -> ClusterEnvironment | None:
    """Return torchrun's or SLURM's environment, or None if this process was not started by them."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect():
        return SLURMEnvironment(auto_requeue=False)  # its handler saves in the middle of a step
    return None


def uses_gpu(settings: TrainerSettings) -> bool:
    """Tell whether training runs on GPUs."""
    return settings.accelerator == "gpu" or (settings.accelerator == "auto" and torch.cuda.is_available())


def devices_per_machine(settings: TrainerSettings) -> int:
    """Return the number of processes per machine.

    Raises:
        ConfigError: If the machine does not have them.
    """
    available = torch.cuda.device_count()
    if settings.accelerator == "gpu" and not available:
        raise ConfigError(["trainer.accelerator='gpu': no GPU is visible on this machine; use cpu or auto"])
    if settings.devices == "auto":
        return available if uses_gpu(settings) else 1
    if uses_gpu(settings) and settings.devices > available:
        raise ConfigError([f"trainer.devices={settings.devices}: this machine has {available} GPUs"])
    return settings.devices


def world_size(settings: TrainerSettings, launcher: ClusterEnvironment | None) -> int:
    """Return the number of processes over all machines.

    Raises:
        ConfigError: If a launcher has started another number than the configuration says.
    """
    if launcher is None and settings.num_nodes > 1:
        raise ConfigError(
            [f"trainer.num_nodes={settings.num_nodes}: several machines need torchrun or SLURM to start the processes"]
        )
    expected = devices_per_machine(settings) * settings.num_nodes
    if launcher is not None and launcher.world_size() != expected:
        name = type(launcher).__name__.removesuffix("Environment")
        raise ConfigError(
            [
                f"trainer.devices x trainer.num_nodes = {expected}, but {name} has started {launcher.world_size()} "
                "processes; make the two agree"
            ]
        )
    return expected


def is_first_process(launcher: ClusterEnvironment | None) -> bool:
    """Tell whether this process creates directories and writes logs."""
    return launcher.global_rank() == 0 if launcher is not None else not started_by_the_first_process()


def let_the_first_process_speak() -> None:
    """Keep a process that Lightning started alive until the first one has ended.

    All processes meet the same error; the first one would take another's end for a death, and say that instead.
    """
    parent = os.getppid()
    deadline = time.monotonic() + 60.0
    while started_by_the_first_process() and os.getppid() == parent and time.monotonic() < deadline:
        time.sleep(0.2)


def leave_to_the_first_process(directory: Path) -> None:
    """End this process, which a launcher has started, without an error once the first one has said how the run ended.

    srun kills all processes as soon as one ends with an error, and ends with the highest code of all: the first process
    would lose its last words, and its code to that of a signal. So the others end with 0, and SIGTERM does not hurry
    them. torchrun ends its processes in the same way. Returns after a minute if the first process is silent: this one
    has met an error of its own, and must end with it so that the launcher ends those that wait for it.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN) if in_main_thread else None
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        if read_status(directory).get("state", "running") != "running":
            os._exit(0)
        time.sleep(0.05)
    if in_main_thread:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def ended_together(trainer: L.Trainer, directory: Path) -> Iterator[None]:
    """Say which process has died while the others train, and end them within five seconds.

    Watches the processes that Lightning started: without it the others could wait for the dead one in a collective for
    minutes. torchrun and SLURM watch over theirs.

    Raises:
        ProcessDiedError: Instead of the broken connection that one process meets when another dies.
    """
    parent, over = os.getppid(), threading.Event()
    started_by_parent = started_by_the_first_process()

    def dead() -> str | None:
        for rank, child in enumerate(_children(trainer), 1):
            if child.poll():
                return f"process {rank} (pid {child.pid}) {how_it_ended(child.returncode)}"
        if started_by_parent and os.getppid() != parent:
            return f"the first process (pid {parent}) has ended"
        return None

    def tell(what: str) -> None:
        print(f"error: {what}; ending the run, resume=auto goes on", file=sys.stderr, flush=True)
        if not started_by_parent:
            write_status(directory, "failed", reason=what)

    def watch() -> None:
        while not over.wait(0.5):
            dismiss_the_observer()
            what = dead()
            if what and not over.wait(2.0):  # time for the error that this process meets by itself
                tell(what)
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        time.sleep(0.2)  # the connection breaks before the system reports the death
        over.set()
        if what := dead():
            tell(what)
            raise ProcessDiedError(what) from error
        raise
    finally:
        over.set()


def dismiss_the_observer() -> None:
    """Take Lightning's own watcher off its post: it kills the first process before that can say what has happened."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            vars(thread)["_child_processes"] = []  # with none to watch over it ends


def how_it_ended(code: int) -> str:
    """Say what a process's return code means."""
    if code < 0:
        often = " (often: the machine ran out of memory)" if code == -signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{often}"
    return f"ended with exit code {code}"


_started: list[subprocess.Popen] = []  # by Lightning's launcher, once per run; a second trainer uses the same ones


def _children(trainer: L.Trainer) -> list[subprocess.Popen]:
    if found := getattr(trainer.strategy.launcher, "procs", []):
        _started[:] = found
    return _started


def agree_on_start(
    launcher: ClusterEnvironment | None, settings: TrainerSettings, decide: Callable[[], Start]
) -> Start:
    """Let the first process decide where the run begins, and give its answer to all.

    A time or a random id that every process computed for itself would differ between them.
    """
    if launcher is not None:
        return _broadcast_start(launcher, settings, decide)
    inherited = handed_down()
    if inherited is not None:
        return Start(*inherited)
    start = decide()
    hand_down(start.directory, start.checkpoint)
    return start


def forget_start() -> None:
    """End the handing down of a start: runs that this process starts later are no part of the one that has ended."""
    forget()
    _started.clear()


def _broadcast_start(launcher: ClusterEnvironment, settings: TrainerSettings, decide: Callable[[], Start]) -> Start:
    """Open the process group early (Lightning uses it when it finds it) and send the first process's answer."""
    if uses_gpu(settings):
        torch.cuda.set_device(launcher.local_rank())
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = launcher.main_address, str(launcher.main_port)
    torch.distributed.init_process_group(
        "nccl" if uses_gpu(settings) else "gloo", rank=launcher.global_rank(), world_size=launcher.world_size()
    )
    answer: list[Start | ConfigError | None] = [None]
    if launcher.global_rank() == 0:
        try:
            answer = [decide()]
        except ConfigError as error:
            answer = [error]
        except Exception as error:  # the others wait for an answer, whatever went wrong
            torch.distributed.broadcast_object_list([ConfigError([f"the first process failed: {error}"])], src=0)
            raise
    torch.distributed.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], ConfigError):
        raise answer[0]
    assert isinstance(answer[0], Start)
    return answer[0]
