"""Compare evaluations: ``python -m experiments.compare A B [C ...]``."""

import sys
from pathlib import Path

from experiments.cli import EXIT_BAD_CONFIG, new_parser, refuse
from experiments.configuration.errors import ConfigError

EPILOG = """\
examples:
  python -m experiments.compare runs/a/ID runs/b/ID                  the newest evaluation of each run
  python -m experiments.compare evaluations/gan evaluations/vae --output comparison

exit codes: 0 done, 2 wrong arguments, or scores that were not taken in the same way
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = new_parser(
        "compare", "Show the scores of evaluations side by side, with the significance of each difference.", EPILOG
    )
    parser.add_argument("evaluations", nargs="+", type=Path, metavar="RUN_OR_FOLDER", help="two or more evaluations")
    parser.add_argument("--output", type=Path, help="folder for comparison.html and comparison.csv")
    parser.add_argument(
        "--allow-different", action="store_true", help="compare although scores were not taken in the same way"
    )
    options = parser.parse_args(arguments)
    if len(options.evaluations) < 2:
        parser.error("name at least two evaluations")
    return _compare(options.evaluations, options.output, options.allow_different)


def _compare(paths: list[Path], output: Path | None, allow_different: bool) -> int:
    from experiments.evaluation.comparison import (
        NOTE,
        compare,
        read_evaluation,
        table,
        what_differs,
        write_comparison,
    )

    try:
        evaluations = [read_evaluation(path) for path in paths]
    except ConfigError as error:
        return refuse("the comparison", error.problems)
    problems = what_differs(evaluations)
    if problems:
        hint = [] if allow_different else ["--allow-different compares them all the same"]
        refuse("the comparison", [*problems, *hint])
        if not allow_different:
            return EXIT_BAD_CONFIG
    rows = table(evaluations, compare(evaluations))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print("\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows))
    print(f"\n{NOTE}")
    if output is not None:
        write_comparison(output, rows, evaluations)
        print(f"\n{output / 'comparison.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
