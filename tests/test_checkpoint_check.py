"""A checkpoint whose inner parts do not fit is refused in a sentence. Only the check is asked: what it is there to keep
away from optimizers and loops would end the process.
"""

import copy
import math
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path

import lightning as L
import pytest
import torch
from conftest import tiny_config

from callbacks.health import Health
from experiments.configuration.errors import ConfigError
from experiments.configuration.experiment import experiment_of
from experiments.record.checkpoint_check import check_resumable, check_trained
from experiments.record.run_directory import Start
from experiments.record.tensor_check import OptimizerState, incomplete_problem, optimizers_problem
from experiments.running import training
from lightning_modules.step import OtherDataError

FAMILIES = {"dcgan": "exp_avg_sq", "wgan": "square_avg", "wgan_gp": "exp_avg_sq", "kidney_gan": "exp_avg_sq"}
FAMILIES["progressive"] = "exp_avg_sq"
PATH = Path("images_000000000008.ckpt")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """For each family: what a configuration builds, and what Lightning and we would write of it after a step."""
    found = {}
    loops = L.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False).fit_loop.state_dict()

    def get(family):
        if family not in found:
            parts = training.build(experiment_of(tiny_config(family, tmp_path_factory.mktemp(family))))
            health = next(callback for callback in parts.callbacks if isinstance(callback, Health))
            health.recent, health.measured = [{"margin": 2.0, "diversity": math.nan}], 1
            found[family] = parts, content_of(parts, loops)
        return found[family]

    return get


def content_of(parts, loops):
    optimizers = parts.module.configure_optimizers()
    for optimizer in optimizers:
        parameters = optimizer.param_groups[0]["params"]
        for parameter in parameters[:3] if parts.module.grows else parameters:  # the others are of a stage to come
            parameter.grad = torch.full_like(parameter, 0.1)
        optimizer.step()
    return {
        "epoch": 0,
        "global_step": 2,
        "pytorch-lightning_version": L.__version__,
        "state_dict": parts.module.state_dict(),
        "loops": {"fit_loop": loops},
        "callbacks": {c.state_key: c.state_dict() for c in parts.callbacks if c.state_dict()},
        "optimizer_states": [optimizer.state_dict() for optimizer in optimizers],
        "lr_schedulers": [],
        "images_seen": 8,
        "losses": {"generator/adversarial": [[0.5, -2.0], 1]},
        "latest": {"loss/generator/adversarial": 0.5, "nearest/ratio": math.nan},
        "data_facts": {
            "data_set": "Phantoms",
            "classes": ["Cyst"],
            "channels": 1,
            "intensity": {"low": 0, "high": 255.0, "bits": 8, "unit": "grey level", "meaning": "brighter = denser"},
            "images": {"train": 40, "val": 4, "test": 0},
            "fingerprint": {"train": "a", "val": "b", "test": "c"},
        },
        "roll_backs": 0,
        "rate_drops": [[8, 0.1]],
        "process_state": {},
    }


def refusal(made, family, change):
    """Return what is said of a content after a change; the weights are changed in place by none."""
    parts, content = made(family)
    content = {**copy.deepcopy({k: v for k, v in content.items() if k != "state_dict"}), "state_dict": {}}
    content["state_dict"] = copy.copy(made(family)[1]["state_dict"])
    change(content)
    with pytest.raises(ConfigError) as error:
        check_resumable(PATH, content, parts.module, parts.callbacks)
    (sentence,) = error.value.problems
    assert sentence.startswith(f"{PATH}: ") and "\n" not in sentence and len(sentence) < 400
    return sentence


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_run_writes_is_accepted(made, family):
    parts, content = made(family)
    check_resumable(PATH, content, parts.module, parts.callbacks)
    assert FAMILIES[family] in content["optimizer_states"][1]["state"][2]
    assert set(content["callbacks"]) == {"Health", "PeriodicCheckpoint"}


