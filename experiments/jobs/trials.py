"""One trial as a process tree of its own, and what can be read from the folder that it leaves."""

import fcntl
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from experiments.cli import EXIT_PREEMPTED
from experiments.configuration.errors import ConfigError
from experiments.record.run_directory import read_status
from experiments.record.tracking import read_rows
from experiments.sweeps.settings import STORAGE_VARIABLE

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
GRACE_SECONDS = 300.0  # for a checkpoint, after which a trial is killed; it goes on from an older one

OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemoryError|MemoryError|[Cc]an(?:no|')t allocate memory")


def trial_name(number: int) -> str:
    """Return the name under which a trial's run directories lie."""
    return f"trial_{number:04d}"


class Shares(Protocol):
    """How a machine is shared out: so many trials at a time, so many processes each."""

    @property
    def parallel(self) -> int:
        """Trials at a time."""

    @property
    def devices_per_trial(self) -> int:
        """Processes of a trial, each on a GPU of its own if there are any."""


def try_lock(path: Path) -> BinaryIO | None:
    """Hold a file for this process and those that inherit it, or return None if somebody else does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


class Trial:
    """A running trial: a keeper that leads a session, and in it the run with all its processes.

    Args:
        folder: ``trials/trial_NNNN``; what the run prints goes to ``stderr.txt`` and ``stdout.txt`` there.
        lock: The trial's lock, from ``try_lock``.
        command: What to run.
        environment: Its environment.
    """

    def __init__(self, folder: Path, lock: BinaryIO, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.folder, self._lock = folder, lock
        with (folder / "stdout.txt").open("ab") as out, (folder / "stderr.txt").open("ab") as errors:
            self._said_before = errors.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "experiments.jobs.keeper", str(lock.fileno()), *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=errors,
                env=environment,
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )

    def ended(self) -> int | None:
        """Return the exit code (-n for signal n), or None while the trial runs; nothing of its session is left."""
        if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        self.kill()  # before the keeper is reaped: its number cannot be another group's yet
        code = self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        return 128 - code if code > 128 else code

    def ask_to_stop(self) -> None:
        """Ask the run to save a checkpoint and end."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End every process of the trial's session."""
        os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait until a killed trial is gone."""
        while self.ended() is None:
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def release(self) -> None:
        """Let go of the lock: the outcome is written down, or the trial is left to be continued."""
        self._lock.close()

    def reason(self, code: int) -> str:
        """Say in a sentence why the trial failed."""
        with (self.folder / "stderr.txt").open("rb") as file:
            file.seek(self._said_before)
            return reason(code, file.read().decode(errors="replace"))


def reason(code: int, said: str) -> str:
    """Say in a sentence why a run failed.

    Args:
        code: Its exit code, -n for signal n.
        said: What it wrote to stderr.
    """
    last = _last_error(said)
    if OUT_OF_MEMORY.search(said):
        return f"out of memory: {last}"
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}{' (often: out of memory)' if code == -signal.SIGKILL else ''}"
    if code == 3:
        return f"diverged: {last.removeprefix('training diverged: ')}"
    if code == 2:
        return f"wrong configuration or data: {last}"
    return f"{last} (exit code {code})"


def _last_error(said: str) -> str:
    """Return the last sentence that tells of an error."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", said) if line.strip()]
    refusals = [index for index, line in enumerate(lines) if re.match(r"(\d+ errors|error) in .*:$", line)]
    if refusals:
        return "; ".join(lines[refusals[-1] + 1 :])
    errors = [line for line in lines if re.match(r"error: |[\w.]*(Error|Exception|Interrupt)\b", line)]
    found = errors or lines or ["it said nothing"]
    return found[-1].removeprefix("error: ")


def newest_run(folder: Path) -> Path | None:
    """Return the newest run directory of a trial."""
    return max((path.parent for path in folder.glob("*/config.yaml")), key=lambda path: path.name, default=None)


def outcome(folder: Path) -> tuple[str | None, str]:
    """Return state and reason of a trial's newest run as its directory tells them."""
    run = newest_run(folder)
    status = read_status(run) if run else {}
    return status.get("state"), status.get("reason", "")


def scores(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Return (images seen, value) of every score of a trial's newest run, oldest first."""
    run = newest_run(folder)
    rows = read_rows(run / "metrics.jsonl") if run else []
    return [(row["images_seen"], row[metric]) for row in rows if metric in row]


def metrics_of(folder: Path) -> list[str]:
    """Return the names of everything that a trial's newest run has logged."""
    run = newest_run(folder)
    rows: list[dict[str, Any]] = read_rows(run / "metrics.jsonl") if run else []
    return sorted({key for row in rows for key in row} - {"images_seen", "time"})


def value_of(found: Sequence[tuple[int, float]], which: str, direction: str) -> float | None:
    """Return the last or the best of a trial's scores, or None if none is finite."""
    values = [value for _, value in found if math.isfinite(value)]
    if not values or which == "best":
        return (min if direction == "minimize" else max)(values, default=None)
    return values[-1] if math.isfinite(found[-1][1]) else None


def environment(shares: Shares, devices: str | None) -> dict[str, str]:
    """Return a trial's environment: its share of GPUs and threads, nothing that belongs to its sweep."""
    variables = dict(os.environ)
    variables.pop(STORAGE_VARIABLE, None)
    # As many threads as cores in every one of several trials wait for each other, many times slower.
    variables.setdefault("OMP_NUM_THREADS", str(threads_per_process(shares)))
    if devices is not None:
        variables["CUDA_VISIBLE_DEVICES"] = devices
    return variables


def threads_per_process(shares: Shares) -> int:
    """Return the share of this machine's cores that one process of a trial gets."""
    return max(1, len(os.sched_getaffinity(0)) // (shares.parallel * shares.devices_per_trial))


def device_slots(shares: Shares) -> list[str | None]:
    """Return CUDA_VISIBLE_DEVICES of every trial that runs at a time, or None where there is no GPU.

    With fewer GPUs than trials need, trials share them in turn.

    Raises:
        ConfigError: If one trial alone needs more GPUs than there are.
    """
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())] if named is None else []
    if not visible:
        return [None] * shares.parallel
    each = shares.devices_per_trial
    if each > len(visible):
        raise ConfigError([f"devices_per_trial={each}: this machine has {len(visible)} GPUs ({','.join(visible)})"])
    if each * shares.parallel > len(visible):
        log.warning("%d trials of %d GPUs share the %d that there are", shares.parallel, each, len(visible))
    return [",".join(visible[(slot * each + i) % len(visible)] for i in range(each)) for slot in range(shares.parallel)]


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM instead of dying of them; trials have sessions of their own and see neither."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_trials(running: Callable[[], Sequence[Trial]], settle: Callable[[], None], asked: Sequence[int]) -> None:
    """Let trials save a checkpoint and end; a second signal, or too long a wait, kills them.

    Args:
        running: Returns those that run.
        settle: Writes down what has ended, after which ``running`` no longer returns it.
        asked: The signals so far, from ``stop_requests``.
    """
    for trial in running():
        trial.ask_to_stop()
    deadline = time.monotonic() + GRACE_SECONDS
    while left := running():
        if len(asked) > 1 or time.monotonic() > deadline:
            for trial in left:
                trial.kill()
        settle()
        time.sleep(POLL_SECONDS)


def was_interrupted(code: int, asked: Sequence[int]) -> bool:
    """Tell whether a trial that ended with an exit code will go on: it saved, or was killed since a stop was asked."""
    return code == EXIT_PREEMPTED or (bool(asked) and code < 0)
