"""SLURM: what is submitted, and that it saves, requeues itself and goes on, with a stand-in for SLURM's commands."""

import itertools
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT, assert_same_state, children, newest_checkpoint, run_cli, tiny

from experiments import cli, launch
from experiments.record.run_directory import read_status, write_status
from experiments.running import processes

# Starts the tasks that the script asks for, hands signals on to them, and ends as srun does: the first error ends all
# the others, and the highest code is its own.
SRUN = """#!{python}
import argparse, os, re, signal, subprocess, sys, time
parser = argparse.ArgumentParser()
for flag in ("--output", "--error", "--kill-on-bad-exit"):
    parser.add_argument(flag)
parser.add_argument("--unbuffered", action="store_true")
parser.add_argument("command", nargs=argparse.REMAINDER)
options = parser.parse_args()
header = open(os.environ["SCRIPT"]).read()
count = int(re.search("ntasks-per-node=(.*)", header)[1])
tasks = []
for rank in range(count):
    slurm = {{"SLURM_NTASKS": count, "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0}}
    slurm |= {{"SLURM_JOB_NAME": "job", "SLURM_NTASKS_PER_NODE": count, "SLURM_NODELIST": "127.0.0.1"}}
    output = open(options.error.replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", str(rank)), "a")
    env = {{**os.environ, **{{key: str(value) for key, value in slurm.items()}}}}
    tasks.append(subprocess.Popen(options.command, env=env, stdout=output, stderr=output))
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
codes = {{}}
while len(codes) < count:
    for rank, task in enumerate(tasks):
        if rank not in codes and task.poll() is not None:
            codes[rank] = task.returncode if task.returncode >= 0 else 128 - task.returncode
            if codes[rank] and options.kill_on_bad_exit == "1":
                [other.send_signal(signal.SIGTERM) for other in tasks if other.poll() is None]
    time.sleep(0.01)
sys.exit(max(codes.values()))
"""
SCONTROL = '#!/bin/sh\necho "$@" >> "$REQUEUED"\n'
SBATCH = '#!/bin/sh\ncp "$1" "$SUBMITTED"\necho "Submitted batch job 4711"\n'


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stand-ins for sbatch, srun and scontrol on the path."""
    for name, text in {"srun": SRUN.format(python=sys.executable), "scontrol": SCONTROL, "sbatch": SBATCH}.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SUBMITTED", str(tmp_path / "submitted.sh"))
    monkeypatch.setenv("REQUEUED", str(tmp_path / "requeued"))
    return tmp_path


def test_dry_run_prints_a_script_that_saves_and_requeues(tmp_path, capsys):
    options = ["--slurm", "partition=gpu", "nodes=2", "gpus_per_node=4", "time=90", "mem=64GB", "--dry-run"]
    assert launch.main([*tiny("dcgan", tmp_path, "seed=3"), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    for flag in ("nodes=2", "gpus-per-node=4", "ntasks-per-node=4", "cpus-per-task=8", "time=90", "partition=gpu"):
        assert f"#SBATCH --{flag}" in lines
    assert "#SBATCH --signal=USR1@300" in lines and "#SBATCH --requeue" in lines and "#SBATCH --mem=64GB" in lines
    (command,) = [line for line in lines if line.startswith("srun ")]
    assert "--kill-on-bad-exit=1" in command
    assert "-m experiments.run" in command and "seed=3" in command
    assert "trainer.num_nodes=2 trainer.devices=4 run_id=" in command and command.endswith("resume=auto")
    assert 'if [ "$code" -eq 85 ]; then scontrol requeue "$SLURM_JOB_ID"; fi' in lines
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--slurm", "partitio=gpu"], "--slurm partitio: sbatch has no such option; did you mean partition?"),
        (["--slurm", "gpu"], "--slurm gpu: an option is written option=value"),
        (["--slurm", "nodes=none"], "--slurm nodes=none: expected a whole number"),
        (["--slurm", "gpus_per_node=3"], "a batch of 8 cannot be shared equally by 3 processes"),
        (["module.lerning_rate=1", "--slurm"], "did you mean 'learning_rate'?"),
    ],
)
def test_what_cannot_run_is_refused_before_it_waits_in_a_queue(tmp_path, capsys, arguments, message):
    assert launch.main([*tiny("dcgan", tmp_path), *arguments, "--dry-run"]) == cli.EXIT_BAD_CONFIG
    assert message in capsys.readouterr().err


def test_machine_without_slurm_is_told_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch.main([*tiny("dcgan", tmp_path), "--slurm"]) == cli.EXIT_BAD_CONFIG
    assert "there is no sbatch on this machine; --dry-run prints the script" in capsys.readouterr().err


@pytest.mark.parametrize("state, code", [("preempted", 0), ("diverged", 0), ("running", 3)])
def test_a_later_process_leaves_the_last_word_to_the_first(tmp_path, monkeypatch, state, code):
    """Once the first has said how the run ended; if it says nothing, the error is this process's own."""
    clock = itertools.count(step=20.0)
    monkeypatch.setattr(processes.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(processes.time, "sleep", lambda seconds: None)
    before = signal.getsignal(signal.SIGTERM)

    def leave(code):
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    write_status(tmp_path, state)
    try:
        with pytest.raises(SystemExit) as end:
            processes.leave_to_the_first_process(tmp_path)
            raise SystemExit(3)
        assert end.value.code == code
        assert code == 0 or signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_submitted_job_is_warned_requeued_and_ends_with_the_same_weights(slurm, capsys):
    overrides = ["schedule.total_images=4000", "callbacks.checkpoint.every_images=800"]
    folder = slurm / "output"
    arguments = [*tiny("dcgan", slurm, *overrides), "--folder", str(folder), "--slurm", "gpus_per_node=2"]
    assert launch.main(arguments) == 0
    assert "submitted job 4711" in capsys.readouterr().out
    script = slurm / "submitted.sh"

    def job():
        environment = {**os.environ, "SLURM_JOB_ID": "4711", "SCRIPT": str(script)}
        return subprocess.Popen(["bash", str(script)], cwd=ROOT, env=environment)

    first = job()
    try:
        deadline = time.monotonic() + 240
        while not list(slurm.glob("runs/dcgan/*/checkpoints/images_*.ckpt")):
            assert first.poll() is None and time.monotonic() < deadline, output_of(folder)
            time.sleep(0.05)
        (srun,) = children(first.pid)
        os.kill(srun, signal.SIGUSR1)
        assert first.wait(timeout=120) == cli.EXIT_PREEMPTED, output_of(folder)
    finally:
        first.kill()
    (directory,) = (slurm / "runs" / "dcgan").iterdir()
    assert read_status(directory)["state"] == "preempted"
    assert (slurm / "requeued").read_text() == "requeue 4711\n"
    assert job().wait(timeout=300) == 0, output_of(folder)
    assert [path.name for path in (slurm / "runs" / "dcgan").iterdir()] == [directory.name]
    assert read_status(directory)["state"] == "finished"
    assert (slurm / "requeued").read_text() == "requeue 4711\n"
    whole = run_cli(*tiny("dcgan", slurm / "whole", *overrides, "trainer.devices=2"))
    assert whole.returncode == 0, whole.stderr
    (other,) = (slurm / "whole" / "runs" / "dcgan").iterdir()
    assert_same_state(newest_checkpoint(directory), newest_checkpoint(other))


def output_of(folder):
    return "\n".join(path.read_text() for path in folder.glob("*_log.*"))


@pytest.mark.slow
def test_two_machines_train_are_killed_and_resume(tmp_path):
    """Two torchrun agents on one machine, as on two: they find each other, share a run, and go on after a kill."""
    overrides = ["trainer.num_nodes=2", "schedule.total_images=4000", "callbacks.checkpoint.every_images=160"]

    def machines(folder):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        agents = []
        for node in (0, 1):
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}"]
            torchrun += ["--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
            command = [*torchrun, "-m", "experiments.run", *tiny("dcgan", folder, *overrides, "resume=auto")]
            agents.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True))
        return agents

    def finish(agents):
        for agent in agents:
            _, errors = agent.communicate(timeout=240)
            assert agent.returncode == 0, errors.decode()

    agents = machines(tmp_path)
    deadline = time.monotonic() + 240
    while len(list(tmp_path.glob("runs/dcgan/*/checkpoints/images_*.ckpt"))) < 2:
        assert time.monotonic() < deadline and agents[0].poll() is None, agents[0].stderr.read().decode()
        time.sleep(0.01)
    for agent in agents:
        os.killpg(agent.pid, signal.SIGKILL)
    for command in Path("/proc").glob("[0-9]*/cmdline"):  # torchrun's workers have sessions of their own
        with suppress(OSError):
            if f"runs_dir={tmp_path}".encode() in command.read_bytes():
                os.kill(int(command.parent.name), signal.SIGKILL)
    for agent in agents:
        agent.communicate()
    (directory,) = (tmp_path / "runs" / "dcgan").iterdir()
    assert read_status(directory)["state"] == "running"
    finish(machines(tmp_path))
    assert [path.name for path in (tmp_path / "runs" / "dcgan").iterdir()] == [directory.name]
    finish(machines(tmp_path / "whole"))
    (whole,) = (tmp_path / "whole" / "runs" / "dcgan").iterdir()
    assert_same_state(newest_checkpoint(directory), newest_checkpoint(whole))
