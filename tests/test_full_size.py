"""The papers' networks at full width and full size, from files to a DICOM export, through the command line.

Two steps per stage (one faded, one stable) at batch 1: this shows that everything fits together, not that it learns.
"""

import numpy as np
import pytest
import torch
from conftest import SHARED, newest_checkpoint, run_cli
from dicom_files import write_mammogram
from PIL import Image

from datamodules.records.records import Intensity
from datamodules.writing.writers import write_dicom
from experiments.configuration import files as config_files
from experiments.configuration.experiment import experiment_of
from experiments.running.parts import build

STEPS = [
    "schedule.batch_sizes=1",
    "schedule.fade_images=1",
    "schedule.stable_images=1",
    "callbacks.score.count=2",
    "callbacks.samples.count=1",
    "callbacks.samples.columns=1",
    "trainer.devices=1",
    "trainer.accelerator=cpu",
    "tracking=disabled",
]
if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
    STEPS.append("trainer.precision=32-true")  # this processor emulates bf16, many times slower
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def full_run(tmp_path, name, *overrides):
    """Run to the end (17 images); return the module at its newest checkpoint."""
    done = run_cli(name, *STEPS, f"runs_dir={tmp_path / 'runs'}", *overrides, timeout=1400, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "runs" / name).iterdir()
    state = torch.load(newest_checkpoint(directory), weights_only=True)
    assert state["images_seen"] == 17
    module = build(experiment_of(config_files.load(str(directory / "config.yaml")))).module
    module.on_load_checkpoint(state)
    module.load_state_dict(state["state_dict"])
    assert sum(p.numel() for p in module.generator.parameters()) > 23_000_000
    return directory, module, state["data_facts"]


def test_chest_xrays_at_1024x1024_from_png(tmp_path):
    root = tmp_path / "chest"
    (root / "images").mkdir(parents=True)
    files = sorted((SHARED / "chestxray14" / "images").glob("*.png"))[:6] if SHARED.exists() else []
    random = np.random.default_rng(0)
    rows = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"]
    names = [path.name for path in files] or [f"{i + 1:08}_000.png" for i in range(6)]
    for i, name in enumerate(names):
        if files:
            (root / "images" / name).write_bytes(files[i].read_bytes())
        else:
            Image.fromarray(random.integers(0, 256, (1024, 1024), dtype=np.uint8)).save(root / "images" / name)
        rows.append(f"{name},No Finding,0,{int(name[:8])},50,M,PA")
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join(rows) + "\n")
    (root / "train_val_list.txt").write_text("\n".join(names[:5]))
    (root / "test_list.txt").write_text(names[5])
    directory, module, facts = full_run(
        tmp_path, "progressive_chestxray14_1024", f"data.root={root}", "data.val_fraction=0"
    )
    assert module.sample(1).shape == (1, 1, 1024, 1024)
    assert facts["images"] == {"train": 5, "val": 0, "test": 1}
    assert Image.open(directory / "samples" / "images_000000000017.png").size == (1024, 1024)


def test_mammograms_at_1280x1024_from_dicom_to_dicom(tmp_path):
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_windowing

    root = tmp_path / "mammograms"
    root.mkdir()
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 1, 1400)[:, None] * np.linspace(1, 0, 1000)[None] + 0.02 * random.random((1400, 1000))
    for exam, (syntax, photometric, bits) in enumerate(
        [("explicit", "MONOCHROME2", 16), ("explicit", "MONOCHROME1", 12), ("jpeg2000", "MONOCHROME2", 12)] * 2
    ):
        stored = (np.clip(ramp + 0.01 * exam, 0, 1) * (2**bits - 1)).astype(np.uint16)
        if photometric == "MONOCHROME1":
            stored = (2**bits - 1) - stored
        write_mammogram(
            root / f"{exam}_L-MLO.dcm", stored, syntax, bits=bits, photometric=photometric, PatientID=str(exam)
        )
    nothing_held_out = ["data.val_fraction=0", "data.test_fraction=0"]
    _, module, facts = full_run(
        tmp_path, "progressive_mammography_1280x1024_mlo", f"data.root={root}", *nothing_held_out
    )
    (image,) = module.sample(1)
    assert image.shape == (1, 1280, 1024)
    assert facts["images"]["train"] == 6
    write_dicom(image, tmp_path / "out.dcm", Intensity(**facts["intensity"]), "test")
    dataset = pydicom.dcmread(tmp_path / "out.dcm")
    assert (dataset.Rows, dataset.Columns, dataset.SyntheticData) == (1280, 1024, "YES")
    shown = apply_windowing(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    low, high = shown.min(), shown.max()
    expected = (image[0].numpy() - image.min().item()) / (image.max() - image.min()).item()
    np.testing.assert_allclose((shown - low) / (high - low), expected, atol=1e-3)
