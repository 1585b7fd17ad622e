"""Pseudonyms: what a run directory shows in place of patients and files, whose names often are patients' ids.

Data packages ``remember`` the names that they meet. What is written into a run directory goes through
``Pseudonyms.hide``, which replaces every remembered name; the terminal shows the names themselves. What a file's header
or a table says of itself may hold names that nobody has remembered: it is ``quoted``, and hidden altogether.
"""

import csv
import fcntl
import hmac
import io
import os
import re
import secrets
import stat
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from datamodules.files.errors import DataError

LENGTH = 12  # hexadecimal digits: two of 100,000 names share a pseudonym with probability 2e-5
UNSAVED = "p-unsaved"  # where salt and table cannot be written
_SHORTEST = 4  # characters; "13" is a patient in some data sets, and a number everywhere else
_LONGEST = 200
_TOKEN = re.compile(r"[^\W_]+|[\W_]")
_known: set[str] = set()
_QUOTED = re.compile("«[^»]*(?:»|$)")
HIDDEN = "«shown on the terminal only»"


def remember(names: Iterable[str]) -> None:
    """Note patients' ids, and names of files with or without folders, as what must not be written down."""
    for name in names:
        folders, _, last = name.strip("/").rpartition("/")
        stem = last.rpartition(".")[0]
        ids = [folder for folder in folders.split("/") if any(map(str.isdigit, folder))]  # not "images", "Stone"
        _known.update(text for text in (name, last, stem, *ids) if len(text) >= _SHORTEST)


def quoted(text: object, longest: int = 300) -> str:
    """Return text of a file between marks that the file cannot forge: what stands there reaches no run directory."""
    line = " ".join(str(text).translate({ord("«"): "<", ord("»"): ">"}).split())[:longest]
    return f"«{''.join(sign if sign.isprintable() else '?' for sign in line)}»"


class Pseudonyms:
    """Keyed hashes of names, the same in all runs of a project, and a table to look them up.

    Salt and table lie in ``$MIRAGE_PRIVATE`` (default ``~/.config/mirage``), readable by their owner only, and are made
    when the first name is met. Without the salt nobody can find a pseudonym's name by trying names.

    Args:
        project: Another project has another salt, so that its pseudonyms cannot be linked with these.
        runs_dir: Where run directories are made; they can be handed on, so the salt must not lie there.
    """

    def __init__(self, project: str, runs_dir: Path) -> None:
        self.folder = Path(os.environ.get("MIRAGE_PRIVATE") or "~/.config/mirage").expanduser().absolute()
        self.runs_dir = runs_dir
        self.salt_file, self.table = self.folder / f"{project}.salt", self.folder / f"{project}.csv"

    def check(self) -> None:
        """Raise DataError if salt or table lie where run directories do, or are readable by others."""
        if Path(os.path.realpath(self.folder)).is_relative_to(os.path.realpath(self.runs_dir)):
            raise DataError(
                f"MIRAGE_PRIVATE={self.folder}: lies below runs_dir={self.runs_dir}, whose runs can be handed on; set "
                "it to a folder of your own"
            )
        for path in (self.salt_file, self.table):
            if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise DataError(f"{path}: others can read it; run: chmod 600 {path}")
        if self.salt_file.exists() and self.salt_file.stat().st_size != 32:
            raise DataError(f"{self.salt_file}: is damaged; restore it, or remove it and {self.table} to begin anew")

    def of(self, name: str) -> str:
        """Return the pseudonym of a name, and note both in the table.

        Raises:
            OSError: If salt or table cannot be read or written.
        """
        pseudonym = f"p-{hmac.digest(self._salt, name.encode(errors='surrogateescape'), 'sha256').hex()[:LENGTH]}"
        if pseudonym not in self._listed:
            self._append(pseudonym, name)
            self._listed.add(pseudonym)
        return pseudonym

    def hide(self, text: str) -> str:
        """Return a text with a pseudonym in place of every remembered name, the longest first, and without quotes."""
        text = _QUOTED.sub(HIDDEN, text)
        starts = [match.start() for match in _TOKEN.finditer(text)] + [len(text)]
        shown, i = [], 0
        while i < len(starts) - 1:
            ends = (j for j in range(len(starts) - 1, i, -1) if starts[j] - starts[i] <= _LONGEST)
            end = next((j for j in ends if text[starts[i] : starts[j]] in _known), None)
            piece = text[starts[i] : starts[end or i + 1]]
            shown.append(self._of_or_unsaved(piece) if end else piece)
            i = end or i + 1
        return "".join(shown)

    def _of_or_unsaved(self, name: str) -> str:
        try:
            return self.of(name)
        except OSError:  # a line of a log must not end a run
            return UNSAVED

    @cached_property
    def _salt(self) -> bytes:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self.folder / f".{self.salt_file.name}.{secrets.token_hex(8)}.tmp"
        if not self.salt_file.exists():
            _write(temporary, secrets.token_bytes(32), os.O_EXCL)
            try:
                os.link(temporary, self.salt_file)  # whole, and the first of several processes wins
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        return self.salt_file.read_bytes()

    @cached_property
    def _listed(self) -> set[str]:
        if not self.table.exists():
            return set()
        with self.table.open(newline="", errors="surrogateescape") as file:
            return {row[0] for row in csv.reader(file) if row}

    def _append(self, pseudonym: str, name: str) -> None:
        line = io.StringIO()
        formula = name.startswith(("=", "+", "-", "@", "\t", "\r"))  # to a spreadsheet; an apostrophe says it is none
        csv.writer(line).writerow([pseudonym, f"'{name}" if formula else name])
        _write(self.table, line.getvalue().encode(errors="surrogateescape"), os.O_APPEND)


def _write(path: Path, content: bytes, flag: int) -> None:
    """Write at once to a file that only its owner can read; others that append wait."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | flag, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
