"""The tensors of a checkpoint against the networks and optimizers that they are meant for.

A state of another shape or kind that reaches a fused optimizer ends the process by a signal, and one in another memory
order trains on with its values exchanged: torch 2.14 checks neither.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from callbacks.state import Count, State

# What optimizers take roots of, and count.
NOT_NEGATIVE = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "step"}
MOST_PROCESSES = 2**16
NOT_NEGATIVE_BUFFERS = ("running_var", "num_batches_tracked")


class Group(State, extra="allow"):
    """A parameter group as ``Optimizer.state_dict`` writes it; the hyper-parameters are the extra keys."""

    params: list[Count]


class OptimizerState(State):
    """What ``Optimizer.state_dict`` returns."""

    state: dict[int, dict[str, Any]]
    param_groups: list[Group]


def weights_problem(held: Mapping[str, Any], module: nn.Module) -> str | None:
    """Say what keeps a state dict from being a module's, or return None."""
    expected = module.state_dict()
    names = sorted(expected.keys() | held.keys(), key=str)
    kinds = {
        name: tuple(_kind(tensors[name]) if name in tensors else "none" for tensors in (held, expected))
        for name in names
    }
    differing = [name for name, (found, wanted) in kinds.items() if found != wanted]
    if differing:
        found, wanted = kinds[differing[0]]
        what = f"{len(differing)} tensors differ, e.g. {shown(differing[0])}: {found} instead of {wanted}"
        return f"holds other networks than module describes ({what})"
    problems = ((name, _values_problem(held[name], name.endswith(NOT_NEGATIVE_BUFFERS))) for name in names)
    return next((f"state_dict: {name} {problem}" for name, problem in problems if problem), None)


def optimizers_problem(held: Sequence[OptimizerState], optimizers: Sequence[Optimizer]) -> str | None:
    """Say what keeps stored states from being those of a run's optimizers, or return None."""
    if len(held) != len(optimizers):
        return f"optimizer_states: holds {len(held)}, the run has {len(optimizers)} optimizers"
    for index, (state, optimizer) in enumerate(zip(held, optimizers, strict=True)):
        for problem in _optimizer_problems(state, optimizer):
            return f"optimizer_states.{index} ({type(optimizer).__name__}): {problem}"
    return _sharing_problem(held)


def _sharing_problem(held: Sequence[OptimizerState]) -> str | None:
    """Say which tensor lies where another one lies: what is added to one would be added to both."""
    seen = set()
    for index, optimizer in enumerate(held):
        for parameter, entry in optimizer.state.items():
            for name, value in entry.items():
                if not isinstance(value, Tensor) or not value.numel():
                    continue
                memory = value.untyped_storage().data_ptr()
                if memory in seen:
                    return (
                        f"optimizer_states.{index}: state of parameter {parameter}: {name} shares memory with another"
                    )
                seen.add(memory)
    return None


def process_state_problem(held: Mapping[str, Any], expected: Mapping[str, Tensor]) -> str | None:
    """Say what keeps a checkpoint's states of processes, stacked, from being those of a run's, or return None."""
    if held.keys() != expected.keys():
        return f"holds {', '.join(map(shown, held)) or 'nothing'} instead of {', '.join(expected) or 'nothing'}"
    counts = {len(value) if isinstance(value, Tensor) and value.dim() else 0 for value in held.values()}
    if len(counts) > 1 or not all(0 < count <= MOST_PROCESSES for count in counts):
        return f"holds states of {' and '.join(map(str, sorted(counts)))} processes"
    for name, tensor in expected.items():
        value = held[name]
        # One that is not contiguous may claim more values than the file has.
        if not _is_plain(value) or not value.is_contiguous() or _kind(value[0]) != _kind(tensor.detach().cpu()):
            return f"{name} is {_kind(value)}, not one {_kind(tensor)} of every process"
        if problem := _values_problem(value, not_negative=False):
            return f"{name} {problem}"
    return None


def incomplete_problem(held: Sequence[OptimizerState]) -> str | None:
    """Say which parameter lacks the state that others of its optimizer have, or return None.

    All parameters of networks that do not grow are trained together; one without a state would begin its averages anew.
    """
    for index, state in enumerate(held):
        wanted = {parameter for group in state.param_groups for parameter in group.params}
        missing = wanted - {parameter for parameter, entry in state.state.items() if entry}
        if missing and missing != wanted:
            return f"optimizer_states.{index}: holds no state of parameter {min(missing)}, but of others"
    return None


