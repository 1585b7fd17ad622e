"""A whole sweep through the command line: two families, crashes, kills, a dead sweep, and its best run again."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT, TINY_YAML, run_cli
from omegaconf import OmegaConf

from experiments.record.run_directory import read_status
from experiments.record.tracking import read_rows

METRIC = "score/frechet_random_conv"


def search(tmp_path):
    """Write a sweep of twelve trials over DCGAN and WGAN-GP; a DCGAN of 10**11 latents cannot be allocated."""
    (tmp_path / "wgan_gp.yaml").write_text(
        f"extends: {TINY_YAML}\nmodule: {{_target_: lightning_modules.wgan_gp.WGANGP, image_size: [32, 32], "
        "generator_channels: 4, discriminator_channels: 4}\n"
    )
    dcgan, wgan_gp = str(TINY_YAML), str(tmp_path / "wgan_gp.yaml")
    content = {
        "metric": METRIC,
        "method": "tpe",
        "trials": 12,
        "parallel": 2,
        "seed": 7,  # draws some that cannot be allocated
        "tracking": "disabled",
        "runs_dir": str(tmp_path / "runs"),
        "overrides": ["schedule.total_images=160"],
        "space": {
            "experiment": {"choice": [dcgan, wgan_gp]},
            "module.learning_rate": {"log": [1e-4, 1e-2]},
            "module.latent_dim": {"choice": [8, 16, 10**11], "when": {"experiment": dcgan}},
            "module.critic_steps": {"choice": [1, 2], "when": {"experiment": wgan_gp}},
        },
    }
    path = tmp_path / "families.yaml"
    path.write_text(json.dumps(content))
    return path, tmp_path / "runs" / "sweeps" / "families"


def start(path):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", str(path)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def table(folder):
    path = folder / "trials.csv"
    return list(csv.DictReader(path.open())) if path.exists() else []


def runs_of(folder):
    """Return every run directory by its trial."""
    return {path.parent: path.parent.parent.name for path in folder.glob("trials/*/*/config.yaml")}


def training(folder):
    """Return the runs that are training now and have a checkpoint, with their processes."""
    found = {}
    for run in runs_of(folder):
        status = read_status(run)
        if status.get("state") == "running" and is_alive(status["pid"]) and list(run.glob("checkpoints/images_*.ckpt")):
            found[run] = status["pid"]
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def processes_of(folder):
    """Return every process whose command line names the sweep's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return [pid for pid in found if is_alive(pid)]


def wait_for(condition, sweep, seconds=300):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert sweep.poll() is None, sweep.stderr.read()
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return value


def assert_nothing_trains(folder):
    deadline = time.monotonic() + 10
    while processes_of(folder):
        assert time.monotonic() < deadline, "trials went on without their sweep"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_sweep_goes_on_to_exactly_its_plan_and_its_best_run_can_be_had_again(tmp_path):
    path, folder = search(tmp_path)
    sweep = start(path)
    try:
        # From outside: one training process is killed.
        victim, pid = next(iter(wait_for(lambda: training(folder), sweep).items()))
        os.kill(pid, signal.SIGKILL)
        shot = int(victim.parent.name.removeprefix("trial_"))
        wait_for(lambda: any(row["number"] == str(shot) and row["state"] == "fail" for row in table(folder)), sweep)

        # The sweep itself, and only it, while a trial trains.
        before = wait_for(lambda: len(table(folder)) >= 5 and training(folder), sweep)
        sweep.kill()
        sweep.wait()
    finally:
        sweep.kill()
        sweep.stderr.close()
    assert_nothing_trains(folder)
    ended = {row["number"]: row for row in table(folder) if row["state"] != "running"}
    statuses = [run / "status.json" for run in runs_of(folder) if run not in before]  # the victim may have none yet
    finished_at = {status.parent: status.stat().st_mtime_ns for status in statuses if status.exists()}

    done = subprocess.run(
        [sys.executable, "-m", "experiments.sweep", str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = table(folder)
    assert [row["number"] for row in rows] == [str(number) for number in range(12)]
    for row in rows:
        expected = "fail" if row["number"] == str(shot) or row["module.latent_dim"] == str(10**11) else "complete"
        assert row["state"] == expected, row
        assert (row["module.critic_steps"] == "") == row["experiment"].endswith("tiny.yaml")
    assert "killed by SIGKILL" in rows[shot]["reason"]
    crashed = [row for row in rows if row["module.latent_dim"] == str(10**11)]
    assert crashed and all(row["reason"].startswith("out of memory") for row in crashed)
    assert len({row["experiment"] for row in rows}) == 2

    # None twice: what had ended was left as it was, and what was cut off went on in its own directory.
    assert all(rows[int(number)] == row for number, row in ended.items())
    names = list(runs_of(folder).values())
    assert len(names) == len(set(names))
    for run, moment in finished_at.items():
        if str(int(run.parent.name.removeprefix("trial_"))) in ended:
            assert (run / "status.json").stat().st_mtime_ns == moment
    assert any(f"{run.parent.name} goes on" in done.stdout for run in before)

    best = min((row for row in rows if row["state"] == "complete"), key=lambda row: float(row["value"]))
    assert OmegaConf.load(folder / "best.yaml").name == "families_best"
    again = run_cli(str(folder / "best.yaml"))
    assert again.returncode == 0, again.stderr
    (run,) = (tmp_path / "runs" / "families_best").iterdir()
    scores = [row[METRIC] for row in read_rows(run / "metrics.jsonl") if METRIC in row]
    assert scores[-1] == float(best["value"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_processes_of_a_trial_end_with_the_sweep_and_go_on_with_it(tmp_path):
    content = {
        "experiment": str(TINY_YAML),
        "metric": METRIC,
        "method": "grid",
        "devices_per_trial": 2,
        "tracking": "disabled",
        "runs_dir": str(tmp_path / "runs"),
        "overrides": ["schedule.total_images=960"],
        "space": {"module.learning_rate": {"choice": [2e-4]}},
    }
    path, folder = tmp_path / "two.yaml", tmp_path / "runs" / "sweeps" / "two"
    path.write_text(json.dumps(content))
    sweep = start(path)
    wait_for(lambda: training(folder), sweep)
    assert len(processes_of(folder)) >= 3  # a keeper and two that train
    sweep.kill()
    sweep.wait()
    sweep.stderr.close()
    assert_nothing_trains(folder)
    command = [sys.executable, "-m", "experiments.sweep", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "trial_0000 goes on" in done.stdout
    (row,) = table(folder)
    assert row["state"] == "complete" and row["images_seen"] == "960" and len(runs_of(folder)) == 1
