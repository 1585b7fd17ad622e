"""What lies inside a checkpoint, perhaps a stranger's: checked as plain data before anything acts on it.

Networks, optimizers, loops and callbacks trust what they are given: a part that does not fit ends the process.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import lightning as L
from lightning.pytorch.callbacks import Timer
from packaging.version import InvalidVersion, Version
from pydantic import ConfigDict, Field, Strict, ValidationError, field_validator, model_validator
from torch import Tensor

from callbacks.state import MOST, Count, State
from experiments.configuration.errors import ConfigError
from experiments.record.tensor_check import (
    OptimizerState,
    incomplete_problem,
    optimizers_problem,
    process_state_problem,
    shown,
    weights_problem,
)
from lightning_modules.step import PhasedModule, classes_problems

# What a checkpoint holds besides its clock, and as what.
PARTS = {
    "state_dict": dict,
    "optimizer_states": list,
    "callbacks": dict,
    "loops": dict,
    "losses": dict,
    "latest": dict,
    "data_facts": dict,
}
# Far above any run. References can make a small file a huge or an endless structure.
MOST_VALUES, DEEPEST = 200_000, 16

Model = TypeVar("Model", bound=State)
Finite = Annotated[float, Field(ge=-3e38, le=3e38)]  # also in float32
Loss = Annotated[tuple[Annotated[list[Finite], Field(min_length=1)], Annotated[Count, Field(ge=1)]], Strict(False)]


class Values(State, extra="forbid"):
    """What the values of a run's images mean: ``datamodules.base.Intensity``."""

    low: Finite
    high: Finite
    bits: int = Field(ge=1, le=16)
    unit: str
    meaning: str

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low >= self.high:
            raise ValueError("low must lie below high")
        return self


class SourceFacts(State):
    """What a data set of pairs says of its sources."""

    channels: int = Field(ge=1, le=4)
    intensity: Values
    fingerprint: dict[str, str]


class Facts(State):
    """The facts of a data set that something reads; the others are only compared."""

    data_set: str
    classes: list[str]
    images: dict[str, Count]
    intensity: Values
    reading: list[str] = []  # runs from before there were versions of reading have none
    label_rows: dict[str, Annotated[Count, Field(ge=1)]] = {}  # only runs since there are conditional families
    source: SourceFacts | None = None  # of pairs only
    paired: bool = False


class Layer(State, extra="forbid"):  # torch finds a switch here that puts tensors in the place of parameters
    """What torch writes of a layer besides its tensors."""

    version: Count | None = None


class Versions(State):
    """The versions of a state dict's layers, by name."""

    versions: dict[str, Layer]


Drop = Annotated[tuple[Count, Annotated[float, Field(gt=0, le=1)]], Strict(False)]


class Sampled(State):
    """What ``PhasedModule.on_load_checkpoint`` reads, whoever calls it."""

    images_seen: Count
    losses: dict[str, Loss]
    latest: dict[str, float]  # NaN, too: a ratio's divisor may be 0
    data_facts: Facts
    roll_backs: int = Field(0, ge=0, le=1000)  # older runs had none; far more leave no learning rate
    rate_drops: list[Drop] = Field([], max_length=1000)


class Events(State, extra="forbid"):  # Lightning makes attributes of all keys
    """Lightning's counters of one kind of event."""

    ready: Count
    completed: Count
    started: Count = 0
    processed: Count = 0


class Progress(State):
    """Lightning's counters, in all and in the present epoch."""

    total: Events
    current: Events


class BatchProgress(Progress):
    """Lightning's counters of batches."""

    is_last_batch: bool


class OptimizerProgress(State):
    """Lightning's counters of one optimizer."""

    step: Progress
    zero_grad: Progress


class OptimizationProgress(State):
    """Lightning's counters of automatic optimization, which a GAN leaves at 0."""

    optimizer: OptimizerProgress


class Nothing(State, extra="forbid"):
    """The state of a loop that has none."""


class Stepped(State, extra="forbid"):
    """The state of the loop over batches."""

    batches: Count = Field(alias="_batches_that_stepped")


class FitLoop(State):
    """Lightning's loops below ``fit``; two underscores stand for a dot."""

    model_config = ConfigDict(alias_generator=lambda name: name.replace("__", "."))

    state_dict: Nothing
    epoch_progress: Progress
    epoch_loop__state_dict: Stepped
    epoch_loop__batch_progress: BatchProgress
    epoch_loop__scheduler_progress: Progress
    epoch_loop__automatic_optimization__state_dict: Nothing
    epoch_loop__automatic_optimization__optim_progress: OptimizationProgress
    epoch_loop__manual_optimization__state_dict: Nothing
    epoch_loop__manual_optimization__optim_step_progress: Progress
    epoch_loop__val_loop__state_dict: Nothing
    epoch_loop__val_loop__batch_progress: BatchProgress


class Loops(State):
    """Lightning's loops; only ``fit`` is gone on with."""

    fit_loop: FitLoop


class Elapsed(State):
    """The state of Lightning's ``Timer``; its other callbacks that a configuration may name have none."""

    time_elapsed: dict[str, Annotated[Finite, Field(ge=0)]]


class Resumable(Sampled):
    """What Lightning reads besides, to go on with a run."""

    epoch: Count
    global_step: Count
    version: str = Field(alias="pytorch-lightning_version", max_length=60)
    loops: Loops
    callbacks: dict[str, Any]
    optimizer_states: list[OptimizerState]
    lr_schedulers: list[Any]

    @field_validator("version")
    @classmethod
    def _check_version(cls, value: str) -> str:
        try:
            if Version(value) >= Version("2.0"):
                return value
        except InvalidVersion:
            pass
        raise ValueError("is no version of Lightning from 2.0 on")


