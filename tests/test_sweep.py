"""Sweep files: spaces, refusals that come before anything starts, and the command line."""

import json

import pytest
from conftest import TINY_YAML

from experiments import cli
from experiments import sweep as command
from experiments.configuration.errors import ConfigError
from experiments.configuration.files import SWEEPS, parse_override, shipped
from experiments.sweeps.settings import check_experiments, load_sweep
from experiments.sweeps.space import Choice, IntRange, overrides_of, parse_space

DCGAN, WGAN_GP = "lightning_modules.dcgan.DCGAN", "lightning_modules.wgan_gp.WGANGP"
FAMILIES = {
    "module._target_": {"choice": [DCGAN, WGAN_GP]},
    "module.learning_rate": {"log": [1e-4, 1e-2]},
    "module.critic_steps": {"choice": [1, 2], "when": {"module._target_": WGAN_GP}},
}


def sweep_file(tmp_path, space=FAMILIES, **settings):
    """Return the path of a sweep over the tiny experiment."""
    content = {
        "experiment": str(TINY_YAML),
        "metric": "score/frechet_random_conv",
        "trials": 4,
        "tracking": "disabled",
        "runs_dir": str(tmp_path / "runs"),
        "space": space,
        **settings,
    }
    path = tmp_path / "search.yaml"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    return str(path)


def problems_of(path, *overrides):
    with pytest.raises(ConfigError) as error:
        check_experiments(load_sweep(path, overrides))
    return error.value.problems


def test_a_grid_follows_conditions():
    space = parse_space(
        {
            "a": {"choice": ["x", "y"]},
            "b": {"int": [1, 5], "step": 2, "when": {"a": "y"}},
            "c": {"choice": [None, True], "when": {"a": ["x"]}},
        }
    )
    assert space.grid() == [
        {"a": "x", "c": None},
        {"a": "x", "c": True},
        {"a": "y", "b": 1},
        {"a": "y", "b": 3},
        {"a": "y", "b": 5},
    ]
    assert space.branches() == [{"a": "x", "c": None}, {"a": "y", "b": 1}]


def test_a_condition_may_depend_on_a_condition():
    space = parse_space(
        {
            "a": {"choice": [1, 2]},
            "b": {"choice": [1, 2], "when": {"a": 2}},
            "c": {"choice": [7], "when": {"b": 2}},
        }
    )
    assert space.grid() == [{"a": 1}, {"a": 2, "b": 1}, {"a": 2, "b": 2, "c": 7}]


@pytest.mark.parametrize(
    "value", [None, True, 1, 0.5, 1e-05, 1e20, "a b", "1e-3", "yes", "", [1, None], {"p": "x"}, "ü"]
)
def test_every_value_survives_the_command_line(value):
    (override,) = overrides_of({"module.key": value})
    read = parse_override(override)["module"]["key"]
    assert read == value and type(read) is type(value)


def test_keys_may_be_nested_or_dotted(tmp_path):
    path = sweep_file(tmp_path)
    sweep = load_sweep(
        path, ["space.module.learning_rate={log: [1e-3, 1e-2]}", "space.schedule.batch_size={int: [4, 8]}"]
    )
    domains = {dimension.key: dimension.domain for dimension in sweep.search_space().dimensions}
    assert domains["module.learning_rate"].low == 1e-3
    assert domains["schedule.batch_size"] == IntRange(4, 8)
    assert domains["module._target_"] == Choice((DCGAN, WGAN_GP))


SPACES = {
    "nothing": ({}, "space={}: a sweep needs something to vary"),
    "no kind": ({"seed": 3}, "space.seed: expected one of choice, int, float, log"),
    "two kinds": ({"seed": {"int": [1, 2], "choice": [1]}}, "space.seed: expected one of"),
    "unknown argument": ({"seed": {"int": [1, 9], "stepp": 2}}, "int has no argument 'stepp'; did you mean 'step'?"),
    "step of a choice": ({"seed": {"choice": [1, 9], "step": 2}}, "choice has no argument 'step'"),
    "no list": ({"seed": {"choice": 1}}, "choice=1: expected a list"),
    "empty choice": ({"seed": {"choice": []}}, "needs at least one value"),
    "equal in a table": ({"seed": {"choice": [1, "1"]}}, "1 is there twice"),
    "float as int": ({"seed": {"int": [1, 2.5]}}, "expected two whole numbers"),
    "bool as int": ({"seed": {"int": [False, True]}}, "expected two whole numbers"),
    "text as float": ({"seed": {"float": ["a", 1]}}, "expected two numbers"),
    "three ends": ({"seed": {"float": [1, 2, 3]}}, "expected two numbers, the lowest and the highest"),
    "upside down": ({"seed": {"float": [2, 1]}}, "float=[2.0, 1.0]: needs low < high"),
    "log of zero": ({"seed": {"log": [0, 1]}}, "needs 0 < low < high"),
    "half a step": ({"seed": {"int": [1, 4], "step": 2}}, "is no whole number of steps of 2"),
    "condition below": (
        {"a": {"choice": [1], "when": {"b": 1}}, "b": {"choice": [1]}},
        "when.b: is no choice above it; a condition names a choice",
    ),
    "condition on a range": ({"a": {"int": [1, 2]}, "b": {"choice": [1], "when": {"a": 1}}}, "when.a: is no choice"),
    "misspelled condition": (
        {"family": {"choice": ["x"]}, "b": {"choice": [1], "when": {"familly": "x"}}},
        "did you mean 'family'",
    ),
    "never true": (
        {"a": {"choice": ["wgan", "dcgan"]}, "b": {"choice": [1], "when": {"a": "wgann"}}},
        "when.a=wgann: a is never that; did you mean 'wgan'",
    ),
    "the sweep's own": ({"runs_dir": {"choice": ["x"]}}, "space.runs_dir: is set by the sweep itself"),
    "no key": ({"module.1": {"choice": [1]}}, "is no key of an experiment"),
}


