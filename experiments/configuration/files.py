"""Configuration files: load, extend, override.

Imports neither torch nor lightning, so that ``--show`` answers at once.
"""

import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from experiments.configuration.errors import ConfigError, did_you_mean
from experiments.configuration.redaction import problems_of_secrets
from experiments.configuration.untrusted import problems_of_launch, problems_of_size, read_yaml

CONFIGS = Path(__file__).parent.parent / "configs"
SWEEPS = CONFIGS / "sweeps"
SUITES = CONFIGS / "suites"
PAPERS = CONFIGS / "papers"
TARGET = "_target_"

Node = dict[str, Any]


def load(name_or_file: str, overrides: Sequence[str] = (), folder: Path = CONFIGS) -> Node:
    """Return an experiment, a sweep, a suite or a paper as plain, resolved values.

    Args:
        name_or_file: Name of a shipped experiment, or path of a YAML file.
        overrides: ``key=value`` with dots in the key and YAML in the value.
        folder: Where the names live: ``CONFIGS``, ``SWEEPS``, ``SUITES`` or ``PAPERS``.

    Raises:
        ConfigError: If a file is missing, is no valid YAML or sets what only the command line may, an override is
            malformed, an interpolation fails, or a value looks like a secret.
    """
    path = find(name_or_file, folder)
    config = _load_file(path, (), folder)
    config = {"name": path.stem, **config}
    problems = problems_of_launch(config, {override.partition("=")[0] for override in overrides})
    for override in overrides:
        try:
            config = merge(config, parse_override(override), replace_other_class=False)
        except ConfigError as error:
            problems += error.problems
    problems += problems_of_size(config)
    if problems:
        raise ConfigError(problems)
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise ConfigError([f"{key or path.name}: {_first_line(error)}"]) from error
    assert isinstance(resolved, dict)
    if problems := problems_of_secrets(typing.cast(Node, resolved)):
        raise ConfigError(problems)
    return typing.cast(Node, resolved)


def find(name_or_file: str, folder: Path = CONFIGS) -> Path:
    """Return the YAML file of a shipped name, or the path itself."""
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise ConfigError([f"{name_or_file}: there is no such file"])
    if (folder / f"{name_or_file}.yaml").is_file():
        return folder / f"{name_or_file}.yaml"
    what = {SWEEPS: "sweep", SUITES: "suite", PAPERS: "paper"}.get(folder, "experiment")
    hint = did_you_mean(name_or_file, shipped(folder))
    raise ConfigError([f"{name_or_file!r} is no {what}{hint}; --list shows all"])


def shipped(folder: Path = CONFIGS) -> list[str]:
    """Return the names of the files of a folder; files that others extend begin with an underscore."""
    return sorted(path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("_"))


def description(name: str, folder: Path = CONFIGS) -> str:
    """Return the first comment line of a shipped file."""
    with (folder / f"{name}.yaml").open() as file:
        return file.readline().lstrip("# ").strip()


def _load_file(path: Path, parents: tuple[Path, ...], folder: Path) -> Node:
    path = path.resolve()
    if path in parents:
        raise ConfigError([f"{path}: extends itself ({' -> '.join(p.name for p in (*parents, path))})"])
    try:
        content = read_yaml(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read ({error})"]) from error
    except (YAMLError, OmegaConfBaseException, ValueError, RecursionError, AttributeError, TypeError) as error:
        raise ConfigError([f"{path}: is not a valid YAML file ({_one_line(error)})"]) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError([f"{path}: must hold keys and values at its top level"])
    config = typing.cast(Node, content)
    extends = config.pop("extends", [])
    extends = [extends] if isinstance(extends, str) else extends
    if not isinstance(extends, list) or not all(isinstance(name, str) for name in extends):
        raise ConfigError([f"{path}: extends={extends!r}: expected a name or a list of names"])
    merged: Node = {}
    for name in extends:
        merged = merge(merged, _load_file(_find_extended(name, path, folder), (*parents, path), folder))
    return merge(merged, config)


def _find_extended(name: str, child: Path, shipped_in: Path) -> Path:
    file = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    for folder in (child.parent, shipped_in):
        if (folder / file).is_file():
            return folder / file
    known = {path.stem for folder in (child.parent, shipped_in) for path in folder.glob("*.yaml")}
    raise ConfigError([f"{child}: extends {name!r}, which does not exist{did_you_mean(name, known)}"])


def merge(base: Node, other: Node, replace_other_class: bool = True) -> Node:
    """Return ``base`` overlaid with ``other``; neither is changed.

    A file's node that names another class replaces the old one as a whole. An override changes single values: with
    another class the old arguments stay, and the check names those that it does not have.
    """
    merged = dict(base)
    for key, value in other.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not (replace_other_class and _other_class(old, value)):
            value = merge(old, value, replace_other_class)
        merged[key] = value
    return merged


def _other_class(old: Node, new: Node) -> bool:
    return TARGET in old and TARGET in new and old[TARGET] != new[TARGET]


def parse_override(override: str) -> Node:
    """Return ``a.b=value`` as nested values.

    Raises:
        ConfigError: If it is not written so, or the value is not valid YAML.
    """
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(part.isidentifier() for part in parts):
        raise ConfigError([f"{override!r}: {_how_to_write(override)}"])
    try:
        value: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)["value"]  # type: ignore[index, call-overload]
    except (YAMLError, OmegaConfBaseException, ValueError, RecursionError, AttributeError, TypeError) as error:
        raise ConfigError([f"{override!r}: the value is not valid YAML ({_one_line(error)})"]) from error
    if value == "None":  # how W&B's agent spells null
        value = None
    for part in reversed(parts):
        value = {part: value}
    return typing.cast(Node, value)


def _how_to_write(override: str) -> str:
    """Return how what other tools write, or nobody does, is written here."""
    key = override.partition("=")[0]
    if indexed := re.match(r"([\w.]+)\[\d+\]$", key):
        return f"single elements cannot be set; write the whole list, {indexed[1]}=[...]"
    if key.startswith("+"):
        return f"keys are added as they are changed, without +: {override.lstrip('+')}"
    if key.startswith("~"):
        return f"null leaves something out: {key[1:]}=null"
    return "an override is written key=value, e.g. schedule.batch_size=32"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
