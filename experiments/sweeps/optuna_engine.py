"""The study of a sweep, kept by Optuna: what to try next, what is known, who has to go.

Several processes, on one machine or on several, share a study through the sweep's folder. Numbers are given out under
the folder's lock, so that exactly the planned trials are made; a trial belongs to whoever holds its own lock.
"""

import fcntl
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from experiments.configuration.errors import ConfigError
from experiments.jobs.child import try_lock
from experiments.record.run_directory import write_text
from experiments.sweeps.folder import trial_name
from experiments.sweeps.settings import MedianPruning, Sweep
from experiments.sweeps.space import Assignment, Choice, Dimension, IntRange, label

FOLDER = "folder"  # user attribute of the study: the folder that its runs lie in


class JournalLock(JournalFileOpenLock):
    """Lets one process at a time write to the journal; the system lets go of it when that process dies.

    A row that a kill cut off would make the journal unreadable for good (Optuna writes the next one behind it):
    whoever writes next removes it.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._held: BinaryIO | None = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._held = self._journal.open("rb+")
        fcntl.flock(self._held, fcntl.LOCK_EX)
        content = self._held.read()
        if content and not content.endswith(b"\n"):
            self._held.truncate(content.rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Let go of it."""
        assert self._held is not None
        self._held.close()


class Study:
    """What a sweep has tried and will try.

    Args:
        sweep: The sweep; its folder exists.

    Raises:
        ConfigError: If the storage cannot be opened, or the study has its runs elsewhere.
    """

    def __init__(self, sweep: Sweep) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.sweep, self.space = sweep, sweep.search_space()
        self.folder = sweep.folder
        with self._locked():
            self._study = self._open()
            self._tie_to_folder()
            if sweep.method == "grid":
                self._enqueue_grid()
        grid = len(self.space.grid()) if sweep.method == "grid" else None
        self.planned = min(filter(None, (sweep.trials, grid)))

    def trials(self) -> list[FrozenTrial]:
        """Return all trials that were begun, in their order."""
        return self._study.get_trials(deepcopy=False, states=_BEGUN)

    def best(self) -> FrozenTrial | None:
        """Return the finished trial with the best value."""
        finished = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        sign = 1 if self.sweep.direction == "minimize" else -1
        return min(finished, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None)

    def next(self) -> tuple[int, Assignment, BinaryIO] | None:
        """Return number, assignment and lock of the trial to run next, or None if there is nothing for us.

        First those that were begun and that nobody holds (their sweep was killed), then new ones.
        """
        with self._locked():
            for number in [trial.number for trial in self.trials() if not trial.state.is_finished()]:
                lock = try_lock(self._lock_file(number))
                # Whoever held it may have written the outcome down just before letting go.
                if lock is not None and not self._frozen(number).state.is_finished():
                    return number, self._assign(self._running(number)), lock
                if lock is not None:
                    lock.close()
            begun = len(self.trials())
            if begun >= self.planned:
                return None
            # A sampler of its own for every number: the same on every machine, and never the same draw twice.
            self._study.sampler = _sampler(self.sweep, begun)
            asked = self._study.ask()
            lock = try_lock(self._lock_file(asked.number))
            assert lock is not None
            return asked.number, self._assign(asked), lock

    def assignment(self, trial: FrozenTrial) -> Assignment:
        """Return the values that a trial was made with."""
        values: Assignment = {}
        for dimension in self.space.dimensions:
            if dimension.key in trial.params:
                values[dimension.key] = _decoded(dimension, trial.params[dimension.key])
        return values

    def report(self, number: int, found: list[tuple[int, float]], cadence: int) -> None:
        """Write down the scores of a running trial that are new.

        Batches of different sizes cross the cadence at slightly different clocks; each score is written down under the
        multiple that it crossed, or no two trials could be compared.
        """
        trial = self._running(number)
        known = self._frozen(number).intermediate_values
        for images_seen, value in found:
            step = images_seen // cadence * cadence
            if step not in known:
                known = {**known, step: value}
                trial.report(value, step)

    def should_prune(self, number: int) -> bool:
        """Tell whether a running trial is too bad to go on."""
        return self.sweep.pruning is not None and self._running(number).should_prune()

    def tell(self, number: int, state: TrialState, value: float | None = None, **notes: object) -> None:
        """Write down how a trial ended.

        Args:
            number: Its number.
            state: COMPLETE (with a value), PRUNED or FAIL.
            value: Its score.
            notes: What the table says of it: reason, images_seen, run.
        """
        trial = self._running(number)
        for name, note in notes.items():
            trial.set_user_attr(name, note)
        self._study.tell(number, value, state=state, skip_if_finished=True)

    def importances(self) -> dict[str, float]:
        """Return how much each key matters for being among the best; empty if the trials cannot tell."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # about too few trials, whose answer would mean nothing
            try:
                return optuna.importance.get_param_importances(self._study)
            except (ValueError, RuntimeError, UserWarning):
                return {}

    def _open(self) -> optuna.Study:
        url = self.sweep.storage_url
        journal = self.folder / "journal.log"
        try:
            storage = url or optuna.storages.JournalStorage(JournalFileBackend(str(journal), JournalLock(journal)))
            return optuna.create_study(
                storage=storage,
                study_name=self.sweep.name,
                direction=self.sweep.direction,
                pruner=_pruner(self.sweep),
                load_if_exists=True,
            )
        except Exception as error:
            if url is None:
                raise
            # The library's own message may repeat the URL, and with it a password.
            raise ConfigError([f"storage: cannot be opened ({type(error).__name__}); is the URL right?"]) from None

    def _tie_to_folder(self) -> None:
        """Refuse a study whose runs lie in another folder: their locks would be invisible, trials would run twice."""
        path = self.folder / "study_id"
        if not path.is_file():
            write_text(path, secrets.token_hex(8) + "\n")
        mine, its = path.read_text().strip(), self._study.user_attrs.get(FOLDER)
        if its is None:
            self._study.set_user_attr(FOLDER, mine)
        elif its != mine:
            raise ConfigError(
                [
                    f"storage: its study {self.sweep.name!r} has its runs in another folder than {self.folder}; all "
                    "machines must share that folder (runs_dir), or the sweep needs another name"
                ]
            )

    def _enqueue_grid(self) -> None:
        points = self.space.grid()
        there = len(self._study.get_trials(deepcopy=False))
        for point in points[there:]:
            encoded = {dimension.key: _encoded(dimension, point[dimension.key]) for dimension in self._used(point)}
            self._study.enqueue_trial(encoded)

    def _used(self, assignment: Assignment) -> list[Dimension]:
        return [dimension for dimension in self.space.dimensions if dimension.key in assignment]

    def _assign(self, trial: optuna.Trial) -> Assignment:
        """Return the trial's values; those that it already has stay."""
        values: Assignment = {}
        for dimension in self.space.dimensions:
            if dimension.takes_part(values):
                values[dimension.key] = _suggested(trial, dimension)
        return values

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def _running(self, number: int) -> optuna.Trial:
        return optuna.Trial(self._study, self._frozen(number)._trial_id)

    def _lock_file(self, number: int) -> Path:
        return self.folder / "trials" / trial_name(number) / ".sweep-lock"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / ".lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


