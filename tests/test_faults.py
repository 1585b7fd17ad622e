"""Faults for real: a full disk, damaged files, dead processes, no memory, NaN. Each has its message."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    TINY_KIDNEY,
    assert_same_state,
    children,
    cut_in_half,
    flip_a_bit,
    newest_checkpoint,
    tiny,
    tiny_config,
    write_kidney,
)
from kill_harness import clocks, ranks, reached
from PIL import Image

from callbacks.checkpoint import is_intact
from callbacks.divergence import DivergedError
from datamodules.phantoms import Phantoms
from datamodules.records import versions
from experiments import cli, run
from experiments.configuration.errors import ConfigError
from experiments.configuration.experiment import experiment_of
from experiments.record.run_directory import read_status
from experiments.record.tracking import read_rows
from experiments.running import training
from experiments.running.faults import FaultError, explain
from experiments.running.training import train
from lightning_modules.schedules import ConstantSchedule

FOREVER = "schedule.total_images=1000000"


def started(*arguments, **environment):
    """Start the command line in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for_clock(process, runs, clock):
    deadline = time.monotonic() + 120
    while reached(runs) < clock:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Disk -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting a small file system needs root ({done.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class Disk(training.L.Callback):
    """Fills the disk at one clock and frees it at another."""

    def __init__(self, folder, full_at, free_at):
        self.file, self.full_at, self.free_at = folder / "filler", full_at, free_at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.images_seen == self.full_at:
            with self.file.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(512))
                except OSError:
                    pass
        if pl_module.images_seen == self.free_at:
            self.file.unlink()


@pytest.mark.parametrize("tracking", ["disabled", "offline"])
def test_full_disk_costs_checkpoints_and_pictures_but_not_the_run(
    tmp_path, small_disk, with_callback, caplog, tracking
):
    whole = train(tiny_config("dcgan", tmp_path))
    with_callback(Disk(small_disk, 40, 72))
    few = ["callbacks.checkpoint.keep=2", "callbacks.samples.every_images=16", f"tracking={tracking}"]
    directory = train(tiny_config("dcgan", small_disk, *few, "callbacks.losses.every_images=8"))
    assert read_status(directory)["state"] == "finished"
    assert "No space left on device" in caplog.text
    for what in ("images_000000000048.ckpt", "samples/images_000000000048.png"):
        assert f"{what} (" in caplog.text
    assert "training goes on" in caplog.text
    assert_same_state(newest_checkpoint(directory), newest_checkpoint(whole))
    assert [row["images_seen"] for row in read_rows(directory / "scores.jsonl")] == [0, 40, 80, 96]
    assert set(range(8, 97, 8)) <= set(clocks(directory / "metrics.jsonl"))  # written late, not lost
    assert not list(directory.rglob("*.tmp"))


def test_disk_that_stays_full_leaves_the_last_checkpoint_and_says_so(tmp_path, small_disk, with_callback, monkeypatch):
    with_callback(Disk(small_disk, 40, None))
    with pytest.raises(FaultError, match=r"the last checkpoint could not be written .*resume=auto does the end again"):
        train(tiny_config("dcgan", small_disk, "callbacks.checkpoint.keep=1"))
    (directory,) = (small_disk / "runs" / "dcgan").iterdir()
    (left,) = (directory / "checkpoints").glob("images_*.ckpt")
    assert left.name == "images_000000000040.ckpt" and is_intact(left)
    monkeypatch.undo()
    (small_disk / "filler").unlink()
    assert train(tiny_config("dcgan", small_disk, "callbacks.checkpoint.keep=1", "resume=auto")) == directory
    assert_same_state(newest_checkpoint(directory), newest_checkpoint(train(tiny_config("dcgan", tmp_path))))


# Damaged files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [flip_a_bit, cut_in_half])
def test_damaged_newest_checkpoint_costs_one_interval(tmp_path, damage, caplog):
    directory = train(tiny_config("dcgan", tmp_path))
    kept = tmp_path / "kept.ckpt"
    kept.write_bytes(newest_checkpoint(directory).read_bytes())
    (directory / "status.json").write_text('{"state": "running"}')
    damage(newest_checkpoint(directory))
    assert train(tiny_config("dcgan", tmp_path, "resume=auto")) == directory
    assert "images_000000000096.ckpt is damaged; taking the one before it" in caplog.text
    assert_same_state(newest_checkpoint(directory), kept)


@pytest.fixture
def stopped_run(tmp_path):
    """A run on files that stands at 48 of 96 images; returns the command that goes on with it, and its files."""
    root = write_kidney(tmp_path / "data", suffix=".png")
    arguments = [str(TINY_KIDNEY), f"data.root={root}", f"runs_dir={tmp_path / 'runs'}"]
    assert run.main(arguments) == 0
    (directory,) = (tmp_path / "runs").glob("*/*")
    checkpoint = directory / "checkpoints" / "images_000000000048.ckpt"
    return [*arguments, f"resume={checkpoint}"], sorted(root.rglob("*.png"))


def test_missing_data_file_is_noticed_on_resume(stopped_run, capsys):
    arguments, files = stopped_run
    files[0].unlink()
    assert run.main(arguments) == cli.EXIT_BAD_CONFIG
    assert "the data is not what the checkpoint was trained on (images: was" in capsys.readouterr().err


def test_changed_data_file_is_noticed_on_resume(stopped_run, capsys):
    arguments, files = stopped_run
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(files[0])
    assert run.main(arguments) == cli.EXIT_BAD_CONFIG
    assert "fingerprint: was" in capsys.readouterr().err


def test_files_that_are_read_by_other_rules_are_noticed_on_resume(stopped_run, capsys, monkeypatch):
    arguments, _ = stopped_run
    before = versions.CHANGES
    png = (*before["png"], versions.Change("sixteen bits are kept"))
    monkeypatch.setattr(versions, "CHANGES", {**before, "png": png})
    assert run.main(arguments) == cli.EXIT_BAD_CONFIG
    assert f"png {len(png) + 1}: sixteen bits are kept" in capsys.readouterr().err.partition("by other rules since")[2]
    jpeg = (*before["jpeg"], versions.Change("of which there is none"))
    monkeypatch.setattr(versions, "CHANGES", {**before, "jpeg": jpeg})
    assert run.main(arguments) == 0


def test_flipped_bit_in_the_cache_is_noticed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MIRAGE_CACHE", str(tmp_path / "cache"))
    assert run.main(tiny("dcgan", tmp_path)) == 0
    (images,) = (tmp_path / "cache" / "images").glob("*/images.bin")
    flip_a_bit(images)
    capsys.readouterr()
    assert run.main(tiny("dcgan", tmp_path)) == cli.EXIT_BAD_CONFIG
    message = capsys.readouterr().err
    assert f"the cache {images.parent} is damaged (image " in message and "delete the folder" in message


# Processes ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lightnings_observer_does_not_kill_the_first_process():
    code = """
import subprocess, sys, time
from lightning.fabric.strategies.launchers.subprocess_script import _launch_process_observer
from experiments.running.processes import dismiss_the_observer
_launch_process_observer([subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])])
if sys.argv[1] == "dismissed":
    dismiss_the_observer()
time.sleep(8)
"""
    codes = [subprocess.run([sys.executable, "-c", code, how], cwd=ROOT).returncode for how in ("dismissed", "on duty")]
    assert codes == [0, -signal.SIGKILL]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_dead_rank_ends_the_others_and_is_named(tmp_path, victim):
    process = started(*tiny("dcgan", tmp_path, "trainer.devices=2", FOREVER, "callbacks.losses.every_images=8"))
    try:
        wait_for_clock(process, tmp_path / "runs", 80)
        (other,) = ranks(process.pid)
        os.kill((process.pid, other)[victim], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)  # ends when the last process closes it
    finally:
        process.kill()
    message = errors.decode()
    if victim == 1:
        assert process.returncode == 1
        assert f"error: process 1 (pid {other}) was killed by SIGKILL (often: the machine ran out of memory)" in message
        (directory,) = (tmp_path / "runs" / "dcgan").iterdir()
        assert "process 1" in read_status(directory)["reason"]
    else:
        assert f"error: the first process (pid {process.pid}) has ended; ending the run" in message
    assert "Traceback" not in message


def test_dead_reader_is_named(tmp_path):
    arguments = tiny("dcgan", tmp_path, "data.num_workers=1", FOREVER, "callbacks.losses.every_images=8")
    process = started(*arguments)
    try:
        wait_for_clock(process, tmp_path / "runs", 80)
        readers = [
            pid for pid in children(process.pid) if b"experiments.run" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert len(readers) == 1
        os.kill(readers[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert f"error: a process that reads images (pid {readers[0]}) was killed" in errors.decode()
    assert "data.num_workers=0" in errors.decode() and "Traceback" not in errors.decode()


def test_second_process_in_a_run_directory_refuses(tmp_path, capsys):
    process = started(*tiny("dcgan", tmp_path, FOREVER))
    try:
        wait_for_clock(process, tmp_path / "runs", 40)
        (directory,) = (tmp_path / "runs" / "dcgan").iterdir()
        assert run.main(tiny("dcgan", tmp_path, FOREVER, f"resume={directory}")) == cli.EXIT_BAD_CONFIG
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert f"process {process.pid} is training in this run directory; stop it first" in capsys.readouterr().err


# Shared memory --------------------------------------------------------------------------------------------------------

# Stages of 8 images of 5x4, 512 of 10x8 and 64 of 20x16: the second is the largest. float32 and four classes.
GROWING = ("schedule.batch_sizes=[8,512,64]", "data.num_workers=2")
PAGE = 4096
NEEDED = {1: (6 * (40 + 2) + 15) * PAGE, 2: 2 * (6 * (20 + 1) + 15) * PAGE}  # by processes, which share a batch


@pytest.fixture
def report_shared_memory(monkeypatch):
    """Let the system report so many free bytes of 64 MiB of shared memory; None = there is none."""

    def report(free):
        def usage(path):
            assert path == "/dev/shm"
            if free is None:
                raise FileNotFoundError(path)
            return SimpleNamespace(total=2**26, free=free)

        monkeypatch.setattr(shutil, "disk_usage", usage)

    return report


@pytest.mark.parametrize("devices", NEEDED)
def test_too_little_shared_memory_is_refused_before_the_start(devices, tmp_path, report_shared_memory, capsys):
    arguments = tiny("progressive", tmp_path, *GROWING, f"trainer.devices={devices}")
    report_shared_memory(NEEDED[devices] - 1)
    assert run.main(arguments) == cli.EXIT_BAD_CONFIG
    said = capsys.readouterr().err
    assert "data.num_workers=2: reading 512 images of 10x8 per batch takes 1." in said
    assert "of shared memory, /dev/shm has 1." in said and "MiB free of 64.0;" in said
    assert "data.num_workers=0 needs none" in said and "--shm-size" in said and "(at least 65 MiB in all)" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("devices", NEEDED)
def test_enough_shared_memory_is_accepted(devices, tmp_path, report_shared_memory):
    parts = training.build(experiment_of(tiny_config("progressive", tmp_path, *GROWING, f"trainer.devices={devices}")))
    report_shared_memory(NEEDED[devices])
    training.check_together(parts, None)
    report_shared_memory(None)
    with pytest.raises(ConfigError, match=r"/dev/shm has 0\.0 MiB free"):
        training.check_together(parts, None)
    parts.data.num_workers = 0
    training.check_together(parts, None)


def shared(pids):
    """Pages of shared memory that processes have mapped or hold open, by file."""
    found = {}
    for descriptor in (file for pid in pids for file in Path(f"/proc/{pid}/fd").iterdir()):
        if os.path.islink(descriptor) and os.readlink(descriptor).startswith("/dev/shm/"):
            found[str(descriptor.stat().st_ino)] = descriptor.stat().st_blocks * 512 // PAGE
    for line in "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids).splitlines():
        span, _, _, _, inode, *path = line.split(maxsplit=5)
        if path and path[0].startswith("/dev/shm/"):
            start, end = (int(number, 16) for number in span.split("-"))
            found.setdefault(inode, (end - start) // PAGE)
    return found


def test_readers_take_the_shared_memory_that_was_reckoned(tmp_path):
    data = Phantoms(ConstantSchedule((32, 32), 8, 800), 0, str(tmp_path), "kidney_ct", 20, num_workers=2)
    data.setup()
    device, module = SimpleNamespace(root_device=torch.device("cpu")), SimpleNamespace(images_seen=0)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=device, lightning_module=module)
    before, others = shared([os.getpid()]), children(os.getpid())
    batches = iter(data.train_dataloader())
    held = [next(batches), next(batches)]
    readers = set(children(os.getpid())) - set(others)
    needed = data.shared_bytes(8, (32, 32)) // PAGE
    used = {}
    deadline = time.monotonic() + 10
    while len(used) < 2 * 6 + 14 and time.monotonic() < deadline:  # until as much is read ahead as ever is
        time.sleep(0.05)
        used = {key: pages for key, pages in shared([os.getpid(), *readers]).items() if key not in before}
    assert len(held) == len(readers) == 2
    assert sum(used.values()) == 6 * (8 + 1) + 14 == needed - 1  # one more semaphore is Lightning's


@pytest.mark.timeout(120)
def test_shared_memory_that_ends_during_training_is_said(tmp_path, capsys, monkeypatch):
    if multiprocessing.get_start_method() != "fork":
        pytest.skip("a process that is not forked does not know the fault")

    def full(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    assert run.main(tiny("dcgan", tmp_path, "data.num_workers=1")) == 1
    said = capsys.readouterr().err
    sentence = (
        "a process that reads images got no shared memory (unable to allocate shared memory(shm) for file </torch_7>: "
        "No space left on device (28)); data.num_workers=0 needs none"
    )
    assert f"error: {sentence}" in said and "resume=auto goes on (images_seen=0)" in said and "Traceback" not in said
    (directory,) = (tmp_path / "runs" / "dcgan").iterdir()
    assert read_status(directory)["reason"].startswith(sentence)


class Dying(torch.utils.data.Dataset):
    """Ends its process as writing to a page does that shared memory does not have."""

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGBUS)

    def __len__(self):
        return 1


def test_reader_that_a_bus_error_killed_lacked_shared_memory():
    with pytest.raises(RuntimeError) as caught:
        next(iter(torch.utils.data.DataLoader(Dying(), batch_size=None, num_workers=1)))
    said = explain(caught.value)  # whether torch hears of the signal before it misses the batch is a race
    assert "Bus error); data.num_workers=0 needs none" in said or "memory or shared memory ran out" in said
    hidden = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    hidden.__cause__ = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ...")
    assert "Bus error); data.num_workers=0 needs none" in explain(hidden)


def test_full_shared_memory_is_no_full_disk(monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", full)
    with pytest.raises(OSError) as caught:
        multiprocessing.Queue()
    assert "got no shared memory ([Errno 28] No space left on device); data.num_workers=0" in explain(caught.value)
    assert explain(OSError(28, "No space left on device")).startswith("the disk is full")


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_out_of_memory_says_what_would_fit(tmp_path):
    """The limit stands in for a full device; the advice is measured in a process of its own."""
    script = (
        "import resource, sys, torch\n"
        "from experiments import run\n"
        "from experiments.running import training\n"
        "fit = training.L.Trainer.fit\n"
        "def limited(*a, **k):\n"
        "    used = int(open('/proc/self/status').read().split('VmData:')[1].split()[0]) * 1024\n"
        "    resource.setrlimit(resource.RLIMIT_DATA, (used + 200 * 2**20, resource.RLIM_INFINITY))\n"
        "    try:\n"
        "        return fit(*a, **k)\n"
        "    finally:\n"
        "        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "training.L.Trainer.fit = limited\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(run.main(sys.argv[1:]))\n"
    )
    (tmp_path / "limited.py").write_text(script)
    large = ["schedule.batch_size=2000", "schedule.total_images=4000", "module.generator_channels=16"]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "limited.py"), *tiny("dcgan", tmp_path, *large)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert "error: out of memory (" in done.stderr
    assert "32x32 with a batch of 2000 per device needs " in done.stderr
    assert "lower schedule.batch_size" in done.stderr
    assert "Traceback" not in done.stderr
    assert resource.getrlimit(resource.RLIMIT_DATA)[1] == resource.RLIM_INFINITY


# NaN ------------------------------------------------------------------------------------------------------------------


class Poison(training.L.Callback):
    """Makes a loss NaN at a clock, as often as it is told."""

    def __init__(self, clock, times, only_rank=0):
        self.clock, self.times, self.only_rank = clock, times, only_rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        here = trainer.global_rank == self.only_rank
        if here and pl_module.images_seen == self.clock and pl_module.record.roll_backs < self.times:
            batch["image"].fill_(float("nan"))


ROLL_BACK = ["callbacks.divergence.roll_backs=2", "callbacks.divergence.every_batches=1"]


def test_run_goes_back_to_the_last_good_checkpoint_with_a_lower_learning_rate(tmp_path, with_callback, caplog):
    clean = clocks(train(tiny_config("dcgan", tmp_path / "clean")) / "scores.jsonl")
    with_callback(Poison(48, 1))
    directory = train(tiny_config("dcgan", tmp_path, *ROLL_BACK, "callbacks.checkpoint.every_images=16"))
    assert read_status(directory)["state"] == "finished"
    state = torch.load(newest_checkpoint(directory), weights_only=True)
    assert state["roll_backs"] == 1
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-4)
    assert "NaN or infinite at images_seen=48" in caplog.text
    assert "Going back to it with 0.5 times the learning rates (1 of 2)" in caplog.text
    assert clocks(directory / "scores.jsonl") == clean


def test_rolled_back_run_resumes_to_the_same_weights(tmp_path, with_callback):
    with_callback(Poison(48, 1))
    directory = train(tiny_config("dcgan", tmp_path, *ROLL_BACK))
    for clock in (40, 64):  # before and after it went back
        end = newest_checkpoint(directory).read_bytes()
        (tmp_path / "end.ckpt").write_bytes(end)
        resume = f"resume={directory / 'checkpoints' / f'images_{clock:012d}.ckpt'}"
        train(tiny_config("dcgan", tmp_path, *ROLL_BACK, resume))
        assert_same_state(newest_checkpoint(directory), tmp_path / "end.ckpt")


def test_roll_backs_are_bounded_and_off_unless_asked_for(tmp_path, with_callback):
    with_callback(Poison(48, 10))
    with pytest.raises(DivergedError, match="images_seen=48"):
        train(tiny_config("dcgan", tmp_path, *ROLL_BACK))
    (directory,) = (tmp_path / "runs" / "dcgan").iterdir()
    assert read_status(directory)["state"] == "diverged"
    assert sum("resumed_at" in json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()) == 2
    with pytest.raises(DivergedError):
        train(tiny_config("dcgan", tmp_path / "off"))


@pytest.mark.slow
def test_two_processes_go_back_together(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "ddp_script.py"), "roll_back", "2", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "runs" / "dcgan").iterdir()
    assert torch.load(newest_checkpoint(directory), weights_only=True)["roll_backs"] == 1
