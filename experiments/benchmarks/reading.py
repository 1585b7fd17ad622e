"""Reading images from the cache against decoding with PIL: ``python -m experiments.benchmarks.reading``."""

import functools
import multiprocessing
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datamodules.phantom_drawings import kidney_ct
from datamodules.phantoms import KINDS, Phantoms
from datamodules.samplers import BatchRequest
from experiments.benchmarks.timing import rates, show
from lightning_modules.schedules import ConstantSchedule

COUNT, BATCH = 256, 64


def reading() -> None:
    """Measure reading of batches."""
    with tempfile.TemporaryDirectory() as folder:
        files = _write_files(Path(folder))
        schedule = ConstantSchedule((64, 64), BATCH, BATCH)
        data = Phantoms(schedule, 0, f"{folder}/cache", "kidney_ct", COUNT, val_fraction=0.0, test_fraction=0.0)
        data.prepare_data()
        data.setup()
        orders = (np.random.default_rng(i).permutation(COUNT)[:BATCH] for i in range(50))
        batches = [BatchRequest(0, np.arange(BATCH), order, (64, 64)) for order in orders]
        images = data.train_images()

        def from_cache() -> int:
            return sum(len(images[request]["image"]) for request in batches)

        def with_pil() -> int:
            for file in files[:BATCH]:
                small = np.asarray(Image.open(file).convert("L").resize((64, 64), Image.Resampling.BOX))
                torch.from_numpy(small.astype(np.float32) / 127.5 - 1.0)
            return BATCH

        found = rates({"PIL": with_pil, "Mirage, from the cache": from_cache})
        show("Reading 64x64 (files 256x256)", found, "images/s")


def phantoms() -> None:
    """Measure how fast phantoms are drawn by two processes."""
    # Two processes with two BLAS threads each would fight for two cores.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(2) as pool:

        def draw(kind: str) -> int:
            return len(pool.map(functools.partial(_draw, kind), range(600), chunksize=50))

        found = rates({kind: functools.partial(draw, kind) for kind in KINDS}, rounds=3)
    show("Drawing phantoms of 64x64, two processes", found, "images/s")


def _draw(kind: str, index: int) -> float:
    return float(KINDS[kind].draw(index, 64, 64).mean())


def _write_files(folder: Path) -> list[Path]:
    files = [folder / f"{i}.png" for i in range(COUNT)]
    for i, file in enumerate(files):
        Image.fromarray((kidney_ct.draw(i, 256, 256) * 255).astype(np.uint8)).save(file)
    return files


if __name__ == "__main__":
    reading()
    phantoms()
