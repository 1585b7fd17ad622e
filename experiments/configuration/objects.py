"""Nodes of configurations: checked against the signatures of what they build, completed, built.

Imports what the configuration names, which may be torch and lightning.
"""

import difflib
import importlib
import inspect
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.configuration.errors import ConfigError, did_you_mean
from experiments.configuration.files import TARGET, Node

REQUIRED = inspect.Parameter.empty  # in place of a default
# What a configuration may name: classes of this project, and those of Lightning's callbacks that only look. The others
# write wherever their arguments say (ModelCheckpoint, OnExceptionCheckpoint, SpikeDetection, the tuners), change the
# networks, or take code.
ALLOWED_PACKAGES = ("lightning_modules", "datamodules", "callbacks")
OF_LIGHTNING = tuple(
    f"lightning.pytorch.callbacks.{name}" for name in ("DeviceStatsMonitor", "LearningRateMonitor", "Timer")
)

Top = typing.TypeVar("Top")


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
            where = cls.__name__ if prefix else f"{'an' if cls.__name__[0] in 'AEIOU' else 'a'} {cls.__name__.lower()}"
            own = set(known) - set(supplied)
            hint = did_you_mean(name, own, 0.8) or _elsewhere(cls, name, values) or did_you_mean(name, own)
            yield f"{prefix}{name}={_shown(value)}: {where} has no argument {name!r}{hint}"
        else:
            yield from _value_problems(known[name][0], value, f"{prefix}{name}")
    for name, (annotation, default) in known.items():
        if default is REQUIRED and name not in values and name not in supplied:
            yield f"{prefix}{name}: is required by {cls.__name__} ({_type_name(annotation)})"


def _elsewhere(cls: type, name: str, values: Mapping[str, Any]) -> str:
    """Return what a class says of a name that other tools have, or where in the values beside it the name stands."""
    if instead := getattr(cls, "INSTEAD", {}).get(name):
        return f"; {instead}"
    places: dict[str, str] = {}
    for key, node in values.items():
        if isinstance(node, dict):
            target, arguments = node.get(TARGET), set(node)
            with suppress(ConfigError):  # which is said of the node itself
                arguments |= set(_parameters(locate(target, object))) if isinstance(target, str) else set()
            places |= {argument: f"{key}.{argument}" for argument in map(str, arguments)}
    close = difflib.get_close_matches(name, places, n=1, cutoff=0.8)
    return f"; did you mean {places[close[0]]!r}?" if close else ""


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


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(annotation)))
    if inspect.isclass(annotation) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "").replace("NoneType", "None")


def _shown(value: Any, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
