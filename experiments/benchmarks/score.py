"""The share of a run that its periodic scores take: ``python -m experiments.benchmarks.score``.

The whole of ``demo``, minutes: the callback's own seconds against those of the fit, in one process. Phantoms are drawn
before.
"""

import tempfile
import time
from pathlib import Path

from callbacks.fid import FrechetScore
from callbacks.preemption import Preemption
from experiments.configuration import files
from experiments.configuration.experiment import experiment_of
from experiments.running.parts import build
from experiments.running.trainer import build_trainer


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        parts = build(experiment_of(files.load("demo", ["trainer.accelerator=cpu", f"data.cache_dir={folder}/cache"])))
        parts.data.prepare_data()
        score = next(callback for callback in parts.callbacks if isinstance(callback, FrechetScore))
        trainer = build_trainer(parts.settings, None, parts.callbacks, [], Path(folder), Preemption())
        started = time.monotonic()
        trainer.fit(parts.module, datamodule=parts.data)
        whole = time.monotonic() - started
    print(f"\nperiodic scores of demo ({score.extractor.score_name})")
    print(f"  {score.seconds:.1f} s of {whole:.1f} s: {score.seconds / whole:.1%} of the run")


if __name__ == "__main__":
    main()
