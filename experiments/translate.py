"""Translate a folder of images: ``python -m experiments.translate RUN INPUT --output FOLDER``."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

from experiments.cli import EXIT_PREEMPTED, at_least_1, fail, new_parser, refuse, stop_at_signals
from experiments.configuration.errors import ConfigError

EPILOG = """\
examples:
  python -m experiments.translate runs/my_translator/ID /data/ct --output translated
  python -m experiments.translate RUN /data/ct --output translated --format png16 --value-range 0 4095 --processes 4

Each file below INPUT (grey PNG, JPEG, TIFF, BMP, DICOM) is translated at its own size and written below FOLDER under
its name. The same command continues what was interrupted and makes damaged files again. Translations and their names
may show patients: keep FOLDER as you keep INPUT.

exit codes: 0 all images are there, 2 cannot be done as asked, 85 stopped by a signal (the same command goes on),
  1 anything else
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = parser().parse_args(arguments)
    with stop_at_signals() as stopped:
        return _translate(options, stopped)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = new_parser("translate", "Write what a trained translator makes of images, with a manifest.", EPILOG)
    found.add_argument("run", type=Path, metavar="RUN", help="a run directory of a translator, or a checkpoint")
    found.add_argument("input", type=Path, metavar="INPUT", help="folder of the images")
    found.add_argument("--output", type=Path, metavar="FOLDER", required=True, help="folder of the translations")
    found.add_argument("--seed", type=int, default=0, metavar="S", help="of a network that draws numbers (0)")
    found.add_argument(
        "--value-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values of the files that are black and white, of CT in HU; default: what the files say, of DICOM as a "
        "viewer shows it",
    )
    found.add_argument("--format", choices=("png8", "png16", "dicom"), default="png8", help="of the files (png8)")
    found.add_argument("--processes", type=at_least_1, default=1, metavar="P", help="changes no image (1)")
    found.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="a GPU's images differ in their last bits (cpu)"
    )
    return found


def _translate(options: argparse.Namespace, stopped: Callable[[], bool]) -> int:
    """Import the heavy packages, translate, and say what came out."""
    import torch

    from datamodules.files.errors import DataError
    from experiments.publishing.making import ProcessLostError
    from experiments.publishing.translating import Request, translate_files

    if options.device == "cuda" and not torch.cuda.is_available():
        return refuse("the command", ["--device cuda: no GPU is visible on this machine; use cpu"])
    values = dict(vars(options))
    value_range = tuple(values.pop("value_range") or ()) or None
    if value_range and not -math.inf < value_range[0] < value_range[1] < math.inf:
        return refuse("the command", ["--value-range: LOW must be below HIGH, and both finite"])
    try:
        outcome = translate_files(Request(path=values.pop("run"), value_range=value_range, **values), stopped)
    except ConfigError as error:
        return refuse(str(options.run), error.problems)
    except DataError as error:
        return refuse(str(options.input), [str(error)])
    except (OSError, ProcessLostError) as error:
        return fail(f"{error}; the same command goes on")
    if outcome.note:
        print(f"note: {outcome.note}")
    if outcome.missing:
        print(f"stopped: {outcome.missing} images are left to make; the same command goes on")
        return EXIT_PREEMPTED
    print(f"{outcome.made} images made now, all are in {outcome.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
