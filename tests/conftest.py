import hashlib
import os
import struct
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # LAPACK spins with more on small machines, and sums keep their order
os.environ["WANDB_MODE"] = "offline"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # results are compared to the bit with those of other processes
for name in ("MIRAGE_START", "MIRAGE_CT_KIDNEY", "MIRAGE_CHESTXRAY14", "MIRAGE_MAMMOGRAPHY", "WANDB_API_KEY"):
    os.environ.pop(name, None)

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from datamodules.files import pseudonyms
from experiments.configuration import files

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
CLASSES = ("Cyst", "Normal", "Stone", "Tumor")

torch.set_num_threads(1)


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that still run, by the system's list."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """No test reads or writes the user's cache, salts and tables."""
    os.environ["MIRAGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["MIRAGE_PRIVATE"] = str(tmp_path_factory.mktemp("private"))


DRAW = Figure.savefig


@pytest.fixture(scope="session", autouse=True)
def figures_left_out():
    """Reports of this process hold a pixel for each figure: drawing takes longer than the tiny run that it shows."""

    def a_pixel(figure, file, **how):
        Image.new("L", (1, 1)).save(file, "png")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", a_pixel)
        yield


@contextmanager
def figures_drawn():
    """Reports hold their figures, as they do in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", DRAW)
        yield


@pytest.fixture
def drawn():
    with figures_drawn():
        yield


def forget_names():
    before = set(pseudonyms._known)
    yield
    pseudonyms._known.intersection_update(before)


@pytest.fixture(autouse=True)
def names_of_its_own():
    """No test hides the names of another's patients."""
    yield from forget_names()


@pytest.fixture(scope="module", autouse=True)
def names_of_its_module():
    """Nor do those that a module's fixtures have read; the real data sets' cost every later test 40 ms."""
    yield from forget_names()


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


@pytest.fixture(scope="session")
def chest_root(tmp_path_factory) -> Path:
    """40 patients with 2 films each in NIH's layout, table of 2020."""
    root = tmp_path_factory.mktemp("chestxray14")
    (root / "images").mkdir()
    random = np.random.default_rng(0)
    rows = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"]
    lists: dict[str, list[str]] = {"train_val_list.txt": [], "test_list.txt": []}
    for i in range(80):
        name = f"{i // 2 + 1:08}_{i % 2:03}.png"
        rows.append(f"{name},{('No Finding', 'Mass|Effusion', 'Hernia')[i % 3]},{i % 2},{i // 2 + 1},50,M,PA")
        lists["test_list.txt" if i // 2 % 5 == 0 else "train_val_list.txt"].append(name)
        Image.fromarray(random.integers(0, 256, (32, 32), dtype=np.uint8)).save(root / "images" / name)
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join(rows) + "\n")
    for list_name, names in lists.items():
        (root / list_name).write_text("\n".join(names))
    return root


@pytest.fixture(scope="session")
def mammography_root(tmp_path_factory) -> Path:
    """20 exams of four views, 12-bit DICOM files of 50x36, named like NYU's."""
    from dicom_files import write_mammogram

    root = tmp_path_factory.mktemp("mammography")
    random = np.random.default_rng(0)
    for exam in range(20):
        for side in "LR":
            for view in ("CC", "MLO"):
                stored = random.integers(0, 4096, (50, 36)).astype(np.uint16)
                write_mammogram(root / f"{exam}_{side}-{view}.dcm", stored, bits=12, PatientID=str(exam))
    return root


# A run that takes a second: 40 images are a pass, 8 are a batch, 96 are the run (2.4 passes).
TINY = {
    "dcgan": [],
    "wgan_gp": ["module._target_=lightning_modules.wgan_gp.WGANGP", "module.critic_steps=2"],
    "wgan": ["module._target_=lightning_modules.wgan.WGAN", "module.critic_steps=2"],
    "kidney_gan": [
        "module._target_=lightning_modules.kidney_gan.KidneyGAN",
        "module.critic_steps=2",
        "module.skips=previous_two",
        "module.prior=truncated_normal",
    ],
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
    return files.load(name, rest)


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


@pytest.fixture(scope="session")
def translator_run(tmp_path_factory) -> Path:
    """A tiny run of the toy translator: 12 steps of 8 pairs, of which 18 are held out. Copy it before changing it."""
    from toy_runs import trained

    return trained("translator", tmp_path_factory.mktemp("translator"))


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[_middle(path)] ^= 1
    path.write_bytes(content)


def _middle(path):
    """Return a place in the middle of what a file holds; between the records of an archive lie bytes of no meaning."""
    if not zipfile.is_zipfile(path):
        return path.stat().st_size // 2
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    header = path.read_bytes()[largest.header_offset :][:30]
    return largest.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26)) + largest.file_size // 2


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def with_callback(monkeypatch):
    """Put a callback before the others of the runs of this process."""
    from experiments.running import training

    def add(callback):
        build = training.build

        def built(experiment):
            parts = build(experiment)
            parts.callbacks.insert(0, callback)
            return parts

        monkeypatch.setattr(training, "build", built)

    return add


@pytest.fixture
def inception_weights(tmp_path, monkeypatch):
    """Weights of the reference's architecture, drawn here: the real ones must be downloaded."""
    import torch_fidelity.feature_extractor_inceptionv3 as reference

    from lightning_modules.metrics.features import InceptionV3

    monkeypatch.setattr(reference, "load_state_dict_from_url", lambda *_, **__: None)
    monkeypatch.setattr(reference.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
    torch.manual_seed(0)
    network = reference.FeatureExtractorInceptionV3("inception-v3", ["2048"])
    monkeypatch.undo()
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    monkeypatch.setattr(InceptionV3, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path