def check_trained(checkpoint: Path, content: dict[str, Any], module: PhasedModule) -> Sampled:
    """Check that all parts are there, and those that sampling needs: weights, clock, facts of the data.

    Args:
        checkpoint: Its path, for the message.
        content: From ``run_directory.opened``.
        module: The networks that the weights are meant for.

    Returns:
        Clock, facts and numbers.

    Raises:
        ConfigError: If something does not fit, in one sentence.
    """
    missing = [key for key, kind in PARTS.items() if not isinstance(content.get(key), kind)]
    if missing:
        raise ConfigError([f"{checkpoint}: is no checkpoint of a Mirage run (it has no {' and no '.join(missing)})"])
    for part in Sampled.model_fields:
        _check_plain(checkpoint, part, content.get(part))
    trained = _validated(checkpoint, Sampled, content)
    _check_names(checkpoint, content["state_dict"])
    _refuse(checkpoint, weights_problem(content["state_dict"], module))
    _refuse(checkpoint, _labels_problem(trained.data_facts, module.classes) if module.classes else None)
    own = content.get("process_state", {})  # older runs had none
    _check_plain(checkpoint, "process_state", own, tensors=True)
    problem = process_state_problem(own, module.process_state()) if isinstance(own, dict) else "is no dictionary"
    _refuse(checkpoint, f"process_state: {problem}" if problem else None)
    return trained


def check_resumable(
    checkpoint: Path, content: dict[str, Any], module: PhasedModule, callbacks: Sequence[L.Callback]
) -> None:
    """Check all that training reads from a checkpoint, for networks, optimizers, loops and callbacks of this run.

    Args:
        checkpoint: Its path, for the message.
        content: From ``run_directory.opened``.
        module: The networks of the run.
        callbacks: Those of the run; the state of a callback that it does not have is not read.

    Raises:
        ConfigError: If something does not fit, in one sentence.
    """
    check_trained(checkpoint, content, module)
    for part in ("loops", "callbacks", "lr_schedulers"):
        _check_plain(checkpoint, part, content.get(part))
    _check_plain(checkpoint, "optimizer_states", content["optimizer_states"], tensors=True)
    run = _validated(checkpoint, Resumable, content)
    for callback in callbacks:
        state = run.callbacks.get(callback.state_key)
        model = Elapsed if isinstance(callback, Timer) else getattr(callback, "state_model", None)
        if state and model:
            _validated(checkpoint, model, state, ("callbacks", callback.state_key))
    _refuse(checkpoint, optimizers_problem(run.optimizer_states, module.configure_optimizers()))
    if not module.grows:
        _refuse(checkpoint, incomplete_problem(run.optimizer_states))


def _labels_problem(facts: Facts, classes: Sequence[str]) -> str | None:
    """Say what keeps the facts of a data set from telling which labels a family's images have, or return None."""
    if problems := classes_problems(facts.classes):
        return f"data_facts.classes: {problems[0]}"
    if unknown := set(classes) - set(facts.classes):
        return f"data_facts.classes: lacks {min(unknown)}, which the run's family is told"
    rows = facts.label_rows
    if not rows or sum(rows.values()) > MOST:
        return "data_facts.label_rows: does not say how many training images have which labels"
    strange = {name for row in rows for name in row.split("|") if row} - set(facts.classes)
    return f"data_facts.label_rows: {shown(min(strange))} is none of the classes" if strange else None


def _check_plain(checkpoint: Path, part: str, value: Any, tensors: bool = False) -> None:
    """Check that a part is made of plain values, so few and so flat that what walks through them comes to an end."""
    allowed = (str, float, bool, type(None), *((Tensor,) if tensors else ()))
    waiting, seen = [(value, 0)], 0
    while waiting:
        item, depth = waiting.pop()
        seen += 1
        if type(item) in (dict, list, tuple):
            inner = [*item.keys(), *item.values()] if isinstance(item, dict) else item
            if depth >= DEEPEST or seen + len(waiting) + len(inner) > MOST_VALUES:
                _refuse(checkpoint, f"{part}: holds far more than a run writes")
            waiting += [(each, depth + 1) for each in inner]
        elif not (type(item) in allowed or (type(item) is int and abs(item) < 2**63)):
            _refuse(checkpoint, f"{part}: holds a value of type {type(item).__name__} that no run writes")


def _check_names(checkpoint: Path, state_dict: dict[Any, Any]) -> None:
    """Check the versions that torch attaches to a state dict; whatever else is attached would hide its methods."""
    attached = dict(vars(state_dict)) if isinstance(state_dict, OrderedDict) else {}
    versions = attached.pop("_metadata", {})
    if attached or (isinstance(versions, OrderedDict) and vars(versions)):
        _refuse(checkpoint, "state_dict: holds more than tensors and the versions of their layers")
    _check_plain(checkpoint, "state_dict", dict(versions) if isinstance(versions, OrderedDict) else versions)
    _validated(checkpoint, Versions, {"versions": versions}, ("state_dict",))


def _validated(checkpoint: Path, model: type[Model], value: Any, where: tuple[str, ...] = ()) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(shown(key) for key in (*where, *first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        raise _refusal(checkpoint, f"{place}: {said[0].lower()}{said[1:]}") from None


def _refuse(checkpoint: Path, problem: str | None) -> None:
    if problem:
        raise _refusal(checkpoint, problem)


def _refusal(checkpoint: Path, problem: str) -> ConfigError:
    return ConfigError([f"{checkpoint}: {problem}; take another checkpoint of the run, or begin a new run"])
