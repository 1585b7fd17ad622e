"""Export a trained generator with a model card: ``python -m experiments.export RUN``."""

import argparse
import sys
from pathlib import Path

from experiments.cli import fail, new_parser, refuse
from experiments.configuration.errors import ConfigError

EPILOG = """\
formats
  safetensors   generator.safetensors, generator.json: lightning_modules.networks.exported loads them
                generator.onnx: latents (N, D) -> images (N, C, H, W) in [-1, 1], for onnxruntime; of a translator
                sources (N, C, H, W) in [-1, 1] of the size of training -> images
  monai-bundle  configs/, models/, docs/: runs with MONAI alone, by python -m monai.bundle run; models/model.onnx
  medigan       a model package for medigan: __init__.py with generate, metadata.json, weights
Each has README.md, a model card made from the run, and samples.png, generated images. A translator is exported as
safetensors and without samples, which would be made of patients' images; --require-privacy refuses it, since a
translation shows the patient of its source.

examples:
  python -m experiments.export runs/demo/20261120-183111-72b2
  python -m experiments.export RUN --format monai-bundle --no-onnx
  python -m experiments.export RUN/checkpoints/best.ckpt --output best --no-onnx
  python -m experiments.export RUN --require-privacy

ONNX needs the packages of mirage-gan[export]. Evaluate the run first: its scores go into the model card.

exit codes: 0 exported, 2 cannot be exported, 1 anything else
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = parser().parse_args(arguments)
    return _export(options)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = new_parser(
        "export", "Write the averaged generator of a run in files that need neither the run nor Lightning.", EPILOG
    )
    found.add_argument("run", type=Path, metavar="RUN", help="a run directory, or one of its checkpoints")
    found.add_argument(
        "--format", choices=("safetensors", "monai-bundle", "medigan"), default="safetensors", help="(safetensors)"
    )
    found.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="default: RUN/export, RUN/export_monai_bundle, RUN/export_medigan; an earlier one is replaced",
    )
    found.add_argument("--no-onnx", action="store_true", help="leave the ONNX file out")
    found.add_argument(
        "--require-privacy",
        action="store_true",
        help="refuse unless evaluate suite=privacy of exactly these weights found no sign of a leak",
    )
    return found


def _export(options: argparse.Namespace) -> int:
    """Import the heavy packages, export, and say where to."""
    from experiments.publishing.exporting import export

    try:
        folder = export(
            options.run, options.output, not options.no_onnx, options.format, require_privacy=options.require_privacy
        )
    except ConfigError as error:
        return refuse(str(options.run), error.problems)
    except OSError as error:
        return fail(str(error))
    card = folder / ("docs/README.md" if options.format == "monai-bundle" else "README.md")
    print(f"exported to {folder}\nread        {card} before you hand it on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
