"""Train a GAN: ``python -m experiments.run NAME_OR_FILE [key=value ...]``."""

import argparse
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from experiments.cli import (
    EXIT_BAD_CONFIG,
    EXIT_DIVERGED,
    EXIT_PREEMPTED,
    list_shipped,
    log_to_terminal,
    new_parser,
    refuse,
    show,
)
from experiments.configuration.errors import ConfigError
from experiments.configuration.files import load
from experiments.running.handing_down import launched_rank, started_by_the_first_process

EPILOG = """\
examples:
  python -m experiments.run demo
  python -m experiments.run dcgan_ct_kidney_64 data.root=/data/ct_kidney schedule.batch_size=128
  python -m experiments.run dcgan_ct_kidney_64 resume=auto         continue the newest unfinished run
  python -m experiments.run progressive_chestxray14_1024 --plan    what it needs, measured on this device
  python -m experiments.run my_experiment.yaml trainer.devices=4 trainer.precision=bf16-mixed

exit codes: 0 finished, 2 wrong configuration or data, 3 diverged, 85 stopped by a signal (resume=auto goes on),
  1 anything else
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = new_parser("run", "Train a GAN as one YAML file describes it.", EPILOG)
    parser.add_argument("experiment", nargs="?", metavar="NAME_OR_FILE", help="a shipped experiment or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of single values")
    parser.add_argument("--list", action="store_true", help="show the shipped experiments")
    parser.add_argument("--show", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--show-defaults", action="store_true", help="the same, checked and with every default")
    parser.add_argument(
        "--plan", action="store_true", help="measure time and memory of every stage and stop (budget=60s: for how long)"
    )
    options = parser.parse_intermixed_args(arguments)
    if options.list:
        return list_shipped()
    name_among_overrides(options)
    if options.experiment is None:
        parser.error("name an experiment (--list shows them) or a YAML file")
    try:
        overrides = [text for text in options.overrides if not (options.plan and text.startswith("budget="))]
        config = load(options.experiment, overrides)
        if options.show_defaults:
            config = _with_defaults(config)
        if options.show or options.show_defaults:
            return show(config)
        if options.plan:
            budgets = [text for text in options.overrides if text not in overrides]
            return _plan(config, budgets[-1].removeprefix("budget=") if budgets else "60s")
        with _preempted_by_signals():
            return _train(config)
    except ConfigError as error:
        return refuse(options.experiment, error.problems)


def name_among_overrides(options: argparse.Namespace) -> None:
    """Accept ``experiment=NAME`` anywhere: W&B's agent can write key=value only."""
    words = [word for word in (options.experiment, *options.overrides) if word is not None]
    named = [word for word in words if word.startswith("experiment=")]
    if named:
        options.experiment = named[-1].removeprefix("experiment=")
        options.overrides = [word for word in words if word not in named]


def _with_defaults(config: dict) -> dict:
    """Import the heavy packages, and return the configuration as a run records it."""
    from experiments.running.parts import checked, recorded

    return recorded(checked(config))


def _plan(config: dict, budget: str) -> int:
    """Import the heavy packages, measure, and print the plan."""
    from experiments.running.plan import plan, seconds_of

    print("\n".join(plan(config, seconds_of(budget))))
    return 0


def _train(config: dict) -> int:
    """Import the heavy packages, train, and say what came out."""
    log_to_terminal(logging.INFO)
    logging.captureWarnings(True)
    warnings.filterwarnings("ignore", "Found .* module.* in eval mode")  # the averaged generator is meant to be
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # inside Lightning
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view")  # of 1x1 kernels: nothing to move
    from callbacks.divergence import DivergedError
    from callbacks.generated import EmptySplitError
    from callbacks.preemption import Preempted
    from datamodules.files.errors import DataError
    from experiments.record.report import newest_samples, score_lines
    from experiments.running.faults import FaultError, OutOfMemoryError
    from experiments.running.processes import (
        ProcessDiedError,
        external_launcher,
        is_first_process,
        let_the_first_process_speak,
    )
    from experiments.running.training import train
    from lightning_modules.metrics.features import ExtractorError
    from lightning_modules.step import OtherDataError

    # Lightning announces what it did not find and what one could buy, twice; its warnings still come through.
    logging.getLogger("lightning").handlers.clear()
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)

    codes: dict[type[Exception], int] = {
        DivergedError: EXIT_DIVERGED,
        Preempted: EXIT_PREEMPTED,
        FaultError: 1,
        OutOfMemoryError: 1,
    }
    said_here = (DataError, EmptySplitError, OtherDataError, ExtractorError, DivergedError, Preempted, FaultError)
    try:
        directory = train(config)
    except ProcessDiedError:  # has been said
        return 1
    except said_here as error:
        if not is_first_process(external_launcher()) and not isinstance(error, FaultError):  # which is its own
            let_the_first_process_speak()
        elif type(error) not in codes:
            refuse(config["name"], [str(error)])
        else:
            print(error if isinstance(error, Preempted) else f"error: {error}", file=sys.stderr)
            if isinstance(error, OutOfMemoryError) and is_first_process(external_launcher()):
                print(_advice(config, error.images_seen), file=sys.stderr)
        return codes.get(type(error), EXIT_BAD_CONFIG)
    if is_first_process(external_launcher()):
        print("\n".join(["", *score_lines(directory)]))
        print(f"\nsamples  {newest_samples(directory)}\nreport   {directory / 'report.html'}")
    return 0


def _advice(config: dict, images_seen: int) -> str:
    """Return what to lower so that the stage at a clock fits, measured as the plan does."""
    import torch

    from experiments.running.plan import advice

    torch.cuda.empty_cache()
    try:
        return advice(config, images_seen)
    except Exception as error:  # nothing may hide that memory ran out
        return f"python -m experiments.run NAME --plan measures what fits (not measured now: {error})"


@contextmanager
def _preempted_by_signals() -> Iterator[None]:
    """End at once, with the exit code for it, at a signal that comes before or after training: nothing is lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.signal(number, _leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _leave(number: int, frame: object) -> None:
    if started_by_the_first_process():
        os.kill(os.getppid(), number)  # whose exit code is the run's; this process ends with it
    else:
        # srun ends with the highest code of all: the first process's, which may have refused the data, must count.
        os._exit(EXIT_PREEMPTED if launched_rank() == 0 else 0)


if __name__ == "__main__":
    sys.exit(main())
