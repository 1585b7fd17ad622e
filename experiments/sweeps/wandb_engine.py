"""The same sweep file for W&B: its server chooses, its agents run ``python -m experiments.run``."""

import math
from typing import Any

import yaml

from experiments.configuration import files
from experiments.configuration.errors import ConfigError
from experiments.configuration.files import Node
from experiments.sweeps.settings import HyperbandPruning, MedianPruning, Sweep, check_experiments
from experiments.sweeps.space import EXPERIMENT, Choice, Dimension, IntRange, label

METHODS = {"tpe": "bayes", "random": "random", "grid": "grid"}


def register(sweep: Sweep) -> int:
    """Write ``wandb.yaml`` into the sweep's folder, register it if ``tracking=online`` is written, say what to do next.

    Raises:
        ConfigError: With everything that is wrong or that W&B cannot do, or if its server does not answer.
    """
    text = to_yaml(sweep)
    check_experiments(sweep)
    from experiments.record.run_directory import write_text
    from experiments.sweeps.folder import prepare

    prepare(sweep)
    path = sweep.folder / "wandb.yaml"
    write_text(path, text)
    if sweep.tracking != "online":
        print(
            f"{path}\nNothing was registered, and in this file the runs stay offline: W&B sees their scores only with "
            "tracking=online.\nWith it the sweep is registered from here; the file can also be registered by hand:\n"
            f"  wandb sweep --project {sweep.wandb_project} {path}"
        )
        return 0
    import wandb

    try:
        identity = wandb.sweep(yaml.safe_load(text), project=sweep.wandb_project)
    except (wandb.errors.Error, OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise ConfigError(
            [f"engine=wandb: the sweep could not be registered ({first}); is wandb logged in?"]
        ) from error
    agent = f"wandb agent --forward-signals {sweep.wandb_project}/{identity}"
    print(f"start one agent per device, in this Python environment:\n  {agent}")
    return 0


def to_yaml(sweep: Sweep) -> str:
    """Return the sweep as a file for ``wandb sweep``.

    Raises:
        ConfigError: With everything that W&B cannot do.
    """
    return yaml.safe_dump(sweep_config(sweep), sort_keys=False)


def sweep_config(sweep: Sweep) -> Node:
    """Return the sweep in W&B's terms.

    Raises:
        ConfigError: With everything that W&B cannot do.
    """
    dimensions = sweep.search_space().dimensions
    problems = [problem for dimension in dimensions for problem in _problems_of(dimension)]
    rule = sweep.pruning_rule()
    if isinstance(rule, MedianPruning):
        problems.append("pruning.rule=median: W&B has hyperband only; use it, pruning=null or engine=optuna")
    if sweep.value == "best":
        problems.append("value=best: W&B takes the last value of a run; use value=last or engine=optuna")
    if problems:
        raise ConfigError(problems)
    config: Node = {
        "name": sweep.name,
        "project": sweep.wandb_project,
        "program": "experiments/run.py",  # shown by W&B; what runs is the command
        "command": _command(sweep),
        "method": METHODS[sweep.method],
        "metric": {"name": sweep.metric, "goal": sweep.direction},
        "parameters": {dimension.key: _parameter(dimension) for dimension in dimensions},
    }
    if sweep.trials is not None:
        config["run_cap"] = sweep.trials
    if isinstance(rule, HyperbandPruning):
        config["early_terminate"] = _hyperband(sweep, rule)
    return config


def _command(sweep: Sweep) -> list[str]:
    fixed = [*sweep.overrides, f"trainer.devices={sweep.devices_per_trial}"]
    launch = [f"{key}={getattr(sweep, key)}" for key in ("name", "runs_dir", "tracking", "wandb_project")]
    named = [sweep.experiment] if sweep.experiment is not None else []
    return ["${env}", "${interpreter}", "-m", "experiments.run", *named, *fixed, *launch, "${args_no_hyphens}"]


def _parameter(dimension: Dimension) -> Node:
    domain = dimension.domain
    if isinstance(domain, Choice):
        return {"values": list(domain.values)}
    if isinstance(domain, IntRange) and domain.step > 1:
        return {"values": domain.grid()}  # its q_uniform has multiples of q, wherever the range begins
    if isinstance(domain, IntRange):
        return {"distribution": "int_uniform", "min": domain.low, "max": domain.high}
    kind = "log_uniform_values" if domain.log else "uniform"
    return {"distribution": kind, "min": domain.low, "max": domain.high}


def _problems_of(dimension: Dimension) -> list[str]:
    """Name what W&B cannot express, and values that its agent would change on the way to the command line."""
    problems = []
    if dimension.when:
        problems.append(
            f"space.{dimension.key}.when: W&B has no conditional parameters; remove it or use engine=optuna"
        )
    if dimension.key != EXPERIMENT and isinstance(dimension.domain, Choice):
        for value in dimension.domain.values:
            if not _survives(dimension.key, value):
                written = f"{dimension.key}={value}"
                problems.append(
                    f"space.{dimension.key}: W&B's agent writes {label(value)} as {written}, which is read as another "
                    "value; leave it out or use engine=optuna"
                )
    return problems


def _survives(key: str, value: Any) -> bool:
    """Tell whether a value is read back as it was from W&B's ``key=value``, which is Python's ``str``."""
    try:
        read: Any = files.parse_override(f"{key}={value}")
    except ConfigError:
        return False
    for part in key.split("."):
        read = read[part]
    return label(read) == label(value) and type(read) is type(value)


def _hyperband(sweep: Sweep, rule: HyperbandPruning) -> Node:
    """Return the rule in W&B's iterations: how often the metric was logged, not how many images were seen."""
    steps = {sweep.cadence(branch) for branch in sweep.search_space().branches()}
    if len(steps) != 1:
        raise ConfigError(
            [
                "pruning: W&B counts scores, and the experiments take theirs at different cadences; set "
                "callbacks.score.every_images in overrides"
            ]
        )
    (every,) = steps
    first = max(1, rule.min_images // every)
    if rule.max_images is None:
        return {"type": "hyperband", "min_iter": first, "eta": rule.reduction_factor}
    last = max(first + 1, rule.max_images // every)
    bands = max(1, math.floor(math.log(last / first) / math.log(rule.reduction_factor) + 1e-9))
    return {"type": "hyperband", "max_iter": last, "s": bands, "eta": rule.reduction_factor}
