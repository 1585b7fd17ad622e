"""Trains a study's runs on this machine, some at a time; what has finished is not run again."""

import time
from collections.abc import Sequence

from experiments.cli import EXIT_PREEMPTED
from experiments.jobs import trials
from experiments.jobs.trials import (
    Trial,
    device_slots,
    environment,
    stop_requests,
    stop_trials,
    try_lock,
    was_interrupted,
)
from experiments.papers.study import Run, Study

ENDED = ("finished", "diverged")


def train(study: Study) -> int:
    """Train what has not ended, and return the exit code: 0, 1 if a run failed or diverged, 85 if interrupted.

    A run that diverged would do so again, and is not begun again. Runs that another process trains are left to it.
    """
    waiting = [run for run in study.runs if run.state() not in ENDED]
    _say(f"{len(study.runs) - len(waiting)} of {len(study.runs)} runs have ended")
    with stop_requests() as asked:
        pool = _Pool(study, asked)
        while (waiting or pool.running) and not asked:
            while waiting and pool.free:
                pool.start(waiting.pop(0))
            pool.settle()
            time.sleep(trials.POLL_SECONDS)
        if asked:
            _say("stopping: the runs save a checkpoint (another Ctrl-C kills them)")
            stop_trials(pool.trials, pool.settle, asked)
    if asked or pool.preempted:
        return EXIT_PREEMPTED
    return 1 if pool.failed or any(run.state() == "diverged" for run in study.runs) else 0


class _Pool:
    """The runs that train now, and the devices that are free.

    Args:
        study: What is run.
        asked: The signals so far that asked to stop.
    """

    def __init__(self, study: Study, asked: Sequence[int]) -> None:
        self.study, self.free, self.asked = study, device_slots(study), asked
        self.running: list[tuple[Run, Trial, str | None]] = []
        self.failed, self.preempted = 0, False

    def start(self, run: Run) -> None:
        """Begin a run, or go on with it, unless another process trains it or has just ended it."""
        lock = None if _is_trained(run) else try_lock(run.folder / "lock")
        if lock is None:
            _say(f"{run.folder.name} is trained by another process")
            return
        if run.state() in ENDED:
            lock.close()
            return
        devices = self.free.pop(0)
        trial = Trial(run.folder, lock, run.command(), environment(self.study, devices))
        self.running.append((run, trial, devices))
        _say(f"{run.folder.name} {'starts' if trials.newest_run(run.folder) is None else 'goes on'}")

    def settle(self) -> None:
        """Say what has ended, and free its devices."""
        for entry in list(self.running):
            run, trial, devices = entry
            code = trial.ended()
            if code is None:
                continue
            if was_interrupted(code, self.asked):
                self.preempted = True
                _say(f"{run.folder.name} was interrupted and will go on from its newest checkpoint")
            elif code:
                self.failed += 1
                _say(f"{run.folder.name} failed: {trial.reason(code)} (see {run.folder / 'stderr.txt'})")
            else:
                _say(f"{run.folder.name} finished")
            trial.release()
            self.running.remove(entry)
            self.free.append(devices)

    def trials(self) -> list[Trial]:
        """Return those that run."""
        return [trial for _, trial, _ in self.running]


def _is_trained(run: Run) -> bool:
    """Tell whether a process that this study did not start trains a run: it holds the run directory."""
    newest = trials.newest_run(run.folder)
    lock = try_lock(newest / ".lock") if newest else None
    if lock is not None:
        lock.close()
    return newest is not None and lock is None


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
