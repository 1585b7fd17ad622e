"""A score as a row: what it holds, and where it lies beside its floor."""

import json
import math
from pathlib import Path
from typing import Any

from experiments.measuring.resampling import interval
from experiments.record.strangers import FinishedRows, parsed

Row = dict[str, Any]


def verdict(row: Row) -> str:
    """Say where a score lies beside its floor, both of half the images.

    To be outside it must be beyond the floor's ends, and further from the floor's middle than chance takes it. The ends
    alone are too near: the halves of a floor are two parts of one set, what one has more of the other has less of, and
    a score to which both add (in a Frechet distance of few images their spread) hardly varies. Sets of other patients
    do vary. Both the score and its floor do: where real images are but what generated ones are compared with
    (authenticity), half of the variance is the floor's. Score less floor varies over halves as it does over data.

    Better than the floor is no praise: images that repeat the real ones are nearer to them than other patients are.
    """
    value, low, high = row["at_floor_size"], row["floor_low"], row["floor_high"]
    least, most = interval(value - row["floor"], row["beyond_floor"], row["freedom"])
    if low <= value <= high or least <= 0.0 <= most:
        return "within the floor"
    if row["better"] == "as real":
        return "outside the floor"
    return "better than the floor" if (value < low) == (row["better"] == "lower") else "worse than the floor"


def is_bad(row: Row) -> bool:
    """Tell whether a score lies where no score of real images does, on the bad side."""
    return row.get("verdict") in ("worse than the floor", "outside the floor")


def in_half_widths(row: Row, value: float) -> float:
    """Return how far a value lies from the middle of the floor, in half-widths of the floor; worse is positive."""
    half = (row["floor_high"] - row["floor_low"]) / 2.0
    distance = value - (row["floor_high"] + row["floor_low"]) / 2.0
    if half == 0:
        distance = 0.0 if distance == 0 else math.copysign(math.inf, distance)
    else:
        distance /= half
    return {"lower": distance, "higher": -distance, "as real": abs(distance)}[row["better"]]


def finished(path: Path) -> dict[str, list[Row]]:
    """Return the rows that an interrupted evaluation has finished; a line that a kill cut off counts for nothing."""
    lines = path.read_text().splitlines() if path.is_file() else []
    whole = [json.loads(line) for line in lines if parsed(FinishedRows, line)]
    return {found["key"]: found["rows"] for found in whole}
