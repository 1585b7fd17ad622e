"""Runs a sweep's trials on this machine, some at a time, until the plan is done or somebody asks to stop."""

import sys
import time
from typing import Any

from optuna.trial import TrialState

from experiments.cli import EXIT_PREEMPTED
from experiments.configuration.errors import did_you_mean
from experiments.jobs.child import newest_run, outcome
from experiments.jobs.devices import environment
from experiments.jobs.pool import Pool, say
from experiments.sweeps.folder import prepare, trial_name, trial_number
from experiments.sweeps.optuna_engine import Study
from experiments.sweeps.page import write_reports, write_table
from experiments.sweeps.settings import Sweep, check_experiments
from experiments.sweeps.space import EXPERIMENT, Assignment, label
from experiments.sweeps.values import metrics_of, scores, value_of


class Runner:
    """A sweep on this machine.

    Args:
        sweep: What to search.

    Raises:
        ConfigError: With everything that is wrong with it.
    """

    def __init__(self, sweep: Sweep) -> None:
        check_experiments(sweep)
        self.sweep = sweep
        self._pool = Pool(sweep)
        prepare(sweep)
        self.study = Study(sweep)
        self._cadences: dict[int, int] = {}
        self._began, self._ended_here = time.monotonic(), 0

    def run(self) -> int:
        """Run trials until none is left, write the reports, and return the exit code."""
        if self._pool.work(self._begin, self._poll):
            write_table(self.study)
            print(f"interrupted; the same command continues {self.sweep.folder}", file=sys.stderr)
            return EXIT_PREEMPTED
        print("\n".join(write_reports(self.study)))
        return 0 if self.study.best() else 1

    def _begin(self) -> bool:
        """Start trials on free devices; return False when every planned trial has ended, on other machines too."""
        while self._pool.has_room:
            following = self.study.next()
            if following is None:
                break
            self._start(*following)
        return bool(self._pool.running) or not all(trial.state.is_finished() for trial in self.study.trials())

    def _start(self, number: int, assignment: Assignment, lock: Any) -> None:
        name = trial_name(number)
        folder = self.sweep.folder / "trials" / name
        state, why = outcome(folder)
        self._cadences[number] = self.sweep.cadence(assignment)
        if state == "finished":  # and its sweep was killed before it could write that down
            self._settle(number, 0, "")
            lock.close()
        elif state == "diverged":
            self._settle(number, 3, why.removeprefix("DivergedError: ").replace("training diverged", "diverged"))
            lock.close()
        else:
            self._pool.start(name, folder, lock, trial_command(self.sweep, number, assignment))
            say(f"{name} {'starts' if state is None else 'goes on'}: {_shown(assignment)}")

    def _poll(self) -> None:
        """Write down new scores, end what is too bad, and settle what has ended."""
        for name, trial in list(self._pool.running.items()):
            number, code = trial_number(name), trial.ended()
            self._report(number)
            if code is None and not self._pool.asked and self.study.should_prune(number):
                trial.kill()
                trial.wait()
                self._settle(number, None, "its score was too bad to go on")
            elif code is None:
                continue
            elif self._pool.interrupted(code):
                say(f"{name} was interrupted and will go on from its newest checkpoint")
            else:
                self._settle(number, code, trial.reason(code) if code else "")
            self._pool.remove(name)

    def _report(self, number: int) -> list[tuple[int, float]]:
        """Write down the scores of a trial, and return them."""
        found = scores(self.sweep.folder / "trials" / trial_name(number), self.sweep.metric)
        self.study.report(number, found, self._cadences[number])
        return found

    def _settle(self, number: int, code: int | None, reason: str) -> None:
        """Write down how a trial ended.

        Args:
            number: Its number.
            code: Its exit code, or None if it was pruned.
            reason: Why it failed or was pruned.
        """
        folder = self.sweep.folder / "trials" / trial_name(number)
        found = self._report(number)
        value = value_of(found, self.sweep.value, self.sweep.direction)
        state = TrialState.PRUNED if code is None else TrialState.FAIL if code else TrialState.COMPLETE
        if code == 0 and value is None:
            state, reason = TrialState.FAIL, self._missing(folder, bool(found))
        notes: dict[str, Any] = {"reason": reason, "images_seen": found[-1][0] if found else None}
        run = newest_run(folder)
        notes["run"] = str(run.relative_to(self.sweep.folder)) if run else None
        notes["threads"] = environment(self.sweep, None)["OMP_NUM_THREADS"]
        self.study.tell(number, state, value if state == TrialState.COMPLETE else None, **notes)
        self._ended_here += 1
        write_table(self.study)
        said = f"{value:.6g}" if state == TrialState.COMPLETE else reason
        say(f"{trial_name(number)} {WORDS[state]}: {said} ({self._progress()})")

    def _missing(self, folder: Any, taken: bool) -> str:
        if taken:
            return f"{self.sweep.metric} was not finite"
        known = metrics_of(folder)
        hint = did_you_mean(self.sweep.metric, known) or f"; there are {', '.join(known) or 'none'}"
        return f"{self.sweep.metric} is not in metrics.jsonl{hint}"

    def _progress(self) -> str:
        ended = sum(trial.state.is_finished() for trial in self.study.trials())
        best = self.study.best()
        parts = [f"{ended} of {self.study.planned} ended"]
        if best is not None:
            parts.append(f"best {best.value:.6g} of {trial_name(best.number)}")
        left = self.study.planned - ended
        if left > 0:
            minutes = (time.monotonic() - self._began) / self._ended_here * left / 60
            parts.append(f"about {minutes:.0f} min left here")
        return ", ".join(parts)


WORDS = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "was pruned", TrialState.FAIL: "failed"}


def trial_command(sweep: Sweep, number: int, assignment: Assignment) -> list[str]:
    """Return the command line of a trial; the same one continues it."""
    experiment, overrides = sweep.command(assignment)
    launch = [
        f"name={trial_name(number)}",
        f"runs_dir={sweep.folder / 'trials'}",
        f"tracking={sweep.tracking}",
        f"wandb_project={sweep.wandb_project}",
        "resume=auto",
    ]
    return [sys.executable, "-m", "experiments.run", experiment, *overrides, *launch]


def _shown(assignment: Assignment) -> str:
    order = sorted(assignment, key=lambda key: key != EXPERIMENT)
    return ", ".join(f"{key}={_text(assignment[key])}" for key in order)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else label(value)
