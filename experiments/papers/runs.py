"""Trains a study's runs on this machine, some at a time; what has finished is not run again."""

from experiments.cli import EXIT_PREEMPTED
from experiments.jobs.child import newest_run, try_lock
from experiments.jobs.pool import Pool, say
from experiments.papers.study import Run, Study

ENDED = ("finished", "diverged")


def train(study: Study) -> int:
    """Train what has not ended, and return the exit code: 0, 1 if a run failed or diverged, 85 if interrupted.

    A run that diverged would do so again, and is not begun again. Runs that another process trains are left to it.
    """
    training = _Training(study)
    stopped = training.pool.work(training.begin, training.settle)
    if stopped or training.preempted:
        return EXIT_PREEMPTED
    return 1 if training.failed or any(run.state() == "diverged" for run in study.runs) else 0


class _Training:
    """What waits, what runs, and what came of it."""

    def __init__(self, study: Study) -> None:
        self.waiting = [run for run in study.runs if run.state() not in ENDED]
        say(f"{len(study.runs) - len(self.waiting)} of {len(study.runs)} runs have ended")
        self.pool = Pool(study)
        self.failed, self.preempted = 0, False

    def begin(self) -> bool:
        """Start what there is room for; return False when all has ended."""
        while self.waiting and self.pool.has_room:
            self._start(self.waiting.pop(0))
        return bool(self.waiting or self.pool.running)

    def _start(self, run: Run) -> None:
        """Begin a run, or go on with it, unless another process trains it or has just ended it."""
        lock = None if _is_trained(run) else try_lock(run.folder / "lock")
        if lock is None:
            say(f"{run.folder.name} is trained by another process")
        elif run.state() in ENDED:
            lock.close()
        else:
            self.pool.start(run.folder.name, run.folder, lock, run.command())
            say(f"{run.folder.name} {'starts' if newest_run(run.folder) is None else 'goes on'}")

    def settle(self) -> None:
        """Say what has ended, and free its devices."""
        for name, child in list(self.pool.running.items()):
            code = child.ended()
            if code is None:
                continue
            if self.pool.interrupted(code):
                self.preempted = True
                say(f"{name} was interrupted and will go on from its newest checkpoint")
            elif code:
                self.failed += 1
                say(f"{name} failed: {child.reason(code)} (see {child.folder / 'stderr.txt'})")
            else:
                say(f"{name} finished")
            self.pool.remove(name)


def _is_trained(run: Run) -> bool:
    """Tell whether a process that this study did not start trains a run: it holds the run directory."""
    newest = newest_run(run.folder)
    lock = try_lock(newest / ".lock") if newest else None
    if lock is not None:
        lock.close()
    return newest is not None and lock is None
