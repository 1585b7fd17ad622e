"""A signal ends a run after its step with a checkpoint and exit code 85; the resumed run ends with the same weights."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, assert_same_state, newest_checkpoint, run_cli, tiny, tiny_config
from kill_harness import KILLS, clocks, kill_and_resume, reached

from callbacks.preemption import Preempted
from experiments import cli
from experiments.record.run_directory import read_status
from experiments.running.training import train

# One per moment; both numbers of processes, all three signals.
SHOWN = [0, 3, 11, 12, 18, 23]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("number", SHOWN, ids=lambda n: "-".join(map(str, KILLS[n].values())).replace(" ", "_"))
def test_killed_run_resumes_to_the_same_weights(number, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "kills"  # the uninterrupted runs are shared
    folder.mkdir(exist_ok=True)
    assert kill_and_resume(folder, number)["equal"]


def send_at(clock, number):
    """Return a callback that sends a signal to its own process in the batch that ends at a clock."""
    import lightning as L

    class Send(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if pl_module.images_seen + 8 == clock:
                signal.raise_signal(number)

    return Send()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tiny_config("dcgan", tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_run_saves_what_it_has_done_and_goes_on_to_the_same_weights(
    whole, tmp_path, with_callback, monkeypatch, number
):
    handlers = {n: signal.getsignal(n) for n in signal.Signals if n not in (signal.SIGKILL, signal.SIGSTOP)}
    seldom = ["callbacks.checkpoint.every_images=1000"]
    with_callback(send_at(48, number))
    with pytest.raises(Preempted, match="stopped by a signal at images_seen=48; resume="):
        train(tiny_config("dcgan", tmp_path, *seldom))
    assert {n: signal.getsignal(n) for n in handlers} == handlers
    (directory,) = (tmp_path / "runs" / "dcgan").iterdir()
    assert read_status(directory) == {"state": "preempted", "images_seen": 48}
    assert newest_checkpoint(directory).name == "images_000000000048.ckpt"
    monkeypatch.undo()
    assert train(tiny_config("dcgan", tmp_path, *seldom, "resume=auto")) == directory
    assert_same_state(newest_checkpoint(directory), newest_checkpoint(whole))
    assert clocks(directory / "metrics.jsonl") == clocks(whole / "metrics.jsonl")


def test_run_without_checkpoints_does_not_say_that_it_has_saved_one(tmp_path, with_callback, caplog):
    with_callback(send_at(48, signal.SIGTERM))
    with pytest.raises(Preempted) as stopped:
        train(tiny_config("dcgan", tmp_path, "callbacks.checkpoint=null"))
    assert "nothing was saved" in str(stopped.value) and "goes on" not in str(stopped.value)
    assert "stopping at images_seen=48 without a checkpoint" in caplog.text
    assert "after saving" not in caplog.text


def test_signal_in_the_last_batch_leaves_a_finished_run(tmp_path, with_callback):
    with_callback(send_at(96, signal.SIGTERM))
    directory = train(tiny_config("dcgan", tmp_path))
    assert read_status(directory)["state"] == "finished"


def test_wandb_is_told_that_the_run_will_go_on(tmp_path, with_callback, monkeypatch):
    from experiments.record.tracking import WandbMirror

    told = []
    close = WandbMirror.close
    monkeypatch.setattr(WandbMirror, "close", lambda self, **how: (told.append(how), close(self, **how))[1])
    with_callback(send_at(48, signal.SIGTERM))
    with pytest.raises(Preempted):
        train(tiny_config("dcgan", tmp_path, "tracking=offline"))
    assert told == [{"failed": True, "preempted": True}]


def test_second_ctrl_c_ends_at_once(tmp_path, with_callback):
    with_callback(send_at(48, signal.SIGINT))
    with_callback(send_at(48, signal.SIGINT))
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        train(tiny_config("dcgan", tmp_path))
    (directory,) = (tmp_path / "runs" / "dcgan").iterdir()
    assert read_status(directory)["state"] == "running"  # as after a kill


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_signal_before_training_ends_with_the_exit_code_for_it(tmp_path, number):
    arguments = tiny("dcgan", tmp_path, "data.count=200000")
    process = subprocess.Popen([sys.executable, "-m", "experiments.run", *arguments], cwd=ROOT, stderr=subprocess.PIPE)
    try:
        while not list((tmp_path / "runs").glob("*/*/log.txt")):  # the images are being drawn
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.05)
        process.send_signal(number)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == cli.EXIT_PREEMPTED
    assert reached(tmp_path / "runs") == -1


@pytest.mark.parametrize(
    ("rank", "code"), [({}, 85), ({"RANK": "0"}, 85), ({"RANK": "1"}, 0), ({"SLURM_PROCID": "3"}, 0)]
)
def test_signal_while_torch_is_imported_ends_with_the_exit_code_for_it(tmp_path, rank, code):
    half = tmp_path / "packages" / "torch"
    half.mkdir(parents=True)
    (half / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    process = subprocess.run(
        [sys.executable, "-m", "experiments.run", *tiny("dcgan", tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(half.parent), **rank},
        capture_output=True,
        text=True,
    )
    assert process.returncode == code, process.stderr
    assert process.stderr == ""


def test_reading_processes_live_through_a_signal_to_all(tmp_path):
    arguments = tiny("dcgan", tmp_path, "data.num_workers=2", "schedule.total_images=1000000", "resume=auto")
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *arguments], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        while not list((tmp_path / "runs").glob("*/*/checkpoints/images_*.ckpt")):
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == cli.EXIT_PREEMPTED, errors.decode()
    (directory,) = (tmp_path / "runs" / "dcgan").iterdir()
    assert f"resume={directory} goes on" in errors.decode()
    status = read_status(directory)
    assert status["state"] == "preempted"
    assert newest_checkpoint(directory).name == f"images_{status['images_seen']:012d}.ckpt"


@pytest.mark.slow
def test_signal_to_torchrun_saves_on_all_processes(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = tiny("dcgan", tmp_path, "trainer.devices=2", "schedule.total_images=1000000")
    process = subprocess.Popen([*torchrun, "-m", "experiments.run", *arguments], cwd=ROOT, stderr=subprocess.PIPE)
    try:
        while not list((tmp_path / "runs").glob("*/*/checkpoints/images_*.ckpt")):
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=90)
    finally:
        process.kill()
    (directory,) = (tmp_path / "runs" / "dcgan").iterdir()
    assert read_status(directory)["state"] == "preempted"
    short = ["trainer.devices=2", f"schedule.total_images={read_status(directory)['images_seen'] + 16}"]
    done = run_cli(*tiny("dcgan", tmp_path, *short, "resume=auto", "allow_changes=true"))
    assert done.returncode == 0, done.stderr
