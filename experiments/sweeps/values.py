"""What is read of a trial: its scores, and the value that it is judged by."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.jobs.child import newest_run
from experiments.record.tracking import read_rows


def scores(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Return (images seen, value) of every score of a trial's newest run, oldest first."""
    run = newest_run(folder)
    rows = read_rows(run / "metrics.jsonl") if run else []
    return [(row["images_seen"], row[metric]) for row in rows if metric in row]


def metrics_of(folder: Path) -> list[str]:
    """Return the names of everything that a trial's newest run has logged."""
    run = newest_run(folder)
    rows: list[dict[str, Any]] = read_rows(run / "metrics.jsonl") if run else []
    return sorted({key for row in rows for key in row} - {"images_seen", "time"})


def value_of(found: Sequence[tuple[int, float]], which: str, direction: str) -> float | None:
    """Return the last or the best of a trial's scores, or None if none is finite."""
    values = [value for _, value in found if math.isfinite(value)]
    if not values or which == "best":
        return (min if direction == "minimize" else max)(values, default=None)
    return values[-1] if math.isfinite(found[-1][1]) else None
