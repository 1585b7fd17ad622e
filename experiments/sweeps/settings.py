"""A sweep's file: what it searches, how, and what an engine cannot do; checked before anything starts."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from experiments.configuration import files, objects
from experiments.configuration.errors import ConfigError, did_you_mean
from experiments.configuration.experiment import Experiment
from experiments.configuration.files import SWEEPS, Node
from experiments.configuration.redaction import STORAGE_VARIABLE
from experiments.sweeps.space import EXPERIMENT, RESERVED, Assignment, FloatRange, Space, overrides_of, parse_space

INSTEAD = {
    "tracking": "write tracking: at the top",
    "wandb_project": "write wandb_project: at the top",
    "trainer.devices": "write devices_per_trial: at the top",
}


@dataclass(frozen=True)
class MedianPruning:
    """End a trial whose best score so far is worse than the median of the others at the same clock.

    Args:
        after_images: Images that every trial may see first.
        startup_trials: Trials that must have finished before one is ended.
    """

    after_images: int = 0
    startup_trials: int = 5

    def __post_init__(self) -> None:
        """Refuse negative numbers."""
        if self.after_images < 0 or self.startup_trials < 0:
            raise ValueError(f"after_images={self.after_images}, startup_trials={self.startup_trials}: must not be < 0")


@dataclass(frozen=True)
class HyperbandPruning:
    """Hyperband (Li 2018): trials go on only if they are among the best at a few clocks.

    Args:
        min_images: First clock at which a trial may end.
        max_images: Images of a whole trial; null = those of the first trial that finishes.
        reduction_factor: One of so many trials goes on.
    """

    min_images: int
    max_images: int | None = None
    reduction_factor: int = 3

    def __post_init__(self) -> None:
        """Refuse clocks in the wrong order."""
        if self.min_images < 1 or self.reduction_factor < 2:
            raise ValueError(
                f"min_images={self.min_images}, reduction_factor={self.reduction_factor}: must be at least 1 and 2"
            )
        if self.max_images is not None and self.max_images < self.min_images:
            raise ValueError(f"max_images={self.max_images}: must be at least min_images={self.min_images}")


PRUNING = {"median": MedianPruning, "hyperband": HyperbandPruning}


@dataclass(frozen=True)
class Sweep:
    """The top level of a sweep file.

    Args:
        name: Folder of the sweep below ``<runs_dir>/sweeps``; the file's name unless given.
        metric: Name of the periodic score in metrics.jsonl.
        space: What varies: choice, int, float or log by key, with ``when`` for conditions.
        experiment: Name or file of the experiment to start from, unless the space varies it.
        overrides: Changes of single values, the same for all trials.
        direction: Whether a low or a high score is good.
        value: A trial's score: its "last", or its "best", which flatters scores that go up and down.
        method: "tpe", "random" or "grid".
        trials: Budget; crashed and pruned trials count. null = the whole grid.
        seed: Seed of what is drawn from the space; the experiment's own seed is not touched.
        pruning: {rule: median, ...} or {rule: hyperband, ...}; null = every trial runs to its end.
        engine: "optuna" runs the trials here, "wandb" leaves that to W&B's agents.
        parallel: Trials at a time on this machine.
        devices_per_trial: Processes (and GPUs, where there are some) of each trial.
        storage: Database URL of the study; null = a journal in the sweep's folder. MIRAGE_SWEEP_STORAGE goes before.
        runs_dir: Folder of all runs.
        tracking: W&B of every trial: "offline", "online" or "disabled".
        wandb_project: W&B project.
    """

    name: str
    metric: str
    space: Node
    experiment: str | None = None
    overrides: tuple[str, ...] = ()
    direction: Literal["minimize", "maximize"] = "minimize"
    value: Literal["last", "best"] = "last"
    method: Literal["tpe", "random", "grid"] = "tpe"
    trials: int | None = None
    seed: int = 0
    pruning: Node | None = None
    engine: Literal["optuna", "wandb"] = "optuna"
    parallel: int = 1
    devices_per_trial: int = 1
    storage: str | None = field(default=None, repr=False)  # may hold a password
    runs_dir: str = "runs"
    tracking: Literal["offline", "online", "disabled"] = "offline"
    wandb_project: str = "mirage"

    def __post_init__(self) -> None:
        """Refuse values that would escape the folder of runs or fail late."""
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise ValueError(f"name={self.name!r}: must be a plain folder name")
        for key in ("trials", "parallel", "devices_per_trial"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least 1")
        if self.trials is None and self.method != "grid":
            raise ValueError(f"trials: is required by method={self.method} (only a grid has an end of its own)")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must not be negative")

    @property
    def folder(self) -> Path:
        """The sweep's folder."""
        return (Path(self.runs_dir) / "sweeps" / self.name).absolute()

    @property
    def storage_url(self) -> str | None:
        """The database of the study, from the environment or the file; a secret."""
        return os.environ.get(STORAGE_VARIABLE) or self.storage

    def search_space(self) -> Space:
        """The parsed space."""
        return parse_space(self.space)

    def pruning_rule(self) -> MedianPruning | HyperbandPruning | None:
        """The parsed pruning rule."""
        if self.pruning is None:
            return None
        cls = PRUNING[self.pruning["rule"]]
        return objects.build_plain(cls, {key: value for key, value in self.pruning.items() if key != "rule"}, "pruning")

    def command(self, assignment: Assignment) -> tuple[str, list[str]]:
        """Return the experiment and the overrides of a trial, without what belongs to its launch."""
        experiment = assignment.get(EXPERIMENT, self.experiment)
        assert isinstance(experiment, str)
        return experiment, [*self.overrides, *overrides_of(assignment), f"trainer.devices={self.devices_per_trial}"]

    def cadence(self, assignment: Assignment) -> int:
        """Return the images between two scores of a trial."""
        experiment, overrides = self.command(assignment)
        node = _scores(files.load(experiment, overrides).get("callbacks", {})).get(self.metric)
        return 1 if node is None else int(objects.completed(node)["every_images"])

    def recorded(self) -> Node:
        """Return the sweep as its folder keeps it: without the storage, which may hold a password."""
        values = {key: value for key, value in asdict(self).items() if key != "storage"}
        return {**values, "overrides": list(self.overrides)}


