"""One run as a process tree of its own, and how it ended."""

import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from experiments.record.run_directory import read_status

OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemoryError|MemoryError|[Cc]an(?:no|')t allocate memory")


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


class ChildRun:
    """A run under way: a keeper that leads a session, and in it the run with all its processes.

    Args:
        folder: Holds its run directory, and ``stderr.txt`` and ``stdout.txt``, to which goes what it prints.
        lock: The run's lock, from ``try_lock``.
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
        """Return the exit code (-n for signal n), or None while the run goes on; nothing of its session is left."""
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
        """End every process of its session."""
        os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait until a killed run is gone."""
        while self.ended() is None:
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def release(self) -> None:
        """Let go of the lock: the outcome is written down, or the run is left to be continued."""
        self._lock.close()

    def reason(self, code: int) -> str:
        """Say in a sentence why the run failed."""
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
    """Return the newest run directory that a child run has made in its folder."""
    return max((path.parent for path in folder.glob("*/config.yaml")), key=lambda path: path.name, default=None)


def outcome(folder: Path) -> tuple[str | None, str]:
    """Return state and reason of the newest run in a folder as its directory tells them."""
    run = newest_run(folder)
    status = read_status(run) if run else {}
    return status.get("state"), status.get("reason", "")