def _optimizer_problems(held: OptimizerState, optimizer: Optimizer) -> Iterator[str]:
    groups = optimizer.param_groups
    if len(held.param_groups) != len(groups):
        yield f"holds {len(held.param_groups)} parameter groups, the run has {len(groups)}"
        return
    first = 0
    written: dict[Any, dict[str, Any]] = {}
    for stored, group in zip(held.param_groups, groups, strict=True):
        indices = range(first, first + len(group["params"]))
        first = indices.stop
        if stored.params != list(indices):
            yield f"its group names other parameters than {indices.start} to {indices.stop - 1}, which the run has"
        yield from _hyper_parameter_problems(stored.model_extra or {}, optimizer.defaults)
        for index, parameter in zip(indices, group["params"], strict=True):
            if not held.state.get(index):  # of a stage to come, or forgotten at the beginning of one
                continue
            layout = (parameter.shape, parameter.stride(), parameter.dtype)
            if layout not in written:
                written[layout] = _written(optimizer, group, parameter)
            yield from _state_problems(held.state[index], written[layout], f"state of parameter {index}")
    if unknown := held.state.keys() - set(range(first)):
        yield f"holds a state of parameter {min(unknown)}, the run has {first} parameters"


def _written(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """Return what the optimizer itself writes for a parameter, from one step with a gradient of zero."""
    dummy = nn.Parameter(torch.zeros_like(parameter, device="cpu"))
    dummy.grad = torch.zeros_like(dummy)
    probe = copy.copy(optimizer)
    here = {"capturable": False} if "capturable" in group else {}  # which is for GPUs
    probe.state, probe.param_groups = defaultdict(dict), [{**group, **here, "params": [dummy]}]
    probe.step()
    return probe.state[dummy]


def _hyper_parameter_problems(held: dict[str, Any], defaults: dict[str, Any]) -> Iterator[str]:
    """Yield what is no value of its kind. Flags may be missing: torch's versions brought them one by one."""
    for name, default in defaults.items():
        if not _is_like(held.get(name), default):
            yield f"{name} is no value like {default}"


def _is_like(value: Any, default: Any) -> bool:
    if default is None or isinstance(default, bool):
        return value is None or isinstance(value, bool)
    if isinstance(default, tuple | list):
        return isinstance(value, tuple | list) and len(value) == len(default) and all(map(_is_like, value, default))
    if isinstance(default, Tensor):  # as a rate may be
        return _kind(value) == _kind(default) and _values_problem(value, not_negative=False) is None
    return _is_finite(value) or type(value) is type(default) is str


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _state_problems(held: dict[str, Any], written: dict[str, Any], where: str) -> Iterator[str]:
    if held.keys() != written.keys():
        yield f"{where}: holds {', '.join(map(shown, held)) or 'nothing'} instead of {', '.join(written) or 'nothing'}"
        return
    for name, example in written.items():
        value = held[name]
        if isinstance(example, Tensor) and not example.dim() and type(value) in (int, float):
            value = torch.tensor(value, dtype=example.dtype)  # as torch itself reads what older versions counted in
        if _kind(value) != _kind(example):
            yield f"{where}: {name} is {_kind(value)} instead of {_kind(example)}"
        elif isinstance(value, Tensor) and _order(value) != _order(example):
            yield f"{where}: {name} lies in another memory order than its parameter"
        elif isinstance(value, Tensor) and (problem := _values_problem(value, name in NOT_NEGATIVE)):
            yield f"{where}: {name} {problem}"


def _order(tensor: Tensor) -> list[int]:
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def _kind(value: Any) -> str:
    """Return what must be equal of two entries: numbers and shape of a tensor that lies in memory, else the type."""
    return f"{value.dtype} {list(value.shape)}" if _is_plain(value) else f"a {type(value).__name__}"


def _is_plain(value: Any) -> bool:
    """Tell whether a value is a tensor whose numbers lie in memory as they are meant, with torch's own methods."""
    if type(value) is not Tensor or vars(value) or value.is_nested or value.layout is not torch.strided:
        return False
    return not (value.is_meta or value.requires_grad or value.is_neg() or value.is_conj())


def _values_problem(tensor: Tensor, not_negative: bool) -> str | None:
    """Say what no training leaves in a tensor, in one pass over its values, or return None."""
    if not tensor.numel() or tensor.is_complex():
        return None
    low, high = (float(value) for value in tensor.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        return "holds values that are not finite"
    return "holds negative values" if not_negative and low < 0 else None


def shown(name: Any) -> str:
    """Return a stranger's name as a message may quote it: short, on one line, nothing for the terminal to act on."""
    return repr(str(name))[1:-1][:80]
