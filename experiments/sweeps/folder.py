"""The folder of a sweep: ``<runs_dir>/sweeps/<name>/`` with sweep.yaml, the study, trials/ and the report."""

from omegaconf import OmegaConf
from yaml import YAMLError

from experiments.configuration.errors import ConfigError
from experiments.record.run_directory import flat, write_text
from experiments.sweeps.settings import Sweep

# Trials made before and after a change of these could not be compared. Budget, pruning and machines may change.
FIXED = ("experiment", "overrides", "metric", "direction", "value", "method", "space", "devices_per_trial", "engine")


def trial_name(number: int) -> str:
    """Return the name under which a trial's run directories lie."""
    return f"trial_{number:04d}"


def trial_number(name: str) -> int:
    """Return the number of a trial's name."""
    return int(name.removeprefix("trial_"))


def prepare(sweep: Sweep) -> None:
    """Create the folder, or continue in one that holds the same sweep.

    Raises:
        ConfigError: If it holds another sweep, with the differences, or cannot be written to.
    """
    path = sweep.folder / "sweep.yaml"
    now = OmegaConf.create(sweep.recorded())
    try:
        if path.is_file():
            before = OmegaConf.to_container(OmegaConf.load(path))
            changes = _changes(flat(before), flat(OmegaConf.to_container(now)))
            if changes:
                raise ConfigError([f"{sweep.folder} was begun as another sweep (name=... begins a new one)", *changes])
        write_text(path, OmegaConf.to_yaml(now))
    except (YAMLError, ValueError) as error:
        raise ConfigError([f"{path}: cannot be read ({' '.join(str(error).split())})"]) from error
    except OSError as error:
        raise ConfigError([f"runs_dir={sweep.runs_dir}: cannot be written to ({error})"]) from error


def _changes(before: dict[str, object], now: dict[str, object]) -> list[str]:
    keys = [key for key in sorted(before.keys() | now.keys()) if f"{key}.".startswith(tuple(f"{k}." for k in FIXED))]
    return [f"{key}: was {before.get(key)!r}, is {now.get(key)!r}" for key in keys if before.get(key) != now.get(key)]
