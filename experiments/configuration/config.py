"""Experiment files: load, extend, override, check against what they build, build.

Loading and resolving import neither torch nor lightning, so that ``--show`` answers at once; ``check`` and ``build``
import what the configuration names.
"""

import difflib
import importlib
import inspect
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from experiments.configuration.redaction import problems_of_secrets
from experiments.configuration.untrusted import problems_of_launch, problems_of_size, read_yaml

CONFIGS = Path(__file__).parent.parent / "configs"
SWEEPS = CONFIGS / "sweeps"
SUITES = CONFIGS / "suites"
PAPERS = CONFIGS / "papers"
TARGET = "_target_"
REQUIRED = inspect.Parameter.empty  # in place of a default
# What a configuration may name: classes of this project, and those of Lightning's callbacks that only look. The others
# write wherever their arguments say (ModelCheckpoint, OnExceptionCheckpoint, SpikeDetection, the tuners), change the
# networks, or take code.
ALLOWED_PACKAGES = ("lightning_modules", "datamodules", "callbacks")
OF_LIGHTNING = tuple(
    f"lightning.pytorch.callbacks.{name}" for name in ("DeviceStatsMonitor", "LearningRateMonitor", "Timer")
)

Node = dict[str, Any]
Top = typing.TypeVar("Top")


class ConfigError(Exception):
    """Everything that is wrong with a configuration, one sentence per problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)

    def __reduce__(self) -> tuple[type, tuple[list[str]]]:
        """Let another process raise it: Python would hand over the joined text instead of the problems."""
        return type(self), (self.problems,)


@dataclass(frozen=True)
class TrainerSettings:
    """Where training runs.

    Args:
        accelerator: "cpu", "gpu" or "auto".
        devices: Processes per machine, or "auto".
        num_nodes: Machines.
        precision: "32-true", or "bf16-mixed" (16-bit floats would overflow in a gradient penalty's second derivative).
        deterministic: Ask the GPU for deterministic algorithms; CPU runs are deterministic in any case.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | Literal["auto"] = 1
    num_nodes: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no machine has."""
        if isinstance(self.devices, int) and self.devices < 1:
            raise ValueError(f"devices={self.devices}: must be at least 1")
        if self.num_nodes < 1:
            raise ValueError(f"num_nodes={self.num_nodes}: must be at least 1")


@dataclass(frozen=True)
class Experiment:
    """The top level of an experiment file.

    Args:
        name: Folder of the run below ``runs_dir``; the file's name unless given.
        seed: Seed of everything that is random.
        runs_dir: Where run directories are made.
        tracking: W&B "offline" (synchronise later with ``wandb sync``), "online" or "disabled".
        wandb_project: W&B project; also names the salt and the table of pseudonyms.
        resume: "auto" = the newest unfinished run of this name, or a checkpoint or run directory; null = a new run.
        run_id: Folder of the run below its name; with ``resume: auto`` this run and no other goes on. null = the time.
        allow_changes: Resume although hyper-parameters have changed.
        schedule: What depends on time.
        data: The data set.
        module: The GAN family.
        callbacks: What watches the run, by name; null leaves one out.
        trainer: Where it runs.
    """

    name: str
    schedule: Node
    data: Node
    module: Node
    seed: int = 0
    runs_dir: str = "runs"
    tracking: Literal["offline", "online", "disabled"] = "offline"
    wandb_project: str = "mirage"
    resume: str | None = None
    run_id: str | None = None
    allow_changes: bool = False
    callbacks: Node = field(default_factory=dict)
    trainer: Node = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values that would escape the folder of runs or fail late."""
        for key, name in (("name", self.name), ("wandb_project", self.wandb_project), ("run_id", self.run_id or "new")):
            if not name or Path(name).name != name or name.startswith(".") or not name.isprintable():
                raise ValueError(f"{key}={name!r}: must be a plain folder name")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed={self.seed}: must lie in 0..{2**31 - 1}")


# Loading --------------------------------------------------------------------------------------------------------------


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
        raise ConfigError([f"{override!r}: an override is written key=value, e.g. schedule.batch_size=32"])
    try:
        value: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)["value"]  # type: ignore[index, call-overload]
    except (YAMLError, OmegaConfBaseException, ValueError, RecursionError, AttributeError, TypeError) as error:
        raise ConfigError([f"{override!r}: the value is not valid YAML ({_one_line(error)})"]) from error
    if value == "None":  # how W&B's agent spells null
        value = None
    for part in reversed(parts):
        value = {part: value}
    return typing.cast(Node, value)


# Checking and building ------------------------------------------------------------------------------------------------


def experiment(config: Node) -> Experiment:
    """Check the top level and return it as an object.

    Raises:
        ConfigError: With every problem of the top level.
    """
    return top_level(Experiment, config)