@pytest.mark.parametrize("case", SPACES)
def test_wrong_spaces_are_refused(case):
    space, message = SPACES[case]
    with pytest.raises(ConfigError) as error:
        parse_space(space)
    assert message in error.value.problems[0]


FILES = {
    "unknown key": ({"trails": 3}, "trails=3: a sweep has no argument 'trails'; did you mean 'trials'"),
    "no budget": ({"trials": None}, "trials: is required by method=tpe"),
    "no trials": ({"trials": 0}, "trials=0: must be at least 1"),
    "unknown method": ({"method": "bayes"}, "method='bayes': expected one of 'tpe', 'random', 'grid'"),
    "grid of a range": ({"method": "grid"}, "space.module.learning_rate: a grid cannot have a continuous range"),
    "unknown rule": (
        {"pruning": {"rule": "medain"}},
        "pruning.rule='medain': expected one of 'median', 'hyperband'; did",
    ),
    "unknown argument of a rule": (
        {"pruning": {"rule": "median", "after": 3}},
        "pruning.after=3: MedianPruning has no argument 'after'",
    ),
    "wrong value of a rule": ({"pruning": {"rule": "hyperband", "min_images": 0}}, "pruning.min_images=0"),
    "no experiment": ({"experiment": None}, "experiment: name it either at the top or in the space"),
    "unknown experiment": ({"experiment": "dcgan_chest_fantoms_64"}, "did you mean 'dcgan_chest_phantoms_64'"),
    "the sweep's own override": (
        {"overrides": ["trainer.devices=2"]},
        "trainer.devices=2 is set by the sweep itself; write devices_per_trial",
    ),
    "the project as an override": (
        {"overrides": ["wandb_project=ours"]},
        "wandb_project=ours is set by the sweep itself; write wandb_project: at the top",
    ),
    "escaping name": ({"name": "../x"}, "name='../x': must be a plain folder name"),
    "unknown score": (
        {"metric": "score/fid"},
        "metric=score/fid: the experiment tiny takes score/frechet_random_conv",
    ),
    "misspelled key": (
        {"space": {"module.lerning_rate": {"log": [1e-4, 1e-2]}}},
        "DCGAN has no argument 'lerning_rate'; did you mean 'learning_rate'?",
    ),
    "argument of another family": (
        {"space": {**FAMILIES, "module.critic_steps": {"choice": [1, 2]}}},
        "DCGAN has no argument 'critic_steps'",
    ),
    "missing data": (
        {
            "experiment": "dcgan_ct_kidney_64",
            "overrides": ["data.root=/no/such"],
            "space": {"seed": {"int": [0, 9]}},
            "metric": "score/frechet_efficientnet_lite0",
        },
        "data.root=/no/such",
    ),
    "a batch that devices cannot share": (
        {"devices_per_trial": 4, "space": {"schedule.batch_size": {"choice": [8, 6]}}},
        "schedule: a batch of 6 cannot be shared equally by 4 processes",
    ),
    "a value that no class takes": (
        {"space": {"schedule.batch_size": {"int": [0, 8]}}},
        "schedule.batch_size=0",
    ),
    "wrong type of one value": (
        {"space": {"schedule.batch_size": {"choice": [8, 16, "many"]}}},
        "schedule.batch_size='many': expected int, got str",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_wrong_sweeps_are_refused_before_anything_starts(case, tmp_path, capsys):
    settings, message = FILES[case]
    path = sweep_file(tmp_path, **settings)
    problems = problems_of(path)
    assert any(message in problem for problem in problems), problems
    assert len(problems) == len(set(problems))
    assert command.main([path]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_everything_wrong_comes_at_once(tmp_path):
    space = {"a": {"int": [2, 1]}, "b": {"choice": 3}}
    settings = {"pruning": {"rule": "x"}, "overrides": ["name=x", "y"]}
    assert len(problems_of(sweep_file(tmp_path, space, **settings))) == 5


@pytest.mark.parametrize("name", shipped(SWEEPS))
def test_every_shipped_sweep_says_what_it_is_and_fits_its_experiments(name, kidney_root, monkeypatch):
    monkeypatch.setenv("MIRAGE_CT_KIDNEY", str(kidney_root))
    first, second = (SWEEPS / f"{name}.yaml").read_text().splitlines()[:2]
    assert first.startswith("# ") and len(first) < 120
    assert second.startswith(f"# python -m experiments.sweep {name}")
    check_experiments(load_sweep(name))


def test_list_show_and_help(capsys):
    assert command.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in shipped(SWEEPS))
    assert command.main(["phantom_grid", "--show", "parallel=3"]) == 0
    assert "parallel: 3" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0


def test_the_storage_is_never_shown(tmp_path, capsys):
    path = sweep_file(tmp_path, storage="postgresql://host/db")
    assert command.main([path, "--show"]) == 0
    assert "postgresql" not in capsys.readouterr().out and "postgresql" not in repr(load_sweep(path))


def test_a_password_in_the_storage_belongs_into_the_environment(tmp_path, capsys):
    path = sweep_file(tmp_path, storage="postgresql://me:hunter22@host/db")
    assert command.main([path, "--show"]) == cli.EXIT_BAD_CONFIG
    message = capsys.readouterr().err
    assert "storage: holds a password in a URL" in message and "MIRAGE_SWEEP_STORAGE" in message
    assert "hunter22" not in message
