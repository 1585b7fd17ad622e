"""Search hyper-parameters: ``python -m experiments.sweep NAME_OR_FILE [key=value ...]``."""

import argparse
import sys

from experiments.cli import list_shipped, log_to_terminal, new_parser, refuse, show
from experiments.configuration.errors import ConfigError
from experiments.configuration.files import SWEEPS

EPILOG = """\
examples:
  python -m experiments.sweep phantom_families                     run it, or continue it
  python -m experiments.sweep phantom_families trials=48 parallel=4
  python -m experiments.sweep phantom_families storage=postgresql://host/sweeps runs_dir=/shared/runs
  python -m experiments.sweep phantom_grid engine=wandb tracking=online

The same command on several machines that share runs_dir works on one sweep together.

exit codes: 0 finished, 2 wrong configuration, 85 interrupted (the same command continues), 1 no trial finished
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = new_parser("sweep", "Search hyper-parameters as one YAML file describes it.", EPILOG)
    parser.add_argument("sweep", nargs="?", metavar="NAME_OR_FILE", help="a shipped sweep or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the sweep's own values")
    parser.add_argument("--list", action="store_true", help="show the shipped sweeps")
    parser.add_argument("--show", action="store_true", help="print the resolved sweep and stop")
    parser.add_argument("--wandb-yaml", action="store_true", help="print the sweep as W&B wants it and stop")
    options = parser.parse_intermixed_args(arguments)
    if options.list:
        return list_shipped(SWEEPS)
    if options.sweep is None:
        parser.error("name a sweep (--list shows them) or a YAML file")
    try:
        return _do(options)
    except ConfigError as error:
        return refuse(options.sweep, error.problems)


def _do(options: argparse.Namespace) -> int:
    from experiments.sweeps.settings import load_sweep

    sweep = load_sweep(options.sweep, options.overrides)
    if options.show:
        return show(sweep.recorded())
    if options.wandb_yaml or sweep.engine == "wandb":
        from experiments.sweeps.wandb_engine import register, to_yaml

        if not options.wandb_yaml:
            return register(sweep)
        print(to_yaml(sweep), end="")
        return 0
    log_to_terminal()
    from experiments.sweeps.runner import Runner

    return Runner(sweep).run()


if __name__ == "__main__":
    sys.exit(main())
