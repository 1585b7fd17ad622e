"""The standard suite on two folders of 10,000 PNGs of 256x256: ``python -m experiments.benchmarks.evaluation``.

Prints the time and the largest memory of the process that measures; making the files is not counted.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, count: int, size: int, seed: int) -> None:
    """Write grey images of smooth shapes and noise, as 8-bit PNG."""
    folder.mkdir(parents=True)

    def write(i: int) -> None:
        random = np.random.default_rng([seed, i])
        shapes = Image.fromarray(random.integers(0, 200, (8, 8), np.uint8)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(shapes, np.int16) + random.integers(0, 16, (size, size), np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.png", compress_level=1)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(count)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.evaluation", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for seed, name in enumerate(("real", "generated", "held_out")):
            write_images(root / name, options.count if name != "held_out" else options.count // 10, options.size, seed)
        command = [sys.executable, "-m", "experiments.evaluate", str(root / "generated"), "suite=standard"]
        command += [f"against={root / 'real'}", f"held_out={root / 'held_out'}", f"output={root / 'out'}"]
        started = time.monotonic()
        subprocess.run(command, check=True, env={**os.environ, "MIRAGE_CACHE": str(root / "cache")})
        minutes = (time.monotonic() - started) / 60.0
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    what = f"{options.count} images of {options.size}x{options.size} against as many"
    print(f"\nstandard suite, {what}: {minutes:.1f} min, {memory:.2f} GiB")


if __name__ == "__main__":
    main()