def load_sweep(name_or_file: str, overrides: Sequence[str] = ()) -> Sweep:
    """Load a sweep's file and check everything that needs no experiment.

    Raises:
        ConfigError: With every problem that was found.
    """
    sweep = objects.top_level(Sweep, files.load(name_or_file, overrides, SWEEPS))
    problems = _problems_of_pruning(sweep) + _problems_of_overrides(sweep)
    try:
        space = sweep.search_space()
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    varies = EXPERIMENT in [dimension.key for dimension in space.dimensions]
    if varies == (sweep.experiment is not None):
        problems.append("experiment: name it either at the top or in the space")
    if not problems and sweep.method == "grid":
        problems += [
            f"space.{dimension.key}: a grid cannot have a continuous range; use choice, or int with step"
            for dimension in space.dimensions
            if isinstance(dimension.domain, FloatRange)
        ]
    if problems:
        raise ConfigError(problems)
    return sweep


def check_experiments(sweep: Sweep) -> None:
    """Load what trials will run, in every branch and at every end of every range, and check it as a run would.

    A misspelled key or a missing data set fails here, once, and not in every trial. Networks are not built: a size that
    this machine cannot hold costs one trial.

    Raises:
        ConfigError: With every problem, each once.
    """
    from experiments.running.parts import checked

    space, problems = sweep.search_space(), {}
    for branch in space.branches():
        for assignment in [branch, *_corners(space, branch)]:
            try:
                experiment, overrides = sweep.command(assignment)
                found = _problems_of_experiment(
                    sweep, checked(files.load(experiment, overrides)), with_data=assignment is branch
                )
            except ConfigError as error:
                found = error.problems
            problems.update(dict.fromkeys(found))
    if problems:
        raise ConfigError(list(problems))


def _problems_of_experiment(sweep: Sweep, experiment: Experiment, with_data: bool) -> list[str]:
    from datamodules.base import ImageDataModule
    from datamodules.files.errors import DataError
    from experiments.running.agreement import problems_of_sharing
    from lightning_modules.schedules import Schedule

    if problems := _problems_of_metric(sweep, experiment):
        return problems
    schedule = objects.build(experiment.schedule, "schedule", Schedule)
    problems = problems_of_sharing(schedule, sweep.devices_per_trial)
    if with_data:
        data = objects.build(experiment.data, "data", ImageDataModule, schedule=schedule, seed=experiment.seed)
        try:
            data.check()
        except DataError as error:
            problems.append(str(error))
    return problems


def _corners(space: Space, branch: Assignment) -> list[Assignment]:
    """Return the branch with one value at a time at each of its ends; choices that decide over others stay."""
    decisive = {EXPERIMENT, *(key for dimension in space.dimensions for key in dimension.when)}
    return [
        {**branch, dimension.key: value}
        for dimension in space.dimensions
        if dimension.key in branch and dimension.key not in decisive
        for value in dimension.domain.corners()
    ]


def _problems_of_metric(sweep: Sweep, experiment: Experiment) -> list[str]:
    """Name a score that no callback of the experiment takes."""
    names = _scores(experiment.callbacks)
    if not sweep.metric.startswith("score/") or not names or sweep.metric in names:
        return []
    return [f"metric={sweep.metric}: the experiment {experiment.name} takes {', '.join(names)}"]


def _scores(callbacks: Node) -> dict[str, Node]:
    """Return the nodes of the periodic scores, whatever the file calls them, by the name of the metric."""
    from lightning_modules.metrics.efficientnet import EfficientNetLite0
    from lightning_modules.metrics.features import FeatureExtractor

    found = {}
    for node in callbacks.values():
        if node is not None and node.get(files.TARGET, "").endswith(".FrechetScore"):
            extractor: Any = node.get("extractor")
            cls = objects.locate(extractor[files.TARGET], FeatureExtractor) if extractor else EfficientNetLite0
            found[f"score/{getattr(cls, 'score_name', '')}"] = node
    return found


def _problems_of_pruning(sweep: Sweep) -> list[str]:
    if sweep.pruning is None:
        return []
    rule = sweep.pruning.get("rule")
    if rule not in PRUNING:
        return [
            f"pruning.rule={rule!r}: expected one of {', '.join(map(repr, PRUNING))}{did_you_mean(str(rule), PRUNING)}"
        ]
    values = {key: value for key, value in sweep.pruning.items() if key != "rule"}
    problems = objects.check_plain(PRUNING[rule], values, "pruning")
    if not problems:
        try:
            sweep.pruning_rule()
        except ConfigError as error:
            problems = error.problems
    return problems


def _problems_of_overrides(sweep: Sweep) -> list[str]:
    problems = []
    for override in sweep.overrides:
        key = override.partition("=")[0]
        if key in RESERVED:
            problems.append(f"overrides: {override} is set by the sweep itself; {INSTEAD.get(key, 'remove it')}")
        else:
            try:
                files.parse_override(override)
            except ConfigError as error:
                problems += [f"overrides: {problem}" for problem in error.problems]
    return problems
