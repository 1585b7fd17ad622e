"""Keeps one child run: ``python -m experiments.jobs.keeper LOCK COMMAND...``; imports nothing heavy.

The keeper leads a session of its own and starts the run in it. It ends with the run's exit code (128 + n for signal
n), and ends the whole session when its standard input closes: that is what the death of the sweep
or study looks like, however it died, so no run trains on unnoticed, with several processes either.

LOCK is the file descriptor of the run's lock. Keeper and run both hold it: it is free only when both are gone, so
a run whose keeper was killed cannot be started a second time.
"""

import os
import signal
import subprocess
import sys
import threading
from typing import Any


def main(lock: int, command: list[str]) -> int:
    """Run a command to its end and return its exit code."""
    started: list[subprocess.Popen] = []
    asked_to_stop = threading.Event()

    def stop(number: int, frame: Any) -> None:
        asked_to_stop.set()
        for process in started:
            process.terminate()

    # A handler and not SIG_IGN, which the run would inherit.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[lock]))
    if asked_to_stop.is_set():
        started[0].terminate()
    code = started[0].wait()
    return code if code >= 0 else 128 - code


def _end_with_the_parent() -> None:
    while os.read(0, 1):
        pass
    os.killpg(os.getpid(), signal.SIGKILL)  # fails, and harms nobody, unless this process leads its group


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
