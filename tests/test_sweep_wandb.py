"""The same sweep file for W&B: what it cannot do is refused, and what its agent starts trains with the right values."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from conftest import TINY_YAML, run_cli
from omegaconf import OmegaConf
from test_sweep import DCGAN, sweep_file

from experiments import run
from experiments import sweep as command
from experiments.configuration.errors import ConfigError
from experiments.sweeps.settings import load_sweep
from experiments.sweeps.wandb_engine import sweep_config

SPACE = {
    "module.learning_rate": {"log": [1e-4, 1e-2]},
    "module.beta1": {"float": [0.0, 0.9]},
    "schedule.batch_size": {"int": [4, 8], "step": 2},
    "seed": {"int": [0, 9]},
    "callbacks.samples": {"choice": [None, {"every_images": 40}]},
    "data.val_fraction": {"choice": [0.1, 0.2]},
}
HYPERBAND = {"rule": "hyperband", "min_images": 80, "max_images": 720, "reduction_factor": 3}
# What W&B's schema allows for a parameter and asks of it, of the kinds that are written here.
KINDS = {
    None: {"values"},
    "int_uniform": {"distribution", "min", "max"},
    "uniform": {"distribution", "min", "max"},
    "log_uniform_values": {"distribution", "min", "max"},
}
TOP = {"name", "project", "program", "command", "method", "metric", "parameters", "run_cap", "early_terminate"}


def config_of(tmp_path, space=SPACE, **settings):
    return sweep_config(load_sweep(sweep_file(tmp_path, space, **settings)))


def all_kinds(tmp_path):
    """One sweep of every method, with everything that can be written."""
    grid = {key: value for key, value in SPACE.items() if set(value) & {"choice", "int"}}
    return [
        config_of(tmp_path, method="tpe", pruning=HYPERBAND),
        config_of(tmp_path, method="random", pruning={**HYPERBAND, "max_images": None}),
        config_of(tmp_path, grid, method="grid", trials=None),
    ]


def test_the_file_is_in_wandbs_terms(tmp_path):
    config = config_of(
        tmp_path, pruning=HYPERBAND, overrides=["schedule.total_images=96"], direction="maximize", wandb_project="ours"
    )
    assert config["method"] == "bayes" and config["run_cap"] == 4
    assert config["metric"] == {"name": "score/frechet_random_conv", "goal": "maximize"}
    assert config["parameters"] == {
        "module.learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
        "module.beta1": {"distribution": "uniform", "min": 0.0, "max": 0.9},
        "schedule.batch_size": {"values": [4, 6, 8]},
        "seed": {"distribution": "int_uniform", "min": 0, "max": 9},
        "callbacks.samples": {"values": [None, {"every_images": 40}]},
        "data.val_fraction": {"values": [0.1, 0.2]},
    }
    assert config["early_terminate"] == {"type": "hyperband", "max_iter": 18, "s": 2, "eta": 3}
    assert config["command"][:5] == ["${env}", "${interpreter}", "-m", "experiments.run", str(TINY_YAML)]
    assert config["command"][-1] == "${args_no_hyphens}" and "schedule.total_images=96" in config["command"]
    assert config["project"] == "ours" and "wandb_project=ours" in config["command"]  # also names the pseudonyms' salt


def test_the_file_follows_the_rules_of_wandbs_schema(tmp_path):
    for config in all_kinds(tmp_path):
        config = yaml.safe_load(yaml.safe_dump(config))
        assert set(config) <= TOP and config["method"] in ("bayes", "random", "grid")
        assert set(config["metric"]) == {"name", "goal"}
        assert config.get("run_cap", 1) > 0
        for parameter in config["parameters"].values():
            kind = parameter.get("distribution")
            assert set(parameter) == KINDS[kind]
            if kind == "int_uniform":
                assert type(parameter["min"]) is type(parameter["max"]) is int
            elif kind is not None:
                assert type(parameter["min"]) is type(parameter["max"]) is float
            if kind is not None:
                assert parameter["min"] < parameter["max"]
        stop = config.get("early_terminate", {"type": "hyperband", "min_iter": 1})
        assert stop["type"] == "hyperband" and ("min_iter" in stop or {"max_iter", "s"} <= set(stop))


def test_the_file_passes_wandbs_own_schema(tmp_path):
    """wandb has none of its own: it is in the package ``sweeps`` (pip install --no-deps sweeps jsonschema)."""
    jsonschema = pytest.importorskip("jsonschema")
    package = importlib.util.find_spec("sweeps")
    if package is None:
        pytest.skip("W&B's package sweeps is not installed")
    folder = Path(package.submodule_search_locations[0])
    schema = json.loads((folder / "config" / "schema.json").read_text())
    for config in all_kinds(tmp_path):
        jsonschema.Draft7Validator(schema).validate(yaml.safe_load(yaml.safe_dump(config)))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft7Validator(schema).validate({**config, "trials": 3})


def test_hyperband_counts_scores_and_not_images(tmp_path):
    config = config_of(tmp_path, pruning={"rule": "hyperband", "min_images": 80})
    assert config["early_terminate"] == {"type": "hyperband", "min_iter": 2, "eta": 3}  # a score every 40 images


@pytest.mark.parametrize("every, scores", [("every_images: 20", 4), ("seed: 3", 1)])  # 1: the default is 50,000
def test_a_score_is_found_whatever_it_is_called(tmp_path, every, scores):
    quality = f"callbacks.quality={{_target_: callbacks.fid.FrechetScore, {every}}}"
    overrides = ["callbacks.score=null", quality]
    pruning, metric = {"rule": "hyperband", "min_images": 80}, "score/frechet_efficientnet_lite0"  # the class's default
    config = config_of(tmp_path, pruning=pruning, overrides=overrides, metric=metric)
    assert config["early_terminate"]["min_iter"] == scores


REFUSED = {
    "condition": (
        {
            "space": {
                "module._target_": {"choice": [DCGAN]},
                "seed": {"choice": [1], "when": {"module._target_": DCGAN}},
            }
        },
        "space.seed.when: W&B has no conditional parameters",
    ),
    "median": ({"pruning": {"rule": "median"}}, "pruning.rule=median: W&B has hyperband only"),
    "best value": ({"value": "best"}, "value=best: W&B takes the last value"),
    "text like a number": (
        {"space": {"name_": {"choice": ["1e-3"]}}},
        "writes 1e-3 as name_=1e-3, which is read as another",
    ),
    "null in a list": ({"space": {"seed": {"choice": [[None, 1]]}}}, "which is read as another value"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_wandb_cannot_do_is_refused_by_name(case, tmp_path, capsys):
    settings, message = REFUSED[case]
    path = sweep_file(tmp_path, **{"space": SPACE, **settings})
    with pytest.raises(ConfigError) as error:
        sweep_config(load_sweep(path))
    assert any(message in problem for problem in error.value.problems)
    for arguments in ([path, "--wandb-yaml"], [path, "engine=wandb"]):
        assert command.main(arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_nothing_is_registered_unless_tracking_is_online(tmp_path, capsys, monkeypatch):
    import wandb

    calls = []
    monkeypatch.setattr(wandb, "sweep", lambda config, project: calls.append((config, project)) or "abc123")
    path = sweep_file(tmp_path, SPACE, engine="wandb", tracking="offline")
    assert command.main([path]) == 0
    file = tmp_path / "runs" / "sweeps" / "search" / "wandb.yaml"
    said = capsys.readouterr().out
    assert not calls and f"wandb sweep --project mirage {file}" in said and "tracking=online" in said
    assert command.main([path, "tracking=online"]) == 0
    assert calls == [(yaml.safe_load(file.read_text()), "mirage")]
    assert "tracking=online" in calls[0][0]["command"]
    assert "wandb agent --forward-signals mirage/abc123" in capsys.readouterr().out


def agents_arguments(config, values):
    """Return the command line that W&B's agent makes of a sweep's command, by its own code."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    filled = create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    words = []
    for word in create_sweep_command(config["command"]):
        words += filled.get(word[2:-1], [word]) if word.startswith("${") else [word]
    assert words[:4] == ["${env}", "${interpreter}", "-m", "experiments.run"] or words[0] == "${env}"
    return words[words.index("experiments.run") + 1 :]


