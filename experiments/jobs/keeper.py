"""Keeps one trial: ``python -m experiments.jobs.keeper LOCK COMMAND...``; imports nothing heavy.

The keeper leads a session of its own and runs the trial in it. It ends with the trial's exit code (128 + n for signal
n), and ends the whole session when its standard input closes: that is what its sweep's death looks like, however the
sweep died, so no trial trains on unnoticed, with several processes either.

LOCK is the file descriptor of the trial's lock. Keeper and trial both hold it: it is free only when both are gone, so
a trial whose keeper was killed cannot be started a second time.
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

    # A handler and not SIG_IGN, which the trial would inherit.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[lock]))
    if asked_to_stop.is_set():
        started[0].terminate()
    code = started[0].wait()
    return code if code >= 0 else 128 - code


def _end_with_the_sweep() -> None:
    while os.read(0, 1):
        pass
    os.killpg(os.getpid(), signal.SIGKILL)  # fails, and harms nobody, unless this process leads its group


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