_BEGUN = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def _sampler(sweep: Sweep, number: int) -> optuna.samplers.BaseSampler:
    seed = int(np.random.SeedSequence([sweep.seed, number]).generate_state(1)[0])
    cls = optuna.samplers.TPESampler if sweep.method == "tpe" else optuna.samplers.RandomSampler
    return cls(seed=seed)


def _pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    rule = sweep.pruning_rule()
    if rule is None:
        return optuna.pruners.NopPruner()
    if isinstance(rule, MedianPruning):
        return optuna.pruners.MedianPruner(rule.startup_trials, n_warmup_steps=rule.after_images)
    return optuna.pruners.HyperbandPruner(rule.min_images, rule.max_images or "auto", rule.reduction_factor)


def _suggested(trial: optuna.Trial, dimension: Dimension) -> object:
    key, domain = dimension.key, dimension.domain
    if isinstance(domain, Choice):
        return _decoded(dimension, trial.suggest_categorical(key, list(map(label, domain.values))))
    if isinstance(domain, IntRange):
        return trial.suggest_int(key, domain.low, domain.high, step=domain.step)
    return trial.suggest_float(key, domain.low, domain.high, log=domain.log)


def _encoded(dimension: Dimension, value: object) -> object:
    return label(value) if isinstance(dimension.domain, Choice) else value


def _decoded(dimension: Dimension, value: object) -> object:
    domain = dimension.domain
    return domain.values[list(map(label, domain.values)).index(str(value))] if isinstance(domain, Choice) else value