# Optimizers -----------------------------------------------------------------------------------------------------------


def state(content, index=0, optimizer=0):
    return content["optimizer_states"][optimizer]["state"][index]


def mean(content):
    """Name of the mean of squares."""
    return next(name for name in ("exp_avg_sq", "square_avg") if name in state(content))


def put(name, make, optimizer=1):
    """Replace an entry of the state of parameter 0; ``make`` gets the old one."""

    def change(content):
        entry = state(content, 0, optimizer)
        entry[name or mean(content)] = make(entry[name or mean(content)])

    return change


def filled(value):
    def make(tensor):
        tensor.view(-1)[0] = value
        return tensor

    return lambda old: make(old.clone(memory_format=torch.contiguous_format))


def group(name, value):
    return lambda content: content["optimizer_states"][0]["param_groups"][0].update({name: value})


def spread(tensor):
    """The same shape over one number: a kernel that counts on its size would write beside it."""
    return torch.zeros(1, dtype=tensor.dtype).expand(tensor.shape)


def hidden(method):
    """A tensor with an attribute, which unpickling can bring along, in front of a method."""

    def make(tensor):
        tensor = tensor.clone()
        setattr(tensor, method, 3)
        return tensor

    return make


OPTIMIZERS = {
    "one too few": (lambda c: c["optimizer_states"].pop(), "holds 1, the run has 2 optimizers"),
    "one too many": (lambda c: c["optimizer_states"].append(c["optimizer_states"][0]), "holds 3"),
    "a number": (lambda c: c["optimizer_states"].__setitem__(0, 3), "optimizer_states.0: "),
    "no state": (lambda c: c["optimizer_states"][0].pop("state"), "optimizer_states.0.state: field required"),
    "no groups": (lambda c: c["optimizer_states"][0].pop("param_groups"), "0.param_groups: field required"),
    "two groups": (
        lambda c: c["optimizer_states"][0]["param_groups"].append({"params": []}),
        "holds 2 parameter groups",
    ),
    "a group without parameters": (
        lambda c: c["optimizer_states"][0]["param_groups"][0].pop("params"),
        "param_groups.0.params: field required",
    ),
    "fewer parameters": (
        lambda c: c["optimizer_states"][0]["param_groups"][0]["params"].pop(),
        "its group names other parameters than 0 to ",
    ),
    "a parameter twice": (
        lambda c: c["optimizer_states"][0]["param_groups"][0]["params"].__setitem__(1, 0),
        "its group names other parameters",
    ),
    "True for a parameter": (
        lambda c: c["optimizer_states"][0]["param_groups"][0]["params"].__setitem__(1, True),
        "params.1: input should be a valid integer",
    ),
    "text for a rate": (group("lr", "fast"), "lr is no value like"),
    "True for a rate": (group("lr", True), "lr is no value like"),
    "NaN for a rate": (group("lr", math.nan), "lr is no value like"),
    "a tensor for epsilon": (group("eps", torch.tensor(1e-8)), "eps is no value like"),
    "a number for a flag": (group("capturable", 1), "capturable is no value like False"),
    "an unknown parameter": (
        lambda c: c["optimizer_states"][0]["state"].update({999: {}}),
        "holds a state of parameter 999, the run has ",
    ),
    "text for a parameter": (
        lambda c: c["optimizer_states"][0]["state"].update({"0": {}}),
        "optimizer_states.0.state.0",
    ),
    "a list for a state": (
        lambda c: c["optimizer_states"][0]["state"].update({0: [1]}),
        "optimizer_states.0.state.0: ",
    ),
    "a missing entry": (lambda c: state(c).pop("step"), "state of parameter 0: holds "),
    "a foreign entry": (lambda c: state(c).update(other=torch.zeros(1)), "other instead of step, "),
    "another shape": (
        put(None, lambda t: torch.zeros(3, 3, 3)),
        "is torch.float32 [3, 3, 3] instead of torch.float32 [",
    ),
    "more dimensions": (put(None, lambda t: t[None]), "is torch.float32 [1, "),
    "no values": (put(None, lambda t: t[:0]), "is torch.float32 [0"),
    "double precision": (put(None, lambda t: t.double()), "is torch.float64 ["),
    "half precision": (put(None, lambda t: t.half()), "is torch.float16 ["),
    "whole numbers": (put(None, lambda t: t.long()), "is torch.int64 ["),
    "complex numbers": (put(None, lambda t: t.to(torch.complex64)), "is torch.complex64 ["),
    "sparse": (put(None, lambda t: t.to_sparse()), "is a Tensor instead of"),
    "without memory": (put(None, lambda t: t.to("meta")), "is a Tensor instead of"),
    "a gradient of its own": (put(None, lambda t: t.clone().requires_grad_()), "is a Tensor instead of"),
    "read with the other sign": (put(None, lambda t: torch._neg_view(t)), "is a Tensor instead of"),
    "a hidden method": (put(None, hidden("aminmax")), "is a Tensor instead of"),
    "another hidden method": (put(None, hidden("stride")), "is a Tensor instead of"),
    "one tensor in two places": (
        lambda c: state(c, 1).update(step=state(c, 0)["step"]),
        "optimizer_states.0: state of parameter 1: step shares memory with another",
    ),
    "a parameter": (put(None, torch.nn.Parameter), "holds a value of type Parameter that no run writes"),
    "a number for a tensor": (put(None, lambda t: 0.5), "is a float instead of torch.float32"),
    "None for a tensor": (put(None, lambda t: None), "is a NoneType instead of torch.float32"),
    "one number in all places": (put(None, spread), "lies in another memory order than its parameter"),
    "another order": (
        put(None, lambda t: torch.zeros(t.shape[::-1]).permute(*reversed(range(t.dim())))),
        "lies in another memory order than its parameter",
    ),
    "NaN": (put(None, filled(math.nan)), "holds values that are not finite"),
    "infinite": (put(None, filled(math.inf)), "holds values that are not finite"),
    "a negative mean of squares": (put(None, filled(-1e-9)), "holds negative values"),
    "a negative step": (put("step", lambda t: t - 9), "step holds negative values"),
    "a step that is NaN": (put("step", lambda t: t * math.nan), "step holds values that are not finite"),
    "many steps": (put("step", lambda t: t.expand(2)), "step is torch.float32 [2] instead of torch.float32 []"),
    "a double step": (put("step", lambda t: t.double()), "step is torch.float64 [] instead of torch.float32 []"),
    "True for a step": (put("step", lambda t: True), "step is a bool"),
    "text for a step": (put("step", lambda t: "3"), "step is a str"),
    "a step below zero as a number": (put("step", lambda t: -1), "step holds negative values"),
    "a step beyond float32": (put("step", lambda t: 1e300), "step holds values that are not finite"),
    "a step without end": (put("step", lambda t: 10**400), "holds a value of type int that no run writes"),
}


