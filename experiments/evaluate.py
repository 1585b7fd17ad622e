"""Measure a generator or a folder of images: ``python -m experiments.evaluate RUN_OR_FOLDER [key=value ...]``."""

import json
import logging
import sys

from experiments.cli import fail, interrupted, list_shipped, log_to_terminal, new_parser, refuse, show
from experiments.configuration.errors import ConfigError
from experiments.configuration.files import SUITES, load

EPILOG = """\
examples:
  python -m experiments.evaluate runs/demo/20261120-183111-72b2                    the standard suite
  python -m experiments.evaluate runs/demo/20261120-183111-72b2 suite=quick
  python -m experiments.evaluate runs/kidney/ID suite=full data.root=/data/ct_kidney split=test
  python -m experiments.evaluate /data/generated against=/data/real held_out=/data/others groups=patients.csv
  python -m experiments.evaluate RUN suite=privacy                                 does it leak patients?
  python -m experiments.evaluate runs/chest/ID 'by=[sex,view,age,finding]'          every score in every slice
  python -m experiments.evaluate RUN extractors.mine.weights=/models/densenet.pt \\
    extractors.mine._target_=lightning_modules.metrics.torchvision_network.DenseNet121

A killed evaluation goes on with the same command.

exit codes: 0 done, 2 wrong arguments or data, 85 interrupted, 1 anything else
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = new_parser("evaluate", "Measure a generator or a folder of images against real ones.", EPILOG)
    parser.add_argument("target", nargs="?", metavar="RUN_OR_FOLDER", help="a run directory, a checkpoint or a folder")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="suite=NAME_OR_FILE, and changes of its values"
    )
    parser.add_argument("--list", action="store_true", help="show the shipped suites")
    parser.add_argument("--show", action="store_true", help="print the resolved suite and stop")
    options = parser.parse_intermixed_args(arguments)
    if options.list:
        return list_shipped(SUITES)
    if options.target is None:
        parser.error("name a run directory, a checkpoint or a folder of images")
    named = [text.removeprefix("suite=") for text in options.overrides if text.startswith("suite=")]
    overrides = [text for text in options.overrides if not text.startswith("suite=")]
    suite = named[-1] if named else "standard"
    if not options.show:
        return _evaluate(options.target, suite, overrides)
    try:
        return show(load(suite, overrides, SUITES))
    except ConfigError as error:
        return refuse(suite, error.problems)


def _evaluate(target: str, suite: str, overrides: list[str]) -> int:
    """Import the heavy packages, measure, and say what came out."""
    log_to_terminal(logging.INFO)
    logging.getLogger("lightning").setLevel(logging.WARNING)
    from datamodules.files.errors import DataError
    from experiments.evaluation.evaluation import evaluate, score_lines
    from experiments.measuring.settings import load_suite
    from experiments.pages.text import text_of
    from lightning_modules.metrics.features import ExtractorError

    try:
        folder = evaluate(target, load_suite(suite, overrides))
    except ConfigError as error:
        return refuse(target, error.problems)
    except (DataError, ExtractorError) as error:
        return refuse(target, [str(error)])
    except OSError as error:
        return fail(f"{error}; output=FOLDER writes elsewhere")
    except KeyboardInterrupt:
        return interrupted()
    found = json.loads((folder / "scores.json").read_text())
    print("\n".join(score_lines(found["scores"], found["warnings"])))
    for verdict in found.get("privacy", ()):
        print(f"\n{verdict['test']}: {verdict['sentence']}\n  {verdict['limits']}")
    if "slices" in found:
        print("\n" + "\n".join(map(text_of, found["slices"])))
    print(f"\nscores  {folder / 'scores.json'}\nreport  {folder / 'report.html'}")
    if "slices" in found:
        print(f"slices  {folder / 'slices.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