def test_the_experiment_itself_can_vary(tmp_path, capsys):
    space = {"experiment": {"choice": [str(TINY_YAML), "demo"]}, "seed": {"choice": [3]}}
    config = config_of(tmp_path, space, experiment=None)
    arguments = agents_arguments(config, {"experiment": "demo", "seed": 3})
    assert arguments[0] != "demo" and run.main(["--show", *arguments]) == 0
    assert "DCGAN" not in (shown := capsys.readouterr().out) and "seed: 3" in shown


@pytest.mark.slow
def test_what_the_agent_starts_has_its_id_and_the_right_values(tmp_path):
    config = config_of(tmp_path, tracking="offline", overrides=["schedule.total_images=16"])
    values = {
        "module.learning_rate": 1e-3,
        "module.beta1": 0.0,
        "schedule.batch_size": 8,
        "callbacks.samples": None,
        "data.val_fraction": 0.2,
        "schedule.resolution": [32, 32],
    }
    agent = {"WANDB_SWEEP_ID": "sweep123", "WANDB_RUN_ID": "agent456", "WANDB_MODE": "offline"}
    done = run_cli(*agents_arguments(config, values), **agent)
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "runs" / "search").iterdir()
    assert (directory / "wandb_run_id").read_text() == "agent456"
    (folder,) = directory.glob("wandb/offline-run-*")
    assert folder.name.endswith("-agent456")
    written = OmegaConf.to_container(OmegaConf.load(directory / "config.yaml"))
    assert written["module"]["learning_rate"] == 0.001 and written["module"]["beta1"] == 0.0
    assert written["schedule"]["batch_size"] == 8 and written["schedule"]["resolution"] == [32, 32]
    assert written["callbacks"]["samples"] is None and written["data"]["val_fraction"] == 0.2
    assert "agent456" in wandb_records(folder) and "score/frechet_random_conv" in wandb_records(folder)

    # Continued by hand later, without the agent, it stays the same W&B run.
    (directory / "status.json").write_text('{"state": "running"}')
    for path in (directory / "checkpoints").iterdir():
        path.unlink()
    done = run_cli(*agents_arguments(config, values), "resume=auto", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert {file.name for file in directory.glob("wandb/offline-run-*/*.wandb")} == {"run-agent456.wandb"}
    assert len(list(directory.glob("wandb/offline-run-*"))) == 2


def wandb_records(folder):
    (file,) = folder.glob("run-*.wandb")
    return file.read_bytes().decode("latin-1")
