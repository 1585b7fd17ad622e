"""From a configuration to the objects of a run: checked one by one, completed, built."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

from datamodules.base import ImageDataModule
from datamodules.files.pseudonyms import Pseudonyms
from experiments.configuration import objects
from experiments.configuration.errors import ConfigError
from experiments.configuration.experiment import Experiment, TrainerSettings, experiment_of
from experiments.configuration.files import Node
from lightning_modules.protocols import Averages, can
from lightning_modules.schedules import Schedule
from lightning_modules.step import PhasedModule, classes_problems


@dataclass
class Parts:
    """What a configuration builds."""

    schedule: Schedule
    data: ImageDataModule
    module: PhasedModule
    callbacks: list[L.Callback]
    settings: TrainerSettings
    pseudonyms: Pseudonyms


def checked(config: Node) -> Experiment:
    """Check names and types at the top level and in every node; nothing is built.

    Raises:
        ConfigError: With every problem that was found.
    """
    try:
        experiment = experiment_of(config)
    except ConfigError as error:  # which has named what is no node
        nodes = {key: node for key, node in config.items() if isinstance(node, dict)}
        raise ConfigError([*error.problems, *problems_of_nodes(nodes)]) from error
    if problems := problems_of_nodes(vars(experiment)):
        raise ConfigError(problems)
    return experiment


class _NoSchedule:
    """Stands where a refused schedule would: what an object asks of it cannot be checked, and is no other problem."""

    def __getattr__(self, name: str) -> Any:
        raise ConfigError([])


def build(experiment: Experiment) -> Parts:
    """Check every node, then build every object; weights are drawn from the experiment's seed.

    Raises:
        ConfigError: With every problem that was found.
    """
    problems = problems_of_nodes(vars(experiment))
    if problems:
        raise ConfigError(problems)
    callbacks = {name: node for name, node in experiment.callbacks.items() if node is not None}
    schedule: Any = _NoSchedule()
    try:
        schedule = objects.build(experiment.schedule, "schedule", Schedule)
    except ConfigError as error:
        problems += error.problems
    torch.manual_seed(experiment.seed)
    shared = {"schedule": schedule, "seed": experiment.seed}
    built: dict[str, Any] = {}
    for key, base, node, supplied in (
        ("module", PhasedModule, experiment.module, shared),
        ("data", ImageDataModule, experiment.data, shared),
        *((f"callbacks.{name}", L.Callback, node, {}) for name, node in callbacks.items()),
    ):
        try:
            built[key] = objects.build(node, key, base, **supplied)
        except ConfigError as error:
            problems += error.problems
    try:
        settings = objects.build_plain(TrainerSettings, experiment.trainer, "trainer")
    except ConfigError as error:
        problems += error.problems
    module = built.get("module")
    problems += problems_of_family(module, built) if module is not None else []
    if problems:
        raise ConfigError(problems)
    pseudonyms = Pseudonyms(experiment.wandb_project, Path(experiment.runs_dir))
    data, module = built.pop("data"), built.pop("module")
    data.real_batches = module.real_batches
    return Parts(schedule, data, module, list(built.values()), settings, pseudonyms)


def problems_of_family(module: PhasedModule, built: Node) -> list[str]:
    """Return what the callbacks ask of a family that it cannot do, and what is wrong with its classes.

    Args:
        module: The family.
        built: The callbacks by their keys, and other objects.
    """
    family = type(module).__name__
    problems = [
        f"{key}: {type(callback).__name__} needs a family that {needs.__name__.lower()}, which {family} does not; set "
        "it to null"
        for key, callback in built.items()
        if (needs := getattr(callback, "needs", None)) and not can(module, needs)
    ]
    if can(module, Averages) and all(phase.name != "generator" for phase in module.phases()):
        problems.append(f'module: no phase of {family} is called "generator"; the average follows the one that is')
    return problems + [f"module.classes: {problem}" for problem in classes_problems(module.classes)]


def problems_of_nodes(nodes: Node) -> list[str]:
    """Return every problem of the names and types of the nodes that are there; nothing is built."""
    shared, problems = ("schedule", "seed"), []
    for key, base, supplied in (
        ("schedule", Schedule, ()),
        ("data", ImageDataModule, shared),
        ("module", PhasedModule, shared),
    ):
        problems += objects.check(nodes[key], key, base, supplied) if key in nodes else []
    for name, node in nodes.get("callbacks", {}).items():
        problems += objects.check(node, f"callbacks.{name}", L.Callback) if node is not None else []
    return problems + objects.check_plain(TrainerSettings, nodes.get("trainer", {}), "trainer")


def recorded(experiment: Experiment) -> Node:
    """Return the configuration as a run keeps it: every default written out, nothing that belongs to one launch."""
    of_a_launch = ("resume", "run_id", "allow_changes", "tracking")
    config = {key: value for key, value in vars(experiment).items() if key not in of_a_launch}
    for key in ("schedule", "data", "module"):
        config[key] = objects.completed(config[key])
    callbacks = {name: node and objects.completed(node) for name, node in experiment.callbacks.items()}
    trainer = vars(objects.build_plain(TrainerSettings, experiment.trainer, "trainer"))
    return {**config, "callbacks": callbacks, "trainer": trainer}
