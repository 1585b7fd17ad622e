"""Carry out a paper: ``python -m experiments.reproduce PAPER scale=NAME [key=value ...]``."""

import argparse
import importlib
import shlex
import sys

from experiments.cli import EXIT_PREEMPTED, interrupted, list_shipped, log_to_terminal, new_parser, refuse
from experiments.configuration.errors import ConfigError
from experiments.configuration.files import PAPERS

EPILOG = """\
examples:
  python -m experiments.reproduce sahakyan2024 scale=smoke          all of it on phantoms, a minute or two
  python -m experiments.reproduce sahakyan2024 scale=small data.root=/data/ct_kidney parallel=2
  python -m experiments.reproduce sahakyan2024 scale=full data.root=/data/ct_kidney inception=/models/inception.pth
  python -m experiments.reproduce sahakyan2024 scale=full data.root=/data/ct_kidney --commands

scale, parallel, runs_dir and inception belong to the study; every other key=value is given to all of its runs, if it
does not change what they learn: data.root, trainer.devices, tracking ... The same command goes on where it was stopped.
Runs can be trained elsewhere with the lines that --commands prints.

exit codes: 0 done, 2 wrong arguments or data, 85 interrupted (the same command goes on), 1 a run failed
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = new_parser("reproduce", "Train a paper's runs, score them, and put its numbers beside ours.", EPILOG)
    parser.add_argument("paper", nargs="?", metavar="PAPER", help="a shipped paper")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="scale=NAME, and changes of single values")
    parser.add_argument("--list", action="store_true", help="show the shipped papers")
    parser.add_argument("--commands", action="store_true", help="print one command line per run and stop")
    parser.add_argument("--collect", action="store_true", help="train nothing: report on the runs that have finished")
    options = parser.parse_intermixed_args(arguments)
    if options.list:
        return list_shipped(PAPERS)
    if options.paper is None:
        parser.error("name a paper (--list shows them)")
    try:
        return _reproduce(options)
    except ConfigError as error:
        return refuse(options.paper, error.problems)


def _reproduce(options: argparse.Namespace) -> int:
    """Import the heavy packages, train, and report."""
    log_to_terminal()
    from datamodules.files.errors import DataError
    from experiments.papers.runs import ENDED, train
    from experiments.papers.study import load_study
    from lightning_modules.metrics.features import ExtractorError

    study = load_study(options.paper, options.overrides)
    paper = importlib.import_module(f"experiments.papers.{study.paper.name}")
    try:
        extractors = study.prepare()
        if options.commands:
            print("\n".join(shlex.join(run.command()) for run in study.runs if run.state() not in ENDED))
            return 0
        print(f"{study.folder}: scores by {' and '.join(extractors)}")
        code = 0 if options.collect else train(study)
        if code == EXIT_PREEMPTED:
            return code
        lines = paper.write_report(study)
    except (DataError, ExtractorError) as error:
        return refuse(options.paper, [str(error)])
    except KeyboardInterrupt:
        return interrupted()
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