def top_level(cls: type[Top], config: Node) -> Top:
    """Check the top level of a file and return it as an object of a dataclass.

    Raises:
        ConfigError: With every problem of the top level.
    """
    problems = list(_argument_problems(cls, config, "", ()))
    if problems:
        raise ConfigError(problems)
    try:
        return cls(**_converted(cls, config))
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def check(node: Any, key: str, base: type, supplied: Sequence[str] = ()) -> list[str]:
    """Return every problem of a node that is to become an object of ``base``, one sentence each.

    Args:
        node: Plain values with the class in ``_target_``.
        key: Where the node stands, for the messages.
        base: The class must be this one or derive from it.
        supplied: Arguments that the caller will give; a configuration may not set them.
    """
    if not isinstance(node, dict):
        return [f"{key}={_shown(node)}: expected a class in {TARGET} and its arguments"]
    target = node.get(TARGET)
    if not isinstance(target, str):
        return [f"{key}: names no class; add {key}.{TARGET}"]
    try:
        cls = locate(target, base)
    except ConfigError as error:
        return [f"{key}.{TARGET}={target}: {problem}" for problem in error.problems]
    return list(_argument_problems(cls, _arguments(node), f"{key}.", supplied))


def required(node: Node) -> set[str]:
    """Return the arguments that the class of a checked node has no default for."""
    return {name for name, (_, default) in _parameters(locate(node[TARGET], object)).items() if default is REQUIRED}


def build(node: Node, key: str, base: type, **supplied: Any) -> Any:
    """Return the object that a checked node describes.

    Raises:
        ConfigError: If the class refuses a value.
    """
    cls = locate(node[TARGET], base)
    try:
        return cls(**_converted(cls, _arguments(node), f"{key}."), **supplied)
    except ValueError as error:
        raise ConfigError([f"{key}.{error}"]) from error


def completed(node: Node) -> Node:
    """Return a checked node with the defaults of everything that it does not set.

    What a run records must not change its meaning when a default changes.
    """
    parameters = _parameters(locate(node[TARGET], object))
    nested = {name: completed(value) for name, value in node.items() if isinstance(value, dict) and TARGET in value}
    defaults = {
        name: list(default) if isinstance(default, tuple) else default
        for name, (_, default) in parameters.items()
        if _is_plain(default)
    }
    values = {**defaults, **node, **nested}
    return {TARGET: node[TARGET], **{name: values[name] for name in parameters if name in values}, **values}


def closed_settings(node: Node) -> Node:
    """Return the settings of a checked node that cannot hold free text: numbers, switches, choices, classes.

    What they say can be published; free text may be a path.
    """
    parameters = _parameters(locate(node[TARGET], object))
    found: Node = {}
    for name, value in node.items():
        if isinstance(value, dict):
            found[name] = {TARGET: value[TARGET], **closed_settings(value)} if TARGET in value else _without_text(value)
        elif name in parameters and not any(_fits(parameters[name][0], text) for text in ("any text", ["any text"])):
            found[name] = value
    return found


def _without_text(values: Node) -> Node:
    return {name: value for name, value in values.items() if value is None or isinstance(value, int | float)}


def check_plain(cls: type, values: Node, key: str) -> list[str]:
    """Return every problem of a node without ``_target_`` that is to become an object of a dataclass."""
    return list(_argument_problems(cls, values, f"{key}.", ()))


def build_plain(cls: type, values: Node, key: str) -> Any:
    """Return the dataclass's object that a checked node describes.

    Raises:
        ConfigError: If the class refuses a value.
    """
    try:
        return cls(**_converted(cls, values, f"{key}."))
    except ValueError as error:
        raise ConfigError([f"{key}.{error}"]) from error


def locate(target: str, base: type) -> type:
    """Return the class of a dotted path.

    Raises:
        ConfigError: If it is not a class of an allowed package that derives from ``base``.
    """
    module_name, _, name = target.rpartition(".")
    package = target.split(".")[0]
    if not all(part.isidentifier() for part in target.split(".")) or not (
        package in ALLOWED_PACKAGES or target in OF_LIGHTNING
    ):
        allowed = f"{', '.join(ALLOWED_PACKAGES)}, as package.module.Class, or {', '.join(OF_LIGHTNING)}"
        raise ConfigError([f"a configuration can only name classes of {allowed}"])
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigError([f"there is no module {module_name!r}{did_you_mean(module_name, _modules())}"]) from error
    cls = getattr(module, name, None)
    if not inspect.isclass(cls) or cls.__module__.split(".")[0] != package:  # another package's, imported there
        known = [n for n, value in vars(module).items() if inspect.isclass(value) and issubclass(value, base)]
        raise ConfigError([f"{module_name} has no class {name!r}{did_you_mean(name, known)}"])
    if not issubclass(cls, base):
        raise ConfigError([f"{name} is not a {base.__name__}"])
    if inspect.isabstract(cls):
        raise ConfigError([f"{name} is abstract; name a class that derives from it"])
    return cls


