"""A folder of generated images and its manifest, so that a kill at any moment costs the images in the making only."""

import csv
import fcntl
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from callbacks.files import append_rows, sweep_temporaries
from experiments.configuration.errors import ConfigError
from experiments.pages.text import csv_text
from experiments.record.run_directory import flat, refuse_links, write_text
from experiments.record.strangers import Made, ManifestFile, parsed

SETTINGS, TABLE = "manifest.json", "manifest.csv"
_JOURNAL = ".written.jsonl"  # rows since the table was last written
_COLUMNS = ("index", "file", "seed", "sha256")
_MAY_DIFFER = ("count", "versions.git_commit", "versions.git_changes")


class ImageFolder:
    """Files of one list of images.

    ``manifest.json`` says how they were made, ``manifest.csv`` lists index, file, seed, SHA-256 and more of each.
    Images that a folder holds are kept when more are asked for; it holds images of one kind only.

    Args:
        path: The folder; it is created.
        settings: What decides the contents of the files, as plain values; "seed" among them.
        names: Of the files that are wanted, below the folder.
        told: Further columns of the table, of one value for each file.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], names: Sequence[str], told: Mapping[str, Sequence[str]]
    ) -> None:
        self.path, self.names, self.told, self.count = path, names, told, (count := len(names))
        self.settings = json.loads(json.dumps({**settings, "count": count}))
        self._hashes: dict[int, str] = {}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder for this process, and leave a whole table behind.

        Raises:
            ConfigError: If another process writes there, or the folder holds something else.
        """
        self._check_path()
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("ab") as lock:  # the system lets go of it, however the process ends
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError([f"{self.path}: another process writes images there; wait for it"]) from error
            self._check_settings()
            sweep_temporaries(self.path)
            write_text(self.path / SETTINGS, json.dumps(self.settings, indent=2) + "\n")
            self._hashes = self._read_table() | self._read_journal()
            self._write_table()
            try:
                yield
            finally:
                self._write_table()

    def file(self, index: int) -> Path:
        """Return the path of an image."""
        return self.path / self.names[index]

    def missing(self, watch: Callable[[Iterable[int]], Iterable[int]] = iter) -> list[int]:
        """Return the indices of images that are absent, damaged or not in the record.

        Args:
            watch: Shows the progress of an iteration.
        """
        return [i for i in watch(range(self.count)) if i not in self._hashes or self._hash(i) != self._hashes[i]]

    def add(self, hashes: dict[int, str]) -> None:
        """Record images that lie in the folder."""
        self._hashes.update(hashes)
        append_rows(self.path / _JOURNAL, [{"index": i, "sha256": digest} for i, digest in hashes.items()])

    def _check_path(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError([f"{self.path}: is no folder"])
        if self.path.is_dir():
            refuse_links(self.path)
            others = [path for path in self.path.iterdir() if path.name not in (".lock", SETTINGS)]
            if others and not (self.path / SETTINGS).is_file():
                raise ConfigError([f"{self.path}: is not empty and holds no {SETTINGS}; name another --output"])

    def _check_settings(self) -> None:
        if not (self.path / SETTINGS).is_file():
            return
        text = (self.path / SETTINGS).read_bytes()
        manifest = parsed(ManifestFile, text)
        if manifest is None:
            raise ConfigError([f"{self.path / SETTINGS}: cannot be read; name another --output"])
        before, now, count = flat(json.loads(text)), flat(self.settings), manifest.count
        keys = sorted(key for key in before.keys() | now.keys() if key not in _MAY_DIFFER)
        problems = [
            f"{key}: was {before.get(key)!r}, is {now.get(key)!r}" for key in keys if before.get(key) != now.get(key)
        ]
        if count > self.count:
            problems.append(f"count: was {count}, is {self.count}; images are added only")
        if problems:
            raise ConfigError([f"{self.path}: holds other images; name another --output", *problems])

    def _read_table(self) -> dict[int, str]:
        if not (self.path / TABLE).is_file():
            return {}
        try:
            with (self.path / TABLE).open(newline="") as file:
                return {int(row["index"]): row["sha256"] for row in csv.DictReader(file)}
        except (OSError, ValueError, KeyError, TypeError, csv.Error):  # all images are made again
            return {}

    def _read_journal(self) -> dict[int, str]:
        if not (self.path / _JOURNAL).is_file():
            return {}
        hashes = {}
        for line in (self.path / _JOURNAL).read_bytes().splitlines():
            if made := parsed(Made, line):  # else it was cut off by a kill
                hashes[made.index] = made.sha256
        return hashes

    def _write_table(self) -> None:
        lines: list[list[Any]] = [[*_COLUMNS, *self.told]]
        for i in sorted(i for i in self._hashes if 0 <= i < self.count):  # a damaged table may hold others
            more = (column[i] for column in self.told.values())
            lines.append([i, self.names[i], self.settings["seed"], self._hashes[i], *more])
        write_text(self.path / TABLE, csv_text(lines))
        (self.path / _JOURNAL).unlink(missing_ok=True)

    def _hash(self, index: int) -> str | None:
        return file_hash(self.file(index)) if self.file(index).is_file() else None


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
