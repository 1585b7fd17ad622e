import os
import subprocess
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # LAPACK spins with more on small machines, and sums keep their order
os.environ["WANDB_MODE"] = "offline"
for name in ("MIRAGE_START", "MIRAGE_CT_KIDNEY", "MIRAGE_CHESTXRAY14", "MIRAGE_MAMMOGRAPHY", "WANDB_API_KEY"):
    os.environ.pop(name, None)

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import config as cfg

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
CLASSES = ("Cyst", "Normal", "Stone", "Tumor")

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """No test reads or writes the user's cache."""
    os.environ["MIRAGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def write_kidney(root: Path, per_class: int = 10, size: int = 64, suffix: str = ".jpg") -> Path:
    """Write tiny RGB files in the Kaggle download's layout: doubled folders, names with space and brackets."""
    random = np.random.default_rng(0)
    name = "CT-KIDNEY-DATASET-Normal-Cyst-Tumor-Stone"
    for brightness, label in enumerate(CLASSES):
        folder = root / name / name / label
        folder.mkdir(parents=True)
        for number in range(1, per_class + 1):
            grey = random.integers(40 * brightness, 40 * brightness + 100, (size, size), dtype=np.uint8)
            Image.fromarray(np.repeat(grey[..., None], 3, axis=-1)).save(folder / f"{label}- ({number}){suffix}")
    return root


@pytest.fixture(scope="session")
def kidney_root(tmp_path_factory) -> Path:
    return write_kidney(tmp_path_factory.mktemp("ct_kidney"))


# A run that takes a second: 40 images are a pass, 8 are a batch, 96 are the run (2.4 passes).
TINY = {
    "dcgan": [],
    "wgan_gp": ["module._target_=lightning_modules.wgan_gp.WGANGP", "module.critic_steps=2"],
    "wgan": ["module._target_=lightning_modules.wgan.WGAN", "module.critic_steps=2"],
    "progressive": [],
    "progressive_r1": ["module.loss._target_=lightning_modules.losses.LogisticR1"],
}


def tiny(family: str, tmp_path: Path, *overrides: str) -> list[str]:
    """Return the command line of a tiny run on phantoms (44 images, 40 of them for training)."""
    return [
        str(TINY_PROGRESSIVE if family.startswith("progressive") else TINY_YAML),
        f"name={family}",
        f"runs_dir={tmp_path / 'runs'}",
        *TINY[family],
        *overrides,
    ]


TINY_YAML = Path(__file__).parent / "tiny.yaml"
TINY_PROGRESSIVE = Path(__file__).parent / "tiny_progressive.yaml"
TINY_KIDNEY = Path(__file__).parent / "tiny_kidney.yaml"


def tiny_config(family: str, tmp_path: Path, *overrides: str) -> dict:
    name, *rest = tiny(family, tmp_path, *overrides)
    return cfg.load(name, rest)


def run_cli(*arguments: str, timeout: int = 300, **environment: str) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "experiments.run", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def newest_checkpoint(directory: Path) -> Path:
    return max((directory / "checkpoints").glob("images_*.ckpt"))


def assert_same_state(a: Path, b: Path) -> None:
    """Two checkpoints hold equal weights, averages, buffers, optimizer states and clocks, bit for bit."""
    left, right = (torch.load(path, map_location="cpu", weights_only=True) for path in (a, b))
    assert left["images_seen"] == right["images_seen"]
    assert left["losses"] == right["losses"]
    _assert_equal(left["state_dict"], right["state_dict"], "state_dict")
    _assert_equal(left["optimizer_states"], right["optimizer_states"], "optimizer_states")


def _assert_equal(a, b, where: str) -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), f"{where}: differs by up to {(a - b).abs().max()}"
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _assert_equal(x, y, f"{where}[{i}]")
    else:
        assert a == b, where