def _argument_problems(cls: type, values: Mapping[str, Any], prefix: str, supplied: Sequence[str]) -> Iterator[str]:
    """Yield one sentence for every argument that is unknown, missing or of the wrong type."""
    known = _parameters(cls)
    for name, value in values.items():
        if name in supplied:
            yield f"{prefix}{name}={_shown(value)}: is set by Mirage itself; remove it"
        elif name not in known:
            where = cls.__name__ if prefix else f"{'an' if cls is Experiment else 'a'} {cls.__name__.lower()}"
            hint = did_you_mean(name, set(known) - set(supplied))
            yield f"{prefix}{name}={_shown(value)}: {where} has no argument {name!r}{hint}"
        else:
            yield from _value_problems(known[name][0], value, f"{prefix}{name}")
    for name, (annotation, default) in known.items():
        if default is REQUIRED and name not in values and name not in supplied:
            yield f"{prefix}{name}: is required by {cls.__name__} ({_type_name(annotation)})"


def _value_problems(annotation: Any, value: Any, key: str) -> Iterator[str]:
    nested = _nested_class(annotation)
    if nested is not None and isinstance(value, dict):
        if TARGET in value:
            yield from check(value, key, nested)
        elif is_dataclass(nested):
            yield from _argument_problems(nested, value, f"{key}.", ())
        else:
            yield f"{key}: names no class; add {key}.{TARGET}"
    elif nested is not None and value is not None:
        yield f"{key}={_shown(value)}: expected a node that describes a {nested.__name__}, or null"
    elif nested is None and not _fits(annotation, value):
        yield f"{key}={_shown(value)}: expected {_type_name(annotation)}, got {type(value).__name__}"


def _converted(cls: type, values: Mapping[str, Any], prefix: str = "") -> Node:
    """Return arguments as the signature wants them: tuples for lists, nested nodes built."""
    known = _parameters(cls)
    arguments = {}
    for name, value in values.items():
        annotation = known[name][0]
        nested = _nested_class(annotation)
        if nested is None or value is None:
            arguments[name] = _adapted(annotation, value)
        elif TARGET in value:
            arguments[name] = build(value, f"{prefix}{name}", nested)
        else:
            arguments[name] = build_plain(nested, value, f"{prefix}{name}")
    return arguments


def _parameters(cls: type) -> dict[str, tuple[Any, Any]]:
    """Return annotation and default (or REQUIRED) of every constructor argument."""
    function: Any = cls if is_dataclass(cls) else cls.__init__  # type: ignore[misc]
    hints = typing.get_type_hints(function)
    return {
        p.name: (hints.get(p.name, Any), REQUIRED if p.default is p.empty else p.default)
        for p in inspect.signature(cls).parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


def _nested_class(annotation: Any) -> type | None:
    """Return the class of this project that an argument takes an object of, or None for plain values."""
    for choice in (annotation, *typing.get_args(annotation)):
        if inspect.isclass(choice) and choice.__module__.split(".")[0] in ALLOWED_PACKAGES:
            return choice
    return None


def _fits(annotation: Any, value: Any) -> bool:
    try:
        _adapted(annotation, value)
    except ValueError:
        return False
    return True


def _adapted(annotation: Any, value: Any) -> Any:
    """Return a YAML value as the annotated type, or raise ValueError.

    pydantic's strict JSON mode has the right rules: a list is a tuple, 1 is a float, "1" is no int, 1 is no bool. A
    whole float counts as an int, since YAML and W&B's agent read 1e6 as one.
    """
    from pydantic import ConfigDict, TypeAdapter

    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        candidates: list[Any] = [value, int(value)]
    else:
        candidates = [value]
    error: Exception | None = None
    for candidate in candidates:
        try:
            adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
            return adapter.validate_json(json.dumps(candidate), strict=True)
        except (ValueError, TypeError) as problem:
            error = problem
    raise ValueError(str(error))


def _arguments(node: Node) -> Node:
    return {name: value for name, value in node.items() if name != TARGET}


def _modules() -> list[str]:
    root = Path(__file__).parent.parent.parent
    files = [path for package in ALLOWED_PACKAGES for path in (root / package).rglob("*.py")]
    return [".".join(path.relative_to(root).with_suffix("").parts) for path in files]


def did_you_mean(name: str, known: Any) -> str:
    """Return "; did you mean ...?" with the nearest known names, or nothing."""
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(annotation)))
    if inspect.isclass(annotation) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "").replace("NoneType", "None")


def _shown(value: Any, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
