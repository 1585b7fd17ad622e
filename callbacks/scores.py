"""Where a periodic score goes, whatever it measures."""

import hashlib
import json
from pathlib import Path
from typing import Any

import lightning as L

from callbacks.clock import log_numbers
from callbacks.files import Rows
from lightning_modules.protocols import Clocked
from lightning_modules.run_record import Score


class ScoreLog:
    """Makes scores known: to the run's record, the loggers and ``scores.jsonl``."""

    def __init__(self) -> None:
        self._rows: Rows | None = None

    def add(self, trainer: L.Trainer, module: Clocked, score: Score, about: dict[str, Any]) -> None:
        """Make known the score of the present clock, which must be the same on all processes.

        Args:
            trainer: The trainer of the run.
            module: What was scored.
            score: The score.
            about: What it was made of, for its row: "metric", a name for people, and whatever else there is.
        """
        module.record.score, module.record.scored_at = score, module.images_seen
        log_numbers(trainer, module, {score.name: score.value})
        if trainer.is_global_zero:
            direction = {} if score.better == "lower" else {"better": score.better}
            row = {"images_seen": module.images_seen, "value": score.value, **direction, **about}
            self._rows = self._rows or Rows(Path(trainer.default_root_dir) / "scores.jsonl")
            self._rows.append(row)


def hash_of(what: Any) -> str:
    """Return the SHA-256 of plain values, e.g. of what two scores must share to be compared."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
