"""The search space of a sweep: what may vary, in which range, and under which condition."""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.configuration.errors import ConfigError, did_you_mean
from experiments.configuration.files import Node, parse_override

EXPERIMENT = "experiment"  # the one key of a space that is no override: it names the experiment to start from
RESERVED = (
    "name",
    "runs_dir",
    "resume",
    "tracking",
    "wandb_project",
    "trainer.devices",
)  # the sweep gives them to every trial
KINDS = ("choice", "int", "float", "log")

Assignment = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """One of several values of any type."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        """Refuse a choice of nothing, and values that would be one in a table."""
        if not self.values:
            raise ValueError("choice=[]: needs at least one value")
        labels = [label(value) for value in self.values]
        twice = sorted({text for text in labels if labels.count(text) > 1})
        if twice:
            raise ValueError(f"choice: {', '.join(twice)} is there twice")

    def corners(self) -> list[Any]:
        """Return the values to check before anything starts."""
        return list(self.values)

    def grid(self) -> list[Any]:
        """Return all values."""
        return list(self.values)


@dataclass(frozen=True)
class IntRange:
    """Whole numbers from ``low`` to ``high``, both included, ``step`` apart."""

    low: int
    high: int
    step: int = 1

    def __post_init__(self) -> None:
        """Refuse an empty range and an upper end that no step reaches."""
        if self.step < 1 or self.low >= self.high:
            raise ValueError(f"int=[{self.low}, {self.high}], step={self.step}: needs low < high and step >= 1")
        if (self.high - self.low) % self.step:
            raise ValueError(f"int=[{self.low}, {self.high}]: is no whole number of steps of {self.step}")

    def corners(self) -> list[int]:
        """Return the values to check before anything starts."""
        return [self.low, self.high]

    def grid(self) -> list[int]:
        """Return all values."""
        return list(range(self.low, self.high + 1, self.step))


@dataclass(frozen=True)
class FloatRange:
    """Numbers from ``low`` to ``high``, drawn evenly, or evenly in their logarithm."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        """Refuse an empty range and a logarithm of zero."""
        if not self.low < self.high or (self.log and self.low <= 0):
            kind, rule = ("log", "0 < low < high") if self.log else ("float", "low < high")
            raise ValueError(f"{kind}=[{self.low}, {self.high}]: needs {rule}")

    def corners(self) -> list[float]:
        """Return the values to check before anything starts."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Dimension:
    """A key of the experiment and its values; ``when`` names the choices above it under which it takes part."""

    key: str
    domain: Choice | IntRange | FloatRange
    when: Mapping[str, tuple[str, ...]]

    def takes_part(self, assignment: Assignment) -> bool:
        """Tell whether the choices made so far let this key vary."""
        return all(key in assignment and label(assignment[key]) in texts for key, texts in self.when.items())


@dataclass(frozen=True)
class Space:
    """All dimensions, conditions after what they depend on."""

    dimensions: tuple[Dimension, ...]

    def grid(self) -> list[Assignment]:
        """Return every assignment of a space without ``float`` and ``log``, always in the same order."""
        return list(self._walk(0, {}))

    def branches(self) -> list[Assignment]:
        """Return one assignment for every combination of choices that something depends on, with first values."""
        decisive = {EXPERIMENT, *(key for dimension in self.dimensions for key in dimension.when)}
        keys = [dimension for dimension in self.dimensions if dimension.key in decisive]
        products = itertools.product(*(dimension.domain.corners() for dimension in keys))
        found: dict[str, Assignment] = {}
        for product in products:
            chosen = dict(zip((dimension.key for dimension in keys), product, strict=True))
            assignment: Assignment = {}
            for dimension in self.dimensions:
                if dimension.takes_part(assignment):
                    assignment[dimension.key] = chosen.get(dimension.key, dimension.domain.corners()[0])
            found.setdefault(json.dumps(assignment), assignment)
        return list(found.values())

    def _walk(self, depth: int, assignment: Assignment) -> Iterator[Assignment]:
        if depth == len(self.dimensions):
            yield assignment
            return
        dimension = self.dimensions[depth]
        if not dimension.takes_part(assignment):
            yield from self._walk(depth + 1, assignment)
            return
        assert not isinstance(dimension.domain, FloatRange)
        for value in dimension.domain.grid():
            yield from self._walk(depth + 1, {**assignment, dimension.key: value})


