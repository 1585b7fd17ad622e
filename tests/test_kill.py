"""SIGKILL at random moments: whatever a run was doing, resume=auto continues it to the same weights."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from conftest import ROOT, assert_same_state, newest_checkpoint, run_cli, tiny, tiny_config

from experiments.record.run_directory import read_status
from experiments.record.tracking import read_rows
from experiments.running.training import train

# Each with the clock before which it is killed.
LONGER = {
    "dcgan": (["schedule.total_images=1200"], 800),
    "wgan_gp": (["schedule.total_images=2400"], 2000),
    "progressive": (["schedule.fade_images=400", "schedule.stable_images=[600,400,400]"], 2000),
}
SLOWER = ["callbacks.losses.every_images=8", "callbacks.checkpoint.every_images=24"]


@pytest.mark.parametrize(
    "family, devices, kills",
    [
        ("dcgan", 1, 1),
        pytest.param("dcgan", 1, 4, marks=pytest.mark.slow),
        pytest.param("progressive", 1, 4, marks=pytest.mark.slow),
        pytest.param("wgan_gp", 1, 8, marks=pytest.mark.slow),
        pytest.param("dcgan", 2, 2, marks=pytest.mark.slow),
        pytest.param("wgan_gp", 2, 2, marks=pytest.mark.slow),
        pytest.param("progressive", 2, 2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(1500)
def test_killed_run_resumes_to_the_same_weights(tmp_path, family, devices, kills):
    longer, before = LONGER[family]
    overrides = [*SLOWER, *longer, "callbacks.checkpoint.keep=2", f"trainer.devices={devices}"]
    dice = random.Random(f"{family}{devices}")
    targets = sorted(dice.sample(range(24, before), kills))
    runs = tmp_path / "killed" / "runs" / family
    for i, target in enumerate(targets):
        # Every other kill waits for a checkpoint that is being written.
        kill_at(tiny(family, tmp_path / "killed", *overrides, "resume=auto"), runs, target, i % 2 == 1, dice)
        (directory,) = runs.iterdir()
        assert read_status(directory)["state"] == "running"
    done = run_cli(*tiny(family, tmp_path / "killed", *overrides, "resume=auto"))
    assert done.returncode == 0, done.stderr
    (directory,) = runs.iterdir()
    assert read_status(directory)["state"] == "finished"
    if devices == 1:
        whole = train(tiny_config(family, tmp_path / "whole", *overrides))
    else:
        done = run_cli(*tiny(family, tmp_path / "whole", *overrides))
        assert done.returncode == 0, done.stderr
        (whole,) = (tmp_path / "whole" / "runs" / family).iterdir()
    assert_same_state(newest_checkpoint(directory), newest_checkpoint(whole))
    assert clocks(directory) == clocks(whole)
    assert not list(directory.rglob("*.tmp"))


def clocks(directory):
    return [row["images_seen"] for row in read_rows(directory / "metrics.jsonl")]


def kill_at(arguments, runs, target, while_writing, dice):
    """Start a run, wait until its record has reached a clock, and kill its whole process group."""
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 240
        while reached(runs) < target:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline, "the run did not get to where it was to be killed"
            time.sleep(0.01)  # reading the record takes the run's processor
        if while_writing:
            while not list(runs.glob("*/checkpoints/.*.tmp")) and process.poll() is None:
                pass
        else:
            time.sleep(dice.random() * 0.05)
        assert process.poll() is None, "the run ended before it was killed"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


def reached(runs):
    return max((row["images_seen"] for path in runs.glob("*/metrics.jsonl") for row in read_rows(path)), default=-1)
