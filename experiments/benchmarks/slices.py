"""What slices cost beside the whole evaluation: ``python -m experiments.benchmarks.slices``.

Two folders of labelled files are measured without ``by`` and with it, each with a cache of its own. Labels are drawn at
random, so that every slice is large enough for every score; making the files is not counted.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from experiments.benchmarks.evaluation import write_images

VALUES = {"sex": ("F", "M"), "view": ("AP", "PA"), "finding": ("Edema", "Mass", "Nodule", "No Finding")}


def write_labels(folder: Path, seed: int) -> Path:
    """Write a CSV of labels beside a folder of images."""
    random = np.random.default_rng(seed)
    rows = ["file,group," + ",".join(VALUES)]
    for path in sorted(folder.iterdir()):
        rows.append(",".join([path.name, path.stem, *(random.choice(of) for of in VALUES.values())]))
    table = folder.with_suffix(".csv")
    table.write_text("\n".join(rows) + "\n")
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.slices", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--by", nargs="+", default=["sex", "sex,view", "sex,view,finding"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for seed, name in enumerate(("real", "generated")):
            write_images(root / name, options.count, options.size, seed)
        tables = {name: write_labels(root / name, seed) for seed, name in enumerate(("real", "generated"))}
        command = [sys.executable, "-m", "experiments.evaluate", str(root / "generated"), f"suite={options.suite}"]
        command += [f"against={root / 'real'}", f"groups={tables['real']}"]
        whole = 0.0
        for by in ["", *options.by]:
            asked = [f"by=[{by}]", f"generated_labels={tables['generated']}"] if by else []
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [*command, *asked, f"output={root / f'out {by}'}"],
                check=True,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "MIRAGE_CACHE": str(root / f"cache {by}")},
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            whole = whole or seconds
            print(
                f"{f'by={by}' if by else 'whole':<24} {seconds:8.0f} s of a processor  {seconds / whole:.2f}",
                flush=True,
            )
    what = f"{options.count} images of {options.size}x{options.size} against as many"
    print(f"suite {options.suite}, {what}, {after.ru_maxrss / 2**20:.2f} GiB at most")


if __name__ == "__main__":
    main()
