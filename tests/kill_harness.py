"""Kills a small growing run in every way and at every moment, resumes it, and compares it with the uninterrupted run.

    python tests/kill_harness.py --folder /tmp/kills --kills 60

A kill is a signal (SIGKILL to all, SIGTERM to one process, SIGTERM to all) at a moment (in a step, while a checkpoint
is written, while the image cache is built, while a score is taken) of a run with 1 or 2 processes: 24 combinations.
Each is followed by ``resume=auto`` to the end and a comparison of weights, averages and optimizer states, bit for bit.
The log (``kills.jsonl``) has one row per kill; a harness that is stopped goes on after the last one.
"""

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from conftest import ROOT, TINY_PROGRESSIVE, assert_same_state, newest_checkpoint

from experiments.cli import EXIT_PREEMPTED
from experiments.record.tracking import read_rows

SCORE_EVERY, TOTAL = 120, 808
JOB = [
    str(TINY_PROGRESSIVE),
    "name=job",
    "data.count=3000",
    "schedule.resolution=[16,16]",
    "schedule.fade_images=[0,100,200]",
    "schedule.stable_images=[200,100,200]",
    "callbacks.losses.every_images=8",
    f"callbacks.score.every_images={SCORE_EVERY}",
    "callbacks.score.count=1000",
    "callbacks.samples.every_images=200",
    "callbacks.checkpoint.every_images=24",
    "callbacks.checkpoint.keep=2",
    "callbacks.rank_agreement.every_images=100",
]
SIGNALS = ("SIGKILL to all", "SIGTERM to one", "SIGTERM to all")
MOMENTS = ("step", "checkpoint", "cache", "score")
KILLS = [
    {"signal": how, "moment": when, "processes": processes}
    for when, how, processes in itertools.product(MOMENTS, SIGNALS, (1, 2))
]


def reference(folder: Path, processes: int) -> Path:
    """Return the directory of the uninterrupted run; it is made once."""
    runs = folder / f"whole-{processes}"
    for done in runs.glob("job/*/status.json"):
        if json.loads(done.read_text())["state"] == "finished":
            return done.parent
    process = start(runs, folder / "cache", processes, 0)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()
    (directory,) = (runs / "job").iterdir()
    return directory


def kill_and_resume(folder: Path, number: int) -> dict:
    """Carry out one kill; return its row for the log.

    Raises:
        AssertionError: If the resumed run is not the uninterrupted one, or does not end as it should.
    """
    kill, dice = KILLS[number % len(KILLS)], random.Random(number)
    workers = 2 * dice.randrange(2)
    whole = reference(folder, kill["processes"])
    runs = folder / f"kill-{number}"
    cache = folder / f"cache-{number}" if kill["moment"] == "cache" else folder / "cache"
    process = start(runs, cache, kill["processes"], workers)
    try:
        clock = wait_for(kill["moment"], runs, cache, process, dice)
        aim, number_of_signal = target(process, kill, dice)
        sent = time.monotonic()
        aim(number_of_signal)
        _, errors = process.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    seconds = time.monotonic() - sent
    expected = -signal.SIGKILL if number_of_signal == signal.SIGKILL else EXIT_PREEMPTED
    assert process.returncode == expected, f"ended with {process.returncode}: {errors.decode()[-3000:]}"
    resumed = start(runs, cache, kill["processes"], workers)
    _, errors = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, errors.decode()[-3000:]
    (directory,) = (runs / "job").iterdir()
    assert_same_state(newest_checkpoint(directory), newest_checkpoint(whole))
    for name in ("metrics.jsonl", "scores.jsonl"):
        assert clocks(directory / name) == clocks(whole / name)
    assert not list(directory.rglob("*.tmp"))
    return {"kill": number, **kill, "workers": workers, "clock": clock, "seconds": round(seconds, 2), "equal": True}


def start(runs: Path, cache: Path, processes: int, workers: int) -> subprocess.Popen:
    """Start the job, or go on with it."""
    overrides = [f"runs_dir={runs}", f"trainer.devices={processes}", f"data.num_workers={workers}", "resume=auto"]
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *JOB, *overrides],
        cwd=ROOT,
        env={**os.environ, "MIRAGE_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for(moment: str, runs: Path, cache: Path, process: subprocess.Popen, dice: random.Random) -> int:
    """Wait until the run is where it is to be killed; return the clock of its record."""
    clock = dice.randrange(24, TOTAL - 120)
    if moment == "score":
        clock = SCORE_EVERY * dice.randrange(1, TOTAL // SCORE_EVERY)
    conditions = {
        "step": lambda: reached(runs) >= clock,
        "score": lambda: reached(runs) >= clock,  # the losses are logged just before the score is taken
        "checkpoint": lambda: reached(runs) >= clock and any(runs.glob("job/*/checkpoints/.*.tmp")),
        "cache": lambda: any(path.is_file() for path in cache.rglob("*")),
    }
    deadline = time.monotonic() + 240
    while not conditions[moment]():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline, f"the run never came to the {moment} where it was to be killed"
        time.sleep(0 if moment == "checkpoint" else 0.002)
    time.sleep(dice.random() * {"step": 0.05, "score": 0.3, "checkpoint": 0.0, "cache": 1.0}[moment])
    assert process.poll() is None, "the run ended before it was killed"
    return reached(runs)


def target(process: subprocess.Popen, kill: dict, dice: random.Random):
    """Return a function that sends a signal to where this kill sends it, and the signal."""
    if kill["signal"] == "SIGTERM to one":
        pid = dice.choice([process.pid, *ranks(process.pid)])
        return lambda number: os.kill(pid, number), signal.SIGTERM
    number = signal.SIGKILL if kill["signal"] == "SIGKILL to all" else signal.SIGTERM
    return lambda number: os.killpg(process.pid, number), number


def ranks(first: int) -> list[int]:
    """Return the processes that the first one has started as ranks of the run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == first and b"\0LOCAL_RANK=" in (path / "environ").read_bytes():
                found.append(int(path.name))
    return found


def reached(runs: Path) -> int:
    return max((row["images_seen"] for path in runs.glob("*/*/metrics.jsonl") for row in read_rows(path)), default=-1)


def clocks(path: Path) -> list[int]:
    return [row["images_seen"] for row in read_rows(path)]


def logged(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where runs and the log lie")
    parser.add_argument("--kills", type=int, default=60)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    log = options.folder / "kills.jsonl"
    done = {row["kill"] for row in logged(log)}
    for number in range(options.kills):
        if number in done:
            continue
        for left in options.folder.glob(f"*-{number}"):
            if left.name.startswith(("kill-", "cache-")):
                subprocess.run(["rm", "-r", str(left)], check=True)
        try:
            row = kill_and_resume(options.folder, number)
        except AssertionError as error:
            row = {"kill": number, **KILLS[number % len(KILLS)], "equal": False, "error": str(error)}
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    rows = logged(log)
    print(f"{sum(row['equal'] for row in rows)} of {len(rows)} resumed runs are equal to the uninterrupted run")
    return int(not all(row["equal"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
