"""What the command lines share: exit codes, the parser, what is said and where. Imports nothing heavy."""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.configuration.files import CONFIGS, Node, description, shipped
from experiments.configuration.redaction import RedactingFormatter

EXIT_BAD_CONFIG = 2
EXIT_DIVERGED = 3
EXIT_PREEMPTED = 85  # what a scheduler's script may requeue on


def new_parser(verb: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Return the parser of ``python -m experiments.<verb>``, without arguments yet; ``epilog`` keeps its lines."""
    return argparse.ArgumentParser(
        prog=f"python -m experiments.{verb}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def at_least_1(text: str) -> int:
    """Return a number of at least 1, for a parser."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return int(text)


# What is said ---------------------------------------------------------------------------------------------------------


def list_shipped(folder: Path = CONFIGS) -> int:
    """Print the names and descriptions of the files that are shipped in a folder, and return the exit code."""
    width = max(map(len, shipped(folder)))
    for name in shipped(folder):
        print(f"{name:<{width}}  {description(name, folder)}")
    return 0


def show(node: Node) -> int:
    """Print a node as YAML, and return the exit code."""
    from omegaconf import OmegaConf

    print(OmegaConf.to_yaml(OmegaConf.create(node)), end="")
    return 0


def refuse(name: str, problems: list[str]) -> int:
    """Print what is wrong with a file, a folder or a command, and return the exit code."""
    count = f"{len(problems)} errors" if len(problems) > 1 else "error"
    print(f"{count} in {name}:", *(f"  {problem}" for problem in problems), sep="\n", file=sys.stderr)
    return EXIT_BAD_CONFIG


def fail(message: str) -> int:
    """Print what went wrong that no argument can mend, and return the exit code."""
    print(f"error: {message}", file=sys.stderr)
    return 1


def interrupted() -> int:
    """Say that Ctrl-C has ended what can go on, and return the exit code."""
    print("\ninterrupted; the same command goes on", file=sys.stderr)
    return EXIT_PREEMPTED


def log_to_terminal(level: int = logging.WARNING) -> None:
    """Send log messages to standard error, without secrets."""
    logging.basicConfig(level=level, stream=sys.stderr)
    logging.getLogger().handlers[0].setFormatter(RedactingFormatter("%(message)s"))


# Signals --------------------------------------------------------------------------------------------------------------


@contextmanager
def stop_at_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether a signal has asked for an end; a second signal ends at once."""
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        if noted:
            os._exit(EXIT_PREEMPTED)
        noted.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    main_thread = threading.current_thread() is threading.main_thread()
    before = [signal.signal(number, note) for number in numbers] if main_thread else []
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in zip(numbers, before, strict=False):
            signal.signal(number, handler)
