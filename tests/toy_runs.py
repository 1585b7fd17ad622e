"""Tiny runs of the families in tests/toys."""

import json
import shutil
import subprocess
import sys

import torch
import toys
from conftest import ROOT, assert_same_state, newest_checkpoint

from experiments.configuration import files
from experiments.running.training import train

toys.found()


def arguments(family, folder, *overrides):
    """Return the command line of a tiny run of a toy."""
    return [str(ROOT / "tests" / f"tiny_{family}.yaml"), f"name={family}", f"runs_dir={folder / 'runs'}", *overrides]


def trained(family, folder, *overrides):
    name, *rest = arguments(family, folder, *overrides)
    return train(files.load(name, rest))


def in_two_processes(family, folder, *overrides):
    command = [sys.executable, str(ROOT / "tests" / "toy_run.py"), *arguments(family, folder, *overrides)]
    done = subprocess.run([*command, "trainer.devices=2"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (directory,) = (folder / "runs" / family).iterdir()
    return directory


def state_of(path):
    return torch.load(path, weights_only=True)


def assert_resumes(whole, folder, go_on, clock):
    """A run that is cut off at a clock and goes on ends with what the whole one ended with, own states included."""
    part = folder / "runs" / whole.parent.name / whole.name
    shutil.copytree(whole, part)
    checkpoint = part / "checkpoints" / f"images_{clock:012d}.ckpt"
    for path in part.glob("checkpoints/*.ckpt"):
        if path != checkpoint:
            path.unlink()
    go_on(f"resume={checkpoint}")
    left, right = newest_checkpoint(part), newest_checkpoint(whole)
    assert_same_state(left, right)
    for key in ("process_state", "rate_drops"):
        a, b = state_of(left)[key], state_of(right)[key]
        assert json.dumps(a, default=torch.Tensor.tolist) == json.dumps(b, default=torch.Tensor.tolist), key
