"""Reading images from the cache against decoding with PIL: ``python -m experiments.benchmarks.reading``."""

import functools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datamodules.batches.samplers import BatchRequest
from datamodules.batches.transforms import resize
from datamodules.chestxray14 import ChestXray14
from datamodules.phantom_drawings import chest_xray, kidney_ct
from datamodules.phantoms import KINDS, Phantoms
from experiments.benchmarks.timing import rates, show
from lightning_modules.schedules import ConstantSchedule, ProgressiveSchedule

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


def pyramid() -> None:
    """Measure building the cache of a growing GAN from 1024x1024 PNG files, and reading two of its stages."""
    schedule = ProgressiveSchedule((1024, 1024), 16, 16, 16)
    with tempfile.TemporaryDirectory() as folder:
        files = _write_chest_xrays(Path(folder), 200)
        data = ChestXray14(
            schedule, 0, folder, f"{folder}/cache", split_by="stratified", val_fraction=0, test_fraction=0
        )
        start = time.perf_counter()
        data.prepare_data()
        built = len(files) / (time.perf_counter() - start)
        start = time.perf_counter()
        for file in files[:60]:
            np.asarray(Image.open(file))
        decoded = 60 / (time.perf_counter() - start)
        show(
            "First build, nine stages from 1024x1024 PNG", {"PIL, decoding alone": decoded, "Mirage": built}, "images/s"
        )
        data.setup()
        images = data.train_images()

        def batches(size: int, count: int) -> Callable[[], int]:
            orders = [np.random.default_rng(i).permutation(len(files))[:16] for i in range(count)]
            requests = [BatchRequest(0, np.arange(16), order, (size, size)) for order in orders]
            return lambda: sum(len(images[request]["image"]) for request in requests)

        def with_pil() -> int:
            for file in files[:16]:
                torch.from_numpy(np.asarray(Image.open(file)).astype(np.float32) / 127.5 - 1.0)
            return 16

        found = rates({"PIL, 1024x1024": with_pil, "128x128": batches(128, 50), "1024x1024": batches(1024, 4)})
        show("Reading batches of 16 from the warm cache", found, "images/s")


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


def _write_chest_xrays(folder: Path, count: int) -> list[Path]:
    """Write drawn chest x-rays of 1024x1024 with film grain, in NIH's layout."""
    (folder / "images").mkdir()
    rows = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"]
    files, random = [], np.random.default_rng(0)
    drawn = [resize(chest_xray.draw(i, 256, 256)[None], 1024, 1024)[0] for i in range(8)]
    for i in range(count):
        grain = drawn[i % 8] * 250 + random.normal(0, 2, (1024, 1024))
        files.append(folder / "images" / f"{i:08}_000.png")
        Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).save(files[-1])
        rows.append(f"{files[-1].name},No Finding,0,{i},50,M,PA")
    (folder / "Data_Entry_2017_v2020.csv").write_text("\n".join(rows) + "\n")
    return files


def _write_files(folder: Path) -> list[Path]:
    files = [folder / f"{i}.png" for i in range(COUNT)]
    for i, file in enumerate(files):
        Image.fromarray((kidney_ct.draw(i, 256, 256) * 255).astype(np.uint8)).save(file)
    return files


if __name__ == "__main__":
    reading()
    pyramid()
    phantoms()
