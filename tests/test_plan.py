"""The plan: stages, memory and time of a run, measured before it."""

import pytest
import torch
from conftest import tiny, tiny_config

from experiments import run
from experiments.configuration.errors import ConfigError
from experiments.configuration.experiment import experiment_of
from experiments.running import plan as plans
from experiments.running.bare_step import bare_step
from experiments.running.parts import build
from experiments.running.plan import GIB, duration, extrapolate, seconds_of, stages, table


def parts_of(family, tmp_path, *overrides):
    return build(experiment_of(tiny_config(family, tmp_path, *overrides)))


def test_plan_of_a_growing_run(tmp_path, capsys):
    assert run.main([*tiny("progressive", tmp_path), "--plan", "budget=1h"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("progressive: 1 x ") and "32-true" in lines[0]
    assert [line.split()[1] for line in lines[2:5]] == ["5x4", "10x8", "20x16"]
    assert [line.split()[2] for line in lines[2:5]] == ["24", "40", "32"]
    assert [line.split()[3] for line in lines[2:5]] == ["8", "8", "4"]
    trained = [int(line.split()[4].replace(",", "")) for line in lines[2:5]]
    assert trained == sorted(trained) and trained[0] > 0
    assert lines[5].startswith("in all ") and "more than" not in lines[5]
    assert any(line.startswith("with module.checkpoint_from=1: ") for line in lines)
    assert any("image cache" in line and "44 images" in line for line in lines)
    assert not (tmp_path / "runs").exists()


def test_plan_of_a_run_that_does_not_grow(tmp_path, capsys):
    assert run.main([*tiny("wgan_gp", tmp_path), "--plan", "budget=5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:4] == ["0", "32x32", "96", "8"]


def test_stages_count_images_and_share_batches(tmp_path):
    rows = stages(parts_of("progressive", tmp_path), devices=2)
    assert [(row.images, row.batch) for row in rows] == [(24, 4), (40, 4), (32, 2)]
    with pytest.raises(ConfigError, match=r"a batch of 4 cannot be shared equally by 3 processes .*use 3 or 6"):
        stages(parts_of("progressive", tmp_path), devices=3)


def measured(row, **found):
    row.found = {"work": 10, **found}
    return row


def test_what_was_not_measured_is_extrapolated_by_its_work_and_marked(tmp_path):
    rows = stages(parts_of("progressive", tmp_path), devices=1)
    measured(rows[0], seconds=0.5)
    measured(rows[1], work=30)
    measured(rows[2], work=90, seconds=4.0)
    extrapolate(rows)
    assert rows[1].found["seconds"] == pytest.approx(1.5)
    assert rows[1].found["note"] == "time extrapolated"
    assert "note" not in rows[0].found


def test_stage_that_does_not_fit_is_named_with_the_largest_batch(tmp_path):
    rows = stages(parts_of("progressive", tmp_path), devices=1)
    for row in rows:
        measured(row, seconds=0.1, parameters=7, fixed=2.0 * GIB, per_image=1.0 * GIB)
    lines = table(rows, available=7.5 * GIB)
    assert "DOES NOT FIT; largest batch per device: 5" in lines[1] and "10.00 GiB" in lines[1]
    assert "FIT" not in lines[3]


def test_measured_child_that_dies_is_no_measurement(tmp_path, monkeypatch):
    rows = stages(parts_of("progressive", tmp_path), devices=1)
    config = tiny_config("progressive", tmp_path)
    config["module"]["channels"] = [0, 0, 0]  # refused when the child builds it
    found = plans._in_child(config, rows[0], False, 1, 1e12, 5.0)
    assert "seconds" not in found and found["note"].startswith("failed")


@pytest.mark.parametrize("text, seconds", [("90", 90), ("90s", 90), ("5m", 300), ("1.5h", 5400)])
def test_budgets(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "soon", "-1", "0s", "nan", "infh"])
def test_impossible_budgets_are_refused(text):
    with pytest.raises(ConfigError, match="expected a time"):
        seconds_of(text)


def test_durations():
    assert [duration(s) for s in (3, 120, 7200, 3 * 86400)] == ["3 s", "2.0 min", "2.0 h", "3.0 days"]


@pytest.mark.parametrize("family", ["dcgan", "wgan_gp", "wgan", "kidney_gan", "progressive", "progressive_r1"])
def test_bare_step_trains_both_networks_and_the_average(tmp_path, family):
    module = parts_of(family, tmp_path).module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    bare_step(module, module.schedule.at(0), 4, "32-true")()
    changed = {
        name.split(".")[0] for name, value in module.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {"generator", "generator_ema"} < changed and len(changed) == 3