@pytest.mark.parametrize("case", OPTIMIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_optimizer_state_that_does_not_fit_is_refused(made, family, case):
    change, expected = OPTIMIZERS[case]
    said = refusal(made, family, change)
    assert "optimizer_states" in said and expected in said


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "progressive"])
def test_all_parameters_of_a_network_that_does_not_grow_have_a_state_or_none_has(made, family):
    said = refusal(made, family, lambda c: c["optimizer_states"][1]["state"].pop(2))
    assert "optimizer_states.1: holds no state of parameter 2, but of others" in said
    parts, content = made(family)
    discriminator, generator = content["optimizer_states"]
    content = {**content, "optimizer_states": [discriminator, {**generator, "state": {}}]}  # before its first step
    check_resumable(PATH, content, parts.module, parts.callbacks)


ADAM, SGD = torch.optim.Adam, torch.optim.SGD
KINDS = [
    (ADAM, {"amsgrad": True}),
    (ADAM, {"fused": True, "amsgrad": True}),
    (ADAM, {"foreach": True}),
    (ADAM, {"lr": torch.tensor(1e-3)}),
    (SGD, {"momentum": 0.9}),
    (SGD, {}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (torch.optim.Adafactor, {}),
]


@pytest.mark.parametrize("kind, settings", KINDS)
def test_states_of_other_optimizers_that_a_family_may_bring_are_accepted(kind, settings):
    network = torch.nn.Linear(3, 2)
    optimizer = kind(network.parameters(), **settings)
    for _ in range(2):
        network(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        held = [OptimizerState.model_validate(optimizer.state_dict())]
        assert (optimizers_problem(held, [kind(network.parameters(), **settings)]), incomplete_problem(held)) == (
            None,
        ) * 2
    assert "holds no state" in (incomplete_problem([held[0].model_copy(update={"state": {0: {"step": 1}}})]) or "")
    held[0].param_groups[0].lr = torch.tensor(math.nan)
    assert "lr is no value like" in (optimizers_problem(held, [optimizer]) or "")


def test_optimizer_for_graphs_of_a_gpu_is_asked_on_the_processor():
    weights = [torch.nn.Parameter(torch.ones(2))]
    weights[0].grad = torch.ones(2)
    optimizer = ADAM(weights)
    optimizer.step()
    held = [OptimizerState.model_validate(optimizer.state_dict())]
    assert optimizers_problem(held, [ADAM(weights, capturable=True)]) is None


def test_states_of_two_optimizers_are_not_exchanged(made):
    said = refusal(made, "dcgan", lambda c: c["optimizer_states"].reverse())
    assert "optimizer_states.0 (Adam): " in said


def test_state_of_another_kind_of_optimizer_is_refused(made):
    other = copy.deepcopy(made("wgan")[1]["optimizer_states"])
    said = refusal(made, "wgan_gp", lambda c: c.update(optimizer_states=other))
    assert "optimizer_states.0 (Adam): " in said


# The other parts ------------------------------------------------------------------------------------------------------


def put_at(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(content):
        for key in keys:
            content = content[key]
        content[last] = value

    return change


def drop(*keys):
    *keys, last = keys

    def change(content):
        for key in keys:
            content = content[key]
        del content[last]

    return change


def weight(make, name="generator.project.0.weight"):
    return lambda content: content["state_dict"].update({name: make(content["state_dict"][name].clone())})


def attach(name, value):
    """Attach something to the state dict: torch does so with versions, and unpickling with whatever is asked for."""

    def change(content):
        content["state_dict"] = OrderedDict(content["state_dict"])
        vars(content["state_dict"])[name] = value

    return change


def laughs(content):
    value = ["x"]
    for _ in range(12):
        value = [value] * 12
    content["data_facts"]["classes"] = value


def endless(content):
    content["latest"]["x"] = content["latest"]


COUNTED = "epoch_loop.batch_progress"
STEPS = "epoch_loop.manual_optimization.optim_step_progress"
NORM = "generator.project.2."
RUN = {
    "weights: NaN": (
        weight(lambda t: t * math.nan),
        "state_dict: generator.project.0.weight holds values that are not",
    ),
    "weights: double": (
        weight(lambda t: t.double()),
        "project.0.weight: torch.float64 [256, 100] instead of torch.float32",
    ),
    "weights: other shape": (weight(lambda t: t[:1]), "torch.float32 [1, 100] instead of torch.float32 [256, 100]"),
    "weights: sparse": (weight(lambda t: t.to_sparse()), "a Tensor instead of torch.float32 [256, 100]"),
    "weights: without memory": (weight(lambda t: t.to("meta")), "a Tensor instead of torch.float32 [256, 100]"),
    "weights: one too few": (
        drop("state_dict", "generator.project.0.weight"),
        "none instead of torch.float32 [256, 100]",
    ),
    "weights: None more": (put_at("state_dict", "x", None), "1 tensors differ, e.g. x: a NoneType instead of none"),
    "weights: numbers for names": (
        lambda c: c["state_dict"].update({1: torch.ones(1), "\x1b[2J": torch.ones(1)}),
        r"2 tensors differ, e.g. \x1b[2J: torch.float32 [1] instead of none",
    ),
    "weights: a name for the terminal": (
        put_at("state_dict", "\x1b[2J\n" * 50, torch.ones(1)),
        r"e.g. \x1b[2J\n\x1b[2J\n",
    ),
    "weights: a variance below zero": (
        weight(lambda t: t - 9, f"{NORM}running_var"),
        "running_var holds negative values",
    ),
    "weights: a count as a fraction": (
        weight(lambda t: t.float(), f"{NORM}num_batches_tracked"),
        "num_batches_tracked: torch.float32 [] instead of torch.int64 []",
    ),
    "weights: a count below zero": (
        weight(lambda t: t - 9, f"{NORM}num_batches_tracked"),
        "num_batches_tracked holds negative values",
    ),
    "weights: a hidden method of one": (weight(hidden("aminmax")), "a Tensor instead of torch.float32 [256, 100]"),
    "weights: nested": (
        weight(lambda t: torch.nested.nested_tensor([t, t])),
        "a Tensor instead of torch.float32 [256, 100]",
    ),
    "weights: with a gradient": (weight(lambda t: t.requires_grad_()), "a Tensor instead of torch.float32 [256, 100]"),
    "weights: put in the place of parameters": (
        attach("_metadata", {"generator": {"version": 1, "assign_to_params_buffers": 1}}),
        "versions.generator.assign_to_params_buffers: extra inputs are not permitted",
    ),
    "weights: a version as text": (
        attach("_metadata", {"": {"version": "2"}}),
        "state_dict.versions..version: input should be a valid integer",
    ),
    "weights: versions of nothing": (
        attach("_metadata", {"": 5}),
        "state_dict.versions.: input should be a valid dict",
    ),
    "weights: a hidden method": (attach("keys", 3), "state_dict: holds more than tensors and the versions"),
    "clock: True": (put_at("images_seen", True), "images_seen: input should be a valid integer"),
    "clock: a fraction": (put_at("images_seen", 8.0), "images_seen: input should be a valid integer"),
    "clock: a tensor": (
        put_at("images_seen", torch.tensor(8)),
        "images_seen: holds a value of type Tensor that no run writes",
    ),
    "clock: below zero": (put_at("images_seen", -8), "images_seen: input should be greater than or equal to 0"),
    "clock: beyond any run": (put_at("images_seen", 2**60), "images_seen: input should be less than or equal to"),
    "roll-backs: True": (put_at("roll_backs", True), "roll_backs: input should be a valid integer"),
    "roll-backs: below zero": (put_at("roll_backs", -1), "roll_backs: input should be greater than or equal to 0"),
    "roll-backs: too many": (put_at("roll_backs", 10**6), "roll_backs: input should be less than or equal to 1000"),
    "rate drops: a rise": (put_at("rate_drops", [[8, 2.0]]), "rate_drops.0.1: input should be less than or equal to 1"),
    "rate drops: to nothing": (put_at("rate_drops", [[8, 0.0]]), "rate_drops.0.1: input should be greater than 0"),
    "rate drops: NaN": (put_at("rate_drops", [[8, math.nan]]), "rate_drops.0.1: input should be less than"),
    "rate drops: no clock": (put_at("rate_drops", [[0.5, 0.1]]), "rate_drops.0.0: input should be a valid integer"),
    "rate drops: a number": (put_at("rate_drops", 3), "rate_drops: input should be a valid list"),
    "own state: of another family": (
        put_at("process_state", {"pool": torch.zeros(1, 2)}),
        "process_state: holds pool instead of nothing",
    ),
    "own state: a list": (put_at("process_state", [1]), "process_state: is no dictionary"),
    "own state: code": (put_at("process_state", {"pool": len}), "process_state: holds a value of type"),
    "losses: a number": (put_at("losses", "x", 3), "losses.x: input should be a valid tuple"),
    "losses: no count": (put_at("losses", "x", [[1.0]]), "losses.x.1: field required"),
    "losses: no sum": (put_at("losses", "x", [[], 1]), "losses.x.0: list should have at least 1 item"),
    "losses: a count of 0": (
        put_at("losses", "x", [[1.0], 0]),
        "losses.x.1: input should be greater than or equal to 1",
    ),
    "losses: True for a count": (put_at("losses", "x", [[1.0], True]), "losses.x.1: input should be a valid integer"),
    "losses: NaN": (put_at("losses", "x", [[math.nan], 1]), "losses.x.0.0: input should be "),
    "losses: beyond float32": (
        put_at("losses", "x", [[1e300], 1]),
        "losses.x.0.0: input should be less than or equal to",
    ),
    "losses: text": (put_at("losses", "x", [["1"], 1]), "losses.x.0.0: input should be a valid number"),
    "losses: a number for a name": (put_at("losses", 3, [[1.0], 1]), "losses.3"),
    "latest: text": (put_at("latest", "x", "1"), "latest.x: input should be a valid number"),
    "latest: True": (put_at("latest", "x", True), "latest.x: input should be a valid number"),
    "latest: a tensor": (
        put_at("latest", "x", torch.tensor(1.0)),
        "latest: holds a value of type Tensor that no run writes",
    ),
    "latest: itself": (endless, "latest: holds far more than a run writes"),
    "facts: no range": (drop("data_facts", "intensity"), "data_facts.intensity: field required"),
    "facts: a range without end": (
        put_at("data_facts", "intensity", "high", math.inf),
        "data_facts.intensity.high: input should be less than or equal to",
    ),
    "facts: an empty range": (put_at("data_facts", "intensity", "low", 255.0), "intensity: low must lie below high"),
    "facts: no bits": (put_at("data_facts", "intensity", "bits", 0), "intensity.bits: input should be greater than"),
    "facts: text for bits": (put_at("data_facts", "intensity", "bits", "8"), "intensity.bits: input should be a valid"),
    "facts: a number for a class": (
        put_at("data_facts", "classes", [3]),
        "data_facts.classes.0: input should be a valid",
    ),
    "facts: images below zero": (put_at("data_facts", "images", "val", -1), "data_facts.images.val: input should be "),
    "facts: a tensor": (
        put_at("data_facts", "x", torch.ones(2)),
        "data_facts: holds a value of type Tensor that no run writes",
    ),
    "facts: a set": (put_at("data_facts", "x", {1, 2}), "data_facts: holds a value of type set that no run writes"),
    "facts: laughs": (laughs, "data_facts: holds far more than a run writes"),
    "version: none": (drop("pytorch-lightning_version"), "pytorch-lightning_version: field required"),
    "version: a number": (put_at("pytorch-lightning_version", 2.6), "version: input should be a valid string"),
    "version: a word": (put_at("pytorch-lightning_version", "new"), "is no version of Lightning from 2.0 on"),
    "version: from before": (put_at("pytorch-lightning_version", "1.5.0"), "is no version of Lightning from 2.0 on"),
    "epoch: text": (put_at("epoch", "0"), "epoch: input should be a valid integer"),
    "steps: below zero": (put_at("global_step", -1), "global_step: input should be greater than or equal to 0"),
    "schedulers: none": (drop("lr_schedulers"), "lr_schedulers: field required"),
    "schedulers: a number": (put_at("lr_schedulers", 3), "lr_schedulers: input should be a valid list"),
    "loops: none": (put_at("loops", {}), "loops.fit_loop: field required"),
    "loops: a number": (put_at("loops", "fit_loop", 3), "loops.fit_loop: input should be "),
    "loops: no batches": (drop("loops", "fit_loop", COUNTED), f"loops.fit_loop.{COUNTED}: field required"),
    "loops: True for a count": (
        put_at("loops", "fit_loop", COUNTED, "total", "ready", True),
        f"{COUNTED}.total.ready: input should be a valid integer",
    ),
    "loops: below zero": (
        put_at("loops", "fit_loop", STEPS, "current", "completed", -1),
        f"{STEPS}.current.completed: input should be greater than or equal to 0",
    ),
    "loops: a count without end": (
        put_at("loops", "fit_loop", "epoch_progress", "total", "ready", 2**62),
        "epoch_progress.total.ready: input should be less than or equal to",
    ),
    "loops: a number for a flag": (
        put_at("loops", "fit_loop", COUNTED, "is_last_batch", 0),
        f"{COUNTED}.is_last_batch: input should be a valid boolean",
    ),
    "loops: a hidden method": (
        put_at("loops", "fit_loop", COUNTED, "total", "reset", 0),
        f"{COUNTED}.total.reset: extra inputs are not permitted",
    ),
    "loops: a loader's state": (
        put_at("loops", "fit_loop", "state_dict", "combined_loader", [3]),
        "fit_loop.state_dict.combined_loader: extra inputs are not permitted",
    ),
    "loops: no steps": (
        drop("loops", "fit_loop", "epoch_loop.automatic_optimization.optim_progress", "optimizer", "step"),
        "optim_progress.optimizer.step: field required",
    ),
    "callbacks: a number": (put_at("callbacks", "Health", 3), "callbacks.Health: input should be "),
    "callbacks: a number for a name": (put_at("callbacks", 3, {}), "callbacks.3"),
    "health: nothing measured": (
        put_at("callbacks", "Health", {"recent": [], "measured": 9, "since": 0}),
        "callbacks.Health: recent must hold the last 3 of all measurements",
    ),
    "health: True for a number": (put_at("callbacks", "Health", "measured", True), "Health.measured: input should be"),
    "health: text for a signal": (
        put_at("callbacks", "Health", "recent", [{"margin": "2"}]),
        "callbacks.Health.recent.0.margin: input should be a valid number",
    ),
    "health: text for a score": (
        put_at("callbacks", "Health", "scores", [{"images_seen": 8, "value": "0.1"}]),
        "callbacks.Health.scores.0.value: input should be a valid number",
    ),
    "health: a part is missing": (drop("callbacks", "Health", "since"), "callbacks.Health.since: field required"),
    "best: text": (put_at("callbacks", "PeriodicCheckpoint", "best", {"x": "1"}), "callbacks.PeriodicCheckpoint.best"),
    "best: a clock as text": (
        put_at("callbacks", "PeriodicCheckpoint", "scored_at", "8"),
        "PeriodicCheckpoint.scored_at: input should be a valid integer",
    ),
    "best: a number for a flag": (
        put_at("callbacks", "PeriodicCheckpoint", "owed", 1),
        "PeriodicCheckpoint.owed: input should be a valid boolean",
    ),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("case", RUN)
def test_part_that_does_not_fit_is_refused(made, case):
    change, expected = RUN[case]
    assert expected in refusal(made, "dcgan", change)


def test_what_older_runs_and_other_versions_wrote_is_accepted(made):
    parts, content = made("progressive")
    content = copy.deepcopy({**content, "state_dict": dict(content["state_dict"])})
    del content["roll_backs"], content["callbacks"]["PeriodicCheckpoint"]["owed"]
    del content["rate_drops"], content["process_state"]
    content["callbacks"]["PeriodicCheckpoint"]["best"] = ["score/frechet_random_conv", 12.5]
    content["callbacks"] |= {"SomebodyElses": {"anything": [1]}, "Health": {}}
    content["something"] = {"of": "a later version"}
    content["data_facts"]["something"] = {"of": ["a later version"]}
    content["pytorch-lightning_version"] = "2.7.0.dev20270101"
    for held in content["optimizer_states"]:
        for entry in held["state"].values():
            entry["step"] = int(entry["step"])  # torch below 1.12
        held["state"][3] = {}
        del held["param_groups"][0]["fused"]
        held["param_groups"][0] |= {"foreach": None, "weight_decay": 0, "initial_lr": 1e-3}
    check_resumable(PATH, content, parts.module, parts.callbacks)
    content["optimizer_states"][0]["state"].clear()  # at the beginning of a stage
    check_resumable(PATH, content, parts.module, parts.callbacks)


def test_state_of_lightnings_timer_is_checked(made):
    parts, content = made("dcgan")
    timer = L.pytorch.callbacks.Timer()
    check_resumable(PATH, {**content, "callbacks": {"Timer": timer.state_dict()}}, parts.module, [timer])
    for wrong in ({"train": "3"}, {"train": math.nan}, {"train": -1.0}, 3):
        with pytest.raises(ConfigError, match=r"callbacks\.Timer\.time_elapsed"):
            held = {**content, "callbacks": {"Timer": {"time_elapsed": wrong}}}
            check_resumable(PATH, held, parts.module, [timer])


def test_sampling_does_not_ask_for_what_it_does_not_read(made):
    parts, content = made("dcgan")
    unread = {"optimizer_states": [3], "loops": {"fit_loop": 3}, "callbacks": {"Health": 3}, "epoch": "x"}
    checked = check_trained(PATH, {**content, **unread}, parts.module)
    assert (checked.images_seen, checked.data_facts.intensity.high) == (8, 255.0)
    with pytest.raises(ConfigError, match="roll_backs: input should be a valid integer"):
        check_trained(PATH, {**content, "roll_backs": "0"}, parts.module)


def test_checkpoint_that_a_run_goes_back_to_is_checked_too(made, tmp_path, monkeypatch):
    class Diverging:
        def __init__(self):
            self.strategy = self

        def fit(self, *arguments, **keywords):
            raise training.DivergedError("training diverged")

        def broadcast(self, value, src):
            return value

    parts, content = made("dcgan")
    (tmp_path / "checkpoints").mkdir()
    torch.save({**content, "loops": {"fit_loop": 3}}, tmp_path / "checkpoints" / PATH)
    monkeypatch.setattr(training.processes, "ended_together", lambda *_: nullcontext())
    monkeypatch.setattr(training, "build_trainer", lambda *_: Diverging())
    watch = next(c for c in parts.callbacks if isinstance(c, training.DivergenceWatch))
    monkeypatch.setattr(watch, "roll_backs", 1)
    with pytest.raises(ConfigError, match=r"loops\.fit_loop: input should be "):
        training._fit_with_roll_backs(training.Run(parts, Start(tmp_path, None), None, [], training.Preemption(), True))


def test_message_quotes_facts_of_a_stranger_short_and_printable(made, monkeypatch):
    parts, content = made("dcgan")
    monkeypatch.setattr(parts.module, "data_facts", content["data_facts"])
    facts = {**content["data_facts"], "data_set": "\x1b[2J\n" * 1000, "classes": ["Cyst"] * 1000}
    with pytest.raises(OtherDataError, match=r"data_set: was \\x1b\[2J\\n") as error:
        parts.module.on_load_checkpoint({"data_facts": facts})
    assert str(error.value).isprintable() and len(str(error.value)) < 2000
    assert "classes: was ['Cyst', 'Cyst', " in str(error.value)
    assert str(error.value).endswith("is ['Cyst']); allow_changes=true goes on with the present data")