def label(value: Any) -> str:
    """Return a value as the text that stands for it in tables and in the study."""
    return value if isinstance(value, str) else json.dumps(value)


def overrides_of(assignment: Assignment) -> list[str]:
    """Return an assignment as ``key=value``; JSON, since a bare 1e-3 or None could be read as something else."""
    return [f"{key}={json.dumps(value)}" for key, value in assignment.items() if key != EXPERIMENT]


def parse_space(node: Node) -> Space:
    """Return the space that a node describes.

    Raises:
        ConfigError: With every problem.
    """
    problems: list[str] = []
    dimensions: dict[str, Dimension] = {}
    for key, value in _flat(node).items():
        try:
            dimensions[key] = _dimension(key, value, dimensions)
        except ValueError as error:
            problems.append(f"space.{key}: {error}")
    if not node:
        problems.append("space={}: a sweep needs something to vary, e.g. module.learning_rate: {log: [1e-4, 1e-2]}")
    if problems:
        raise ConfigError(problems)
    return Space(tuple(dimensions.values()))


def _flat(node: Node, prefix: str = "") -> dict[str, Any]:
    """Return keys with dots, however the file or an override has nested them."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        nested = isinstance(value, dict) and value and all(isinstance(inner, dict) for inner in value.values())
        flat.update(_flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return flat


def _dimension(key: str, node: Any, above: Mapping[str, Dimension]) -> Dimension:
    if key in RESERVED:
        raise ValueError("is set by the sweep itself; remove it")
    parse_or_refuse(key, 0)
    kinds = [kind for kind in KINDS if isinstance(node, dict) and kind in node]
    if len(kinds) != 1:
        raise ValueError(f"expected one of {', '.join(KINDS)}, e.g. {{choice: [1, 5]}} or {{log: [1e-4, 1e-2]}}")
    (kind,) = kinds
    allowed = (kind, "when", "step") if kind == "int" else (kind, "when")
    unknown = [name for name in node if name not in allowed]
    if unknown:
        raise ValueError(f"{kind} has no argument {unknown[0]!r}{did_you_mean(unknown[0], allowed)}")
    when = node.get("when") or {}
    if not isinstance(when, dict):
        raise ValueError(f"when={when!r}: expected a choice above it and its values, e.g. {{experiment: wgan_gp}}")
    domain = _domain(kind, node)
    if key == EXPERIMENT and not (isinstance(domain, Choice) and all(isinstance(name, str) for name in domain.values)):
        raise ValueError("expected a choice of names or files of experiments")
    return Dimension(key, domain, {name: _condition(name, value, above) for name, value in when.items()})


def _domain(kind: str, node: Node) -> Choice | IntRange | FloatRange:
    values = node[kind]
    if not isinstance(values, list):
        raise ValueError(f"{kind}={values!r}: expected a list")
    if kind == "choice":
        return Choice(tuple(values))
    number = int if kind == "int" else (int, float)
    numbers = [*values, node.get("step", 1)]
    if len(values) != 2 or any(isinstance(value, bool) or not isinstance(value, number) for value in numbers):
        what = "whole numbers" if kind == "int" else "numbers"
        raise ValueError(f"{kind}={values!r}: expected two {what}, the lowest and the highest")
    if kind == "int":
        return IntRange(*numbers)
    return FloatRange(float(values[0]), float(values[1]), log=kind == "log")


def _condition(name: str, value: Any, above: Mapping[str, Dimension]) -> tuple[str, ...]:
    """Return the labels under which a condition holds."""
    choices = {key: dimension.domain for key, dimension in above.items() if isinstance(dimension.domain, Choice)}
    if name not in choices:
        hint = did_you_mean(name, choices) or "; a condition names a choice that stands above it"
        raise ValueError(f"when.{name}: is no choice above it{hint}")
    known = [label(choice) for choice in choices[name].values]
    wanted = tuple(map(label, value if isinstance(value, list) else [value]))
    for text in wanted:
        if text not in known:
            raise ValueError(f"when.{name}={text}: {name} is never that{did_you_mean(text, known)}")
    return wanted


def parse_or_refuse(key: str, value: Any) -> None:
    """Raise ValueError unless ``key`` can be written as an override."""
    try:
        parse_override(f"{key}={json.dumps(value)}")
    except ConfigError as error:
        raise ValueError("is no key of an experiment, e.g. module.learning_rate") from error
