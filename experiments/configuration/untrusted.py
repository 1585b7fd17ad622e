"""What a YAML or JSON file may say and cost: it may be a stranger's, and nothing in it is run or read out of place."""

import json
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.resolvers import oc

MAX_CHARACTERS = 2**18  # of an experiment, all files together; the largest that is shipped has 3,000
MAX_REFERENCES = 24  # ${...} of an experiment: chained threefold, more would multiply a text beyond any memory
VARIABLES = "MIRAGE_"
# Settings of one launch, with what a file may give them: a file must neither go on with another run nor upload images.
_OF_A_LAUNCH = {"resume": (None,), "allow_changes": (None, False), "tracking": (None, "offline", "disabled")}


def read_yaml(path: Path) -> Any:
    """Return a YAML file as plain values, its interpolations unresolved.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is too large or holds aliases, which a few lines can multiply beyond any memory.
        YAMLError, OmegaConfBaseException: If it is not valid.
    """
    size = path.stat().st_size
    if size > MAX_CHARACTERS:
        raise ValueError(f"it has {size} bytes, at most {MAX_CHARACTERS} are read")
    with path.open(encoding="utf-8") as file:  # messages about a stream tell the line, others quote it
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(file, Loader=yaml.SafeLoader)):
            raise ValueError("aliases (*name) are not read; refer to another value by its key, e.g. ${schedule.seed}")
    return OmegaConf.to_container(OmegaConf.load(path), resolve=False)


def read_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file, or nothing: it may be absent, damaged or a stranger's."""
    try:
        said = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def problems_of_size(config: dict[str, Any]) -> list[str]:
    """Return what could make a configuration grow beyond memory when its interpolations are resolved."""
    text = str(config)
    problems = []
    if len(text) > MAX_CHARACTERS:
        problems.append(f"the configuration has {len(text)} characters, at most {MAX_CHARACTERS} are read")
    if text.count("${") > MAX_REFERENCES:
        problems.append(f"the configuration has {text.count('${')} interpolations, at most {MAX_REFERENCES} are read")
    return problems


def problems_of_launch(config: dict[str, Any], given: set[str]) -> list[str]:
    """Return what a file sets that only the command line may (``given``: what it sets)."""
    return [
        f"{key}: {config[key]!r} belongs to one launch and cannot stand in a file; write {key}=... on the command line"
        for key, allowed in _OF_A_LAUNCH.items()
        if key not in given and config.get(key) not in allowed
    ]


def _environment(key: str, *default: Any) -> Any:
    """The resolver ``oc.env``, for Mirage's own variables only: a run records what its configuration says."""
    if not key.startswith(VARIABLES):
        raise ValueError(
            f"the environment variable {key} cannot be used in a configuration, only those that begin with {VARIABLES}"
        )
    return oc.env(key, *default)


# For the whole process, so that no nesting of interpolations reaches OmegaConf's own.
OmegaConf.register_resolver("oc.env", _environment, replace=True)
