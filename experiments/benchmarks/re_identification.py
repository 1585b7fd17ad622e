"""Memory of the re-identification test: ``python -m experiments.benchmarks.re_identification``.

2,000 generated images against 10,000 training and 2,000 held-out ones, of 1,280 features each. Prints the largest
memory of a process that has the features and of one that also runs the test, beside what all distances would take.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch

from lightning_modules.metrics.re_identification import Films, ReIdentification

TRAIN, HELD_OUT, GENERATED, DIMENSIONS, EACH = 10_000, 2_000, 2_000, 1_280, 4


def films_of(images: int, seed: int) -> Films:
    """Return features of patients with four films each."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(images // EACH, DIMENSIONS, generator=random)
    vectors = torch.randn(images, DIMENSIONS, generator=random).mul_(0.5)
    for k in range(EACH):
        vectors[k::EACH] += centres
    return Films(vectors, [f"{seed}-{i // EACH}" for i in range(images)])


def measure(with_test: bool) -> None:
    """Print the largest memory in MiB and the seconds of the test, in a process of its own."""
    train, held_out = films_of(TRAIN, 0), films_of(HELD_OUT, 1)
    looks, generated = train.vectors + 0.1, films_of(GENERATED, 2).vectors
    started = time.monotonic()
    if with_test:
        ReIdentification().examine(train, looks, held_out, generated)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.monotonic() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.re_identification", description=__doc__)
    parser.add_argument("--part", choices=("features", "test"), help="what a process of the measurement does")
    part = parser.parse_args().part
    if part is not None:
        return measure(part == "test")
    command = [sys.executable, "-m", "experiments.benchmarks.re_identification", "--part"]
    parts = [subprocess.run([*command, of], check=True, capture_output=True, text=True) for of in ("features", "test")]
    (before, _), (after, seconds) = (map(float, done.stdout.split()) for done in parts)
    what = f"{GENERATED:,} generated, {TRAIN:,} training and {HELD_OUT:,} held-out images"
    print(f"re-identification, {what}: {seconds:.0f} s")
    print(
        f"  {(after - before) / 1024:.2f} GiB beside the features, which take {before / 1024:.2f} GiB (torch included)"
    )
    return None


if __name__ == "__main__":
    main()
