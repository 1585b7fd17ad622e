"""Several processes: equal weights on all of them, the result of one process with the whole batch, clear refusals."""

import json
import os
import subprocess
import sys

import ddp_script
import pytest
import torch
from conftest import ROOT, assert_same_state, newest_checkpoint, run_cli, tiny, tiny_config

from experiments.record.tracking import read_rows
from experiments.running.training import train

SCRIPT = ROOT / "tests" / "ddp_script.py"


def run_script(tmp_path, task):
    """Run tests/ddp_script.py, which starts its second process as any user's script does."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), task, "2", str(tmp_path)],
        cwd=ROOT,
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done


def test_two_processes_equal_one_with_the_whole_batch(tmp_path):
    """With losses that are means and noise that is given, the number of processes does not matter."""
    ddp_script.main("given_noise", 1, tmp_path)
    done = run_script(tmp_path, "given_noise")
    assert done.returncode == 0, done.stderr
    results = {n: torch.load(tmp_path / f"given_noise-{n}.pt", weights_only=True) for n in (1, 2)}
    assert results[1]["images_seen"] == results[2]["images_seen"] == 80
    moved = 0.0
    for key, value in results[1]["state_dict"].items():
        torch.testing.assert_close(results[2]["state_dict"][key], value, rtol=1e-4, atol=1e-5)
        moved = max(moved, float((value - results[1]["initial"][key]).abs().max()))
    assert moved > 1e-3  # it did train


@pytest.mark.slow
def test_processes_with_different_weights_are_stopped(tmp_path):
    done = run_script(tmp_path, "disagree")
    assert done.returncode != 0
    assert "the processes hold different weights at images_seen=16" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dcgan", "wgan_gp", "wgan", "kidney_gan", "progressive", "progressive_r1"])
def test_every_family_keeps_its_processes_together(tmp_path, family):
    """The tiny run compares the weights of its processes after every batch, and ends with an error if they differ."""
    done = run_cli(*tiny(family, tmp_path, "trainer.devices=2"))
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "runs" / family).iterdir()
    assert [row["images_seen"] for row in read_rows(directory / "scores.jsonl")] == [0, 40, 80, 96]
    assert read_rows(directory / "scores.jsonl")[0]["generated"] == 8
    assert read_rows(directory / "scores.jsonl")[0]["real"] == 40


@pytest.mark.slow
def test_score_does_not_depend_on_the_number_of_processes(tmp_path):
    short = ["schedule.total_images=8"]
    alone = train(tiny_config("dcgan", tmp_path / "alone", *short))
    done = run_cli(*tiny("dcgan", tmp_path / "two", "trainer.devices=2", *short))
    assert done.returncode == 0, done.stderr
    (two,) = (tmp_path / "two" / "runs" / "dcgan").iterdir()
    first = [read_rows(directory / "scores.jsonl")[0]["value"] for directory in (alone, two)]
    assert first[0] == pytest.approx(first[1], rel=1e-6)


@pytest.mark.slow
def test_torchrun_makes_one_run_and_equals_lightnings_own_launch(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "experiments.run", *tiny("dcgan", tmp_path / "a", "trainer.devices=2")],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (a,) = (tmp_path / "a" / "runs" / "dcgan").iterdir()
    assert run_cli(*tiny("dcgan", tmp_path / "b", "trainer.devices=2")).returncode == 0
    (b,) = (tmp_path / "b" / "runs" / "dcgan").iterdir()
    assert_same_state(newest_checkpoint(a), newest_checkpoint(b))
    assert json.loads((a / "status.json").read_text())["state"] == "finished"


@pytest.mark.slow
def test_torchrun_with_another_number_of_processes_is_refused_in_one_sentence(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "experiments.run", *tiny("dcgan", tmp_path)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    assert "trainer.devices x trainer.num_nodes = 1, but TorchElastic has started 2 processes" in done.stderr
    assert not (tmp_path / "runs").exists()
