"""Generate images as files: ``python -m experiments.generate RUN --count N --seed S``."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

from experiments.cli import EXIT_PREEMPTED, at_least_1, fail, new_parser, refuse, stop_at_signals
from experiments.configuration.errors import ConfigError

EPILOG = """\
examples:
  python -m experiments.generate runs/demo/20261120-183111-72b2 --count 1000
  python -m experiments.generate RUN --count 1000 --seed 7 --format dicom --processes 4
  python -m experiments.generate RUN/checkpoints/best.ckpt --count 64 --truncation 0.7 --output best

Image i is a function of (generator, seed, i): the same bytes with every batch size and number of processes. The same
command continues what was interrupted and makes damaged files again; a larger --count adds images.

exit codes: 0 all images are there, 2 cannot be done as asked, 85 stopped by a signal (the same command goes on),
  1 anything else
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = parser().parse_args(arguments)
    with stop_at_signals() as stopped:
        return _generate(options, stopped)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = new_parser("generate", "Write images of a trained generator, with a manifest.", EPILOG)
    found.add_argument("run", type=Path, metavar="RUN", help="a run directory, or one of its checkpoints")
    found.add_argument("--count", type=at_least_1, required=True, metavar="N", help="number of images")
    found.add_argument("--seed", type=int, default=0, metavar="S", help="names the list of images (0)")
    found.add_argument(
        "--truncation", type=_factor, default=1.0, metavar="T", help="factor on the latents: below 1 less varied (1)"
    )
    found.add_argument(
        "--labels", type=_names, default=(), metavar="A,B", help="classes to show, or none (conditional families only)"
    )
    found.add_argument("--format", choices=("png8", "png16", "dicom"), default="png8", help="of the files (png8)")
    found.add_argument("--output", type=Path, metavar="FOLDER", help="default: RUN/generated/FORMAT-seedS")
    found.add_argument(
        "--batch-size", type=at_least_1, default=64, metavar="B", help="images handed out at once; changes none (64)"
    )
    found.add_argument("--processes", type=at_least_1, default=1, metavar="P", help="changes no image (1)")
    found.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="a GPU's images differ in their last bits (cpu)"
    )
    return found


def _generate(options: argparse.Namespace, stopped: Callable[[], bool]) -> int:
    """Import the heavy packages, generate, and say what came out."""
    import torch

    from experiments.publishing.generating import Request, generate_files
    from experiments.publishing.making import ProcessLostError

    if options.device == "cuda" and not torch.cuda.is_available():
        return refuse("the command", ["--device cuda: no GPU is visible on this machine; use cpu"])
    values = dict(vars(options))
    request = Request(path=values.pop("run"), **values)
    try:
        outcome = generate_files(request, stopped)
    except ConfigError as error:
        return refuse(str(options.run), error.problems)
    except (OSError, ProcessLostError) as error:
        return fail(f"{error}; the same command goes on")
    if outcome.note:
        print(f"note: {outcome.note}")
    if outcome.missing:
        print(f"stopped: {outcome.missing} of {options.count} images are left to make; the same command goes on")
        return EXIT_PREEMPTED
    print(f"{options.count} images ({outcome.made} made now) in {outcome.folder}")
    return 0


def _factor(text: str) -> float:
    if not 0.0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be a number from 0 on")
    return float(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


if __name__ == "__main__":
    sys.exit(main())
