"""Stands in for experiments.run in tests of sweeps: a process that leaves what a run leaves, at once.

``python fake_trial.py TRIAL_FOLDER BEHAVIOUR``; every start appends a line to ``starts`` in the trial's folder.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

METRIC = "score/frechet_random_conv"


def main(folder: Path, behaviour: str) -> int:
    with (folder / "starts").open("a") as file:
        file.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    run = folder / "run"
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text("name: x\nruns_dir: y\n")
    status(run, "running")
    kind, _, argument = behaviour.partition(" ")
    if kind == "score":
        return score(run, [float(word) for word in argument.split()])
    if kind == "slow":  # scores once and then trains until it is stopped; when it goes on, it finishes
        return slow(run, folder, float(argument))
    if kind == "crash":
        print(f"Traceback ...\n  File x\nValueError: {argument}\nsome later line", file=sys.stderr)
        return 1
    if kind == "refuse":
        print("2 errors in trial_0000:\n  a=1: wrong\n  b=2: wrong", file=sys.stderr)
        return 2
    if kind == "diverge":
        print("error: training diverged: loss 'g' was NaN at images_seen=8.", file=sys.stderr)
        status(run, "diverged", reason="DivergedError: training diverged: loss 'g' was NaN at images_seen=8.")
        return 3
    if kind == "memory":
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", file=sys.stderr)
        return 1
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return 0  # "silent": finishes without a score


def status(run: Path, state: str, **more: object) -> None:
    (run / "status.json").write_text(json.dumps({"state": state, **more}))


def write(run: Path, images_seen: int, value: float) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"images_seen": images_seen, METRIC: value}) + "\n")


def score(run: Path, values: list[float]) -> int:
    for i, value in enumerate(values):
        write(run, 40 * i, value)
    status(run, "finished")
    return 0


def slow(run: Path, folder: Path, value: float) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(85))
    if len((folder / "starts").read_text().splitlines()) > 1:
        return score(run, [value])
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "worker").write_text(str(worker.pid))
    write(run, 0, value)
    time.sleep(600)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
