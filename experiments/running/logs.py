"""What a run logs: the first process into its directory as well, the others only errors."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from experiments.configuration.redaction import RedactingFormatter


class _LogFile(logging.FileHandler):
    """A log file that a full disk cuts short, without a word per line about it."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing: what is logged is on the terminal as well."""

    def close(self) -> None:
        """Close the file; lines that the disk has not taken are lost."""
        with suppress(OSError):
            super().close()


@contextmanager
def log_file(path: Path, hide: Callable[[str], str]) -> Iterator[None]:
    """Copy what is logged, warnings included, into a file, without secrets and what else ``hide`` replaces."""
    handler = _LogFile(path)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", hide))
    logging.captureWarnings(True)
    logging.getLogger().addHandler(handler)
    for package in ("callbacks", "datamodules", "experiments"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


@contextmanager
def quiet() -> Iterator[None]:
    """Let only errors of the other processes through."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
