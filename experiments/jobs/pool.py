"""Child runs on this machine, some at a time, until nothing is left or somebody asks to stop."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from experiments.cli import EXIT_PREEMPTED
from experiments.jobs.child import ChildRun
from experiments.jobs.devices import Shares, device_slots, environment

POLL_SECONDS = 0.5
GRACE_SECONDS = 300.0  # for a checkpoint, after which a run is killed; it goes on from an older one


class Pool:
    """The runs that go on now, and the devices that are free.

    Args:
        shares: How the machine is shared out.

    Attributes:
        running: The runs by name.
        asked: The signals so far that asked to stop.

    Raises:
        ConfigError: If one run alone needs more GPUs than there are.
    """

    def __init__(self, shares: Shares) -> None:
        self.running: dict[str, ChildRun] = {}
        self.asked: list[int] = []
        self._shares, self._free = shares, device_slots(shares)
        self._devices: dict[str, str | None] = {}

    @property
    def has_room(self) -> bool:
        """Whether another run may start."""
        return bool(self._free) and not self.asked

    def start(self, name: str, folder: Path, lock: BinaryIO, command: Sequence[str]) -> None:
        """Begin a run, or go on with it, on free devices; see ``ChildRun`` for the arguments."""
        self._devices[name] = devices = self._free.pop(0)
        self.running[name] = ChildRun(folder, lock, command, environment(self._shares, devices))

    def remove(self, name: str) -> None:
        """Let go of a run that has ended and whose outcome is written down."""
        self.running.pop(name).release()
        self._free.append(self._devices.pop(name))

    def interrupted(self, code: int) -> bool:
        """Tell whether a run that ended with an exit code goes on later: it saved, or was killed since a stop."""
        return code == EXIT_PREEMPTED or (bool(self.asked) and code < 0)

    def work(self, begin: Callable[[], bool], settle: Callable[[], None]) -> bool:
        """Let runs go on until nothing is left to do, and return whether a signal ended that.

        At a signal the runs save a checkpoint and end; a second one, or too long a wait, kills them.

        Args:
            begin: Starts what there is room for; returns False when all has ended.
            settle: Writes down what has ended, and removes it.
        """
        with _stop_requests() as self.asked:
            while not self.asked and begin():
                settle()
                time.sleep(POLL_SECONDS)
            if not self.asked:
                return False
            say("stopping: the runs save a checkpoint (another Ctrl-C kills them)")
            for run in self.running.values():
                run.ask_to_stop()
            deadline = time.monotonic() + GRACE_SECONDS
            while self.running:
                if len(self.asked) > 1 or time.monotonic() > deadline:
                    for run in self.running.values():
                        run.kill()
                settle()
                time.sleep(POLL_SECONDS)
        return True


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM instead of dying of them; the runs have sessions of their own and see neither."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(line: str) -> None:
    """Print a line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
