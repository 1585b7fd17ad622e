"""Files of runs, evaluations and folders that may be damaged or a stranger's: what is used of each, as declarations.

Checkpoints have declarations of their own, in ``checkpoint_check.py``.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from callbacks.state import Count, State
from experiments.configuration.errors import ConfigError

Model = TypeVar("Model", bound=State)
FLOOR = ("floor", "floor_low", "floor_high", "at_floor_size")


class ScoreRow(State):
    """A score of ``scores.json``; one with an interval has all of it, and a floor."""

    name: str
    score: str
    value: float | None
    better: Literal["lower", "higher", "as real"]
    fingerprint: dict[str, Any]
    warnings: list[Any] = []
    low: float | None = None
    high: float | None = None
    freedom: float | None = None
    replicates: list[float] = []
    beyond_floor: list[float] = []
    verdict: str | None = None
    floor: float | None = None
    floor_low: float | None = None
    floor_high: float | None = None
    at_floor_size: float | None = None

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        whole = {"high", "freedom", "replicates", "verdict", *FLOOR}
        if "low" in self.model_fields_set and (missing := sorted(whole - self.model_fields_set)):
            raise ValueError(f"an interval or a floor is not whole, it lacks {', '.join(missing)}")
        return self


class EvaluationFile(State):
    """``scores.json`` of an evaluation."""

    scores: list[ScoreRow]


class FinishedRows(State):
    """A line of an evaluation's record: what one instrument has given."""

    key: str
    rows: list[ScoreRow]


class Limit(State):
    """A limit of ``health.json``."""

    verdict: str
    signal: str
    side: str
    value: float
    reason: str


class HealthFile(State):
    """``health.json`` of a run."""

    verdict: str
    sentence: str
    since_images_seen: Count
    advice: str | None = None
    score_remark: str | None = None
    signals: dict[str, float | None] = {}
    limits: list[Limit] = []
    measurements_in_a_row: Count


class ManifestFile(State):
    """``manifest.json`` of a folder of images; what else it says is compared, not used."""

    count: Count


class Made(State):
    """A line of a folder's journal: an image that has been written."""

    index: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def parsed(declaration: type[Model], text: bytes | str) -> Model | None:
    """Return what a JSON text says, or None if it is not what is declared."""
    try:
        return declaration.model_validate_json(text)
    except ValidationError:
        return None


def read_declared(declaration: type[Model], path: Path, what: str) -> Model:
    """Return what a JSON file says.

    Raises:
        ConfigError: In a sentence, if it cannot be read or is not what is declared.
    """
    try:
        return declaration.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read ({error.strerror})"]) from error
    except ValidationError as error:
        raise ConfigError([f"{path}: is no {what} of Mirage's ({problem_of(error)})"]) from error


def problem_of(error: ValidationError) -> str:
    """Return the first problem, with its place in the file."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    said = f"{place}: {message[:1].lower()}{message[1:]}" if place else message
    return "".join(one if one.isprintable() else " " for one in said)[:300]
